"""Predictions held to published measurements, goal by goal (`make fidelity`)."""
