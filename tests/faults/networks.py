"""Networks of the recipes under test, which a fault may reach; copied beside the recipes."""

import torch
from tests.faults import inject
from torch import nn


class Reached(nn.Module):
    """Dropout and batch norm: the bits depend on all that a checkpoint must hold. A fault may stand in its forward."""

    def __init__(self, who, width, classes, features):
        super().__init__()
        self.who = who
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU())
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        logits = self.head(self.drop(self.body(x)))
        return inject.reach(f"forward of the {self.who}", logits) if self.training or self.who == "teacher" else logits


def student(classes, channels, image_size):
    return Reached("student", 8, classes, channels * image_size[0] * image_size[1])


def teacher(classes, channels, image_size):
    torch.manual_seed(1)
    return Reached("teacher", 16, classes, channels * image_size[0] * image_size[1])
