"""Starting, stopping and controlling Triton; imports `settings` and `interface`."""
