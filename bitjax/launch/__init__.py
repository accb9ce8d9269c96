"""From configs to runs: registry, building, grids, executors."""
