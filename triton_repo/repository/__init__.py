"""Rendering a model repository from an engine's manifest; imports `settings` and `interface`."""
