"""Settings of recorded outputs of a teacher."""

BOUND = 0.01
"""How far off a chunk may be in the mean: total variation of ``p_gamma``, and relative error of ``U_gamma``."""
