"""Distillation inside Lightning's Trainer: your networks, its loop."""

import lightning.pytorch
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tutelage
from tutelage.integrations.lightning import DistillationModule

TRAINING = 1400

digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
labels = torch.tensor(digits.target)
training = DataLoader(TensorDataset(images[:TRAINING], labels[:TRAINING]), batch_size=64, shuffle=True)
test = DataLoader(TensorDataset(images[TRAINING:], labels[TRAINING:]), batch_size=256)


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3)


def fit(module: DistillationModule) -> float:
    """Train a module for six epochs; return its student's accuracy on the test images."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.pytorch.Trainer(max_epochs=6, accelerator="cpu", **quiet)
    trainer.fit(module, training)
    return trainer.test(module, test, verbose=False)[0]["test_accuracy"]


lightning.pytorch.seed_everything(0, verbose=False)
large = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
small = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

# A teacher is a module whose objective needs none.
taught = fit(DistillationModule(large, None, tutelage.objectives.cross_entropy(), optimizer=adamw))
objective = tutelage.objectives.wttm(gamma=0.25, beta=1.0)
module = DistillationModule(small, large, objective, optimizer=adamw)
print(f"teacher {taught:.1%}, student {fit(module):.1%}")
torch.save(module.student.state_dict(), "student.pt")  # the plain network
