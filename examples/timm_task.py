"""Distillation as a task of timm's training script: what the script does with it, in short."""

from contextlib import nullcontext
from pathlib import Path

import timm
import torch
from sklearn.datasets import load_digits
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver, dispatch_clip_grad
from torch import Tensor, nn

import tutelage
from tutelage.integrations.timm import DistillationTask

EPOCHS, BATCH, TRAINING, ACCUMULATE = 3, 32, 1400, 2

digits = load_digits()
grey = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
images = nn.functional.interpolate(grey, size=(16, 16)).expand(-1, 3, -1, -1)
labels = torch.tensor(digits.target)


def normalised(images: Tensor, network: nn.Module) -> Tensor:
    """Do what timm's loader does for the network that is trained."""
    mean, std = (torch.tensor(network.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    return (images - mean) / std


def train(task: DistillationTask, name: str) -> float:
    """Train a task's student; return the accuracy of its average on the test images."""
    student = task.get_eval_model()
    inputs = normalised(images, student)
    task.setup_ema(decay=0.9)
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="adamw", lr=2e-3, weight_decay=0.02)
    Path(name).mkdir()
    saver = CheckpointSaver(task.get_trainable_module(), optimizer, checkpoint_dir=name, task=task)
    updates = 0
    for epoch in range(EPOCHS):
        task.train()
        batches = torch.randperm(TRAINING).split(BATCH)
        for number, index in enumerate(batches):
            last = (number + 1) % ACCUMULATE == 0 or number + 1 == len(batches)
            with nullcontext() if last else task.no_sync():
                result = task(inputs[index], labels[index])
                (result["loss"] / ACCUMULATE).backward()
            if last:
                updates += 1
                dispatch_clip_grad(task.get_clip_parameters(), value=1.0)
                optimizer.step()
                optimizer.zero_grad()
                task.update_ema(step=updates)
        evaluator, network = task.create_evaluator(), task.get_eval_model(ema=True).eval()
        with torch.no_grad():
            evaluator.update(network(inputs[TRAINING:]), labels[TRAINING:])
        accuracy = evaluator.compute()["top1"] / 100
        saver.save_checkpoint(epoch, accuracy)
    return accuracy


torch.manual_seed(0)
large = timm.create_model("test_resnet", num_classes=10)
small = timm.create_model("test_efficientnet", num_classes=10)
taught = train(DistillationTask(large, None, tutelage.objectives.cross_entropy()), "teacher")
learnt = train(DistillationTask(small, large, tutelage.objectives.wttm(gamma=0.25, beta=1.0)), "student")
print(f"teacher {taught:.1%}, student {learnt:.1%}")
