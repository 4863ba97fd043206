"""Serving settings: the schema, what is derived from the engine, and what conflicts; imports `engines` alone."""
