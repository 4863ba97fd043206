"""Reading, quantizing, exporting and verifying checkpoints. Imports `spec` and the shared ground alone."""
