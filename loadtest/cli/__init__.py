"""The commands of this package, one module each; imports every room below."""
