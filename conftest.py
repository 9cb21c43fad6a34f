"""Which tests see a GPU: those that are marked ``cuda``, in a run of them alone (``make test-cuda``)."""

import os
from importlib.util import find_spec

import pytest

if find_spec("triton") is None:  # as on macOS
    collect_ignore_glob = ["src/tutelage/kernels/triton_*.py", "tests/kernels/compile_for_device.py"]


def pytest_configure(config):
    if config.option.markexpr != "cuda":  # Before torch looks for devices; processes that tests start inherit it.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["TRITON_INTERPRET"] = "1"  # Before kernels are imported: without a device they have no other form.


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, in `make test-cuda`")
