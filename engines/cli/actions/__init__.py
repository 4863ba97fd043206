"""The implementation of each command; loaded when the command runs, not for --help."""
