"""What objectives are bound to where numbers may be any."""

import torch

from tutelage import taps
from tutelage.modules import network_context


def drawn_context(objective, student, teacher, images, *, samples, classes):
    """A context whose labels go round, and whose teacher's statistics are drawn."""
    shapes = taps.feature_shapes(teacher, objective.needs.class_means, images)
    return network_context(
        objective,
        student,
        teacher,
        images,
        samples=samples,
        classes=classes,
        labels=torch.arange(samples) % classes,
        teacher_logits=torch.randn(samples, classes),
        class_means={tap: torch.randn(classes, *shape) for tap, shape in shapes.items()},
    )
