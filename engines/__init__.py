"""Models, GPUs, memory and step times; building and emulating engines. Imports neither of the other packages."""
