"""A traced function with its sites; JAX only."""
