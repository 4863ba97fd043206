"""Audit of a model repository, and whether it agrees with its engine; imports `settings`, `interface` and `server`."""
