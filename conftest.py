"""Which tests see a GPU: those that are marked ``cuda``, in a run of them alone (``make test-cuda``)."""

import os

import pytest


def pytest_configure(config):
    if config.option.markexpr != "cuda":  # Before torch looks for devices; processes that tests start inherit it.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, in `make test-cuda`")
