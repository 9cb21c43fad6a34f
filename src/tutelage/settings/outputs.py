"""Settings of recorded outputs of a teacher."""

BOUND = 0.01
"""How far off a chunk may be in the mean: total variation of ``p_gamma``, and relative error of ``U_gamma``."""
TOKEN_BOUND = 0.25
"""The same for tokens, whose distributions are flat: the top 64 of 2,000 of a weak language model are
off by 0.21 at gamma 1."""
