"""What tests on a CUDA device share."""

import warnings
from contextlib import contextmanager

import torch


@contextmanager
def no_host_wait():
    """Raise where the host waits for the device."""
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # The first use says that the mode is a prototype.
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
