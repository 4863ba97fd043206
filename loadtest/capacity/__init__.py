"""What to run, how much of it and at what cost, for a traffic and its objectives: the plan, and whether it held."""
