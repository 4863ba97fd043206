"""What each command does once its flags are read; loaded when the command runs, not for --help."""
