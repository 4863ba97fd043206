"""Model repositories for Triton: render one from an engine's manifest, check it, run the server."""
