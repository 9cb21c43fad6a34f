"""Logits that are drawn, and their distributions by NumPy."""

from __future__ import annotations

import numpy as np
import torch


def drawn(shape=(6, 5), scale=2.0, dtype=torch.float64, seed=0):
    """Draw a student's logits, a teacher's, and labels."""
    generator = torch.Generator().manual_seed(seed)
    z, v = (scale * torch.randn(2, *shape, generator=generator, dtype=torch.float64)).to(dtype).unbind()
    return z.clone().requires_grad_(), v, torch.randint(shape[-1], shape[:-1], generator=generator)


def softmax(x):
    """Return the distribution of one row of logits."""
    e = np.exp(x - x.max())
    return e / e.sum()
