"""The commands of this package, one module each. They may import every room of the package."""
