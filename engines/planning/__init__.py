"""From a recipe to a resolved plan: limits, neighbours, matrices; imports `checkpoint`, `emulator` and `steptime`."""
