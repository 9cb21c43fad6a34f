"""Grids of runs, the paper's tables and figures, and what is said of them."""
