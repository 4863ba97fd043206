"""Model repositories for Triton: rendering one from an engine's manifest, checking it, running the server."""
