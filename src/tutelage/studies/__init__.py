"""Grids of runs, the paper's tables and figures, and statements about them."""
