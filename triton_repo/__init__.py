"""What Triton loads: render a model repository from an engine's manifest, check it, run the server."""
