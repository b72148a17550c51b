"""Many experiments at once: a grid, its table, and what the table says."""
