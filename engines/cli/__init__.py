"""The commands of this package, one module each. The top floor: imports every room below."""
