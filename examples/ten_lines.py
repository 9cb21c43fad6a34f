"""Distil a network of your own into a smaller one, on data of your own."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset

import tutelage


class Digits(Dataset[tuple[Tensor, int]]):
    """Stands for your data: pairs of a float image in [0, 1] and a class index."""

    def __init__(self, part: slice) -> None:
        digits = load_digits()
        self.images, self.targets = digits.images[part] / 16, digits.target[part]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.tensor(self.images[i], dtype=torch.float32)[None], int(self.targets[i])


# The ten lines:
torch.manual_seed(0)
data = (Digits(slice(1400)), Digits(slice(1400, None)))
teacher = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
student = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
tutelage.train(model=teacher, data=data, name="my-teacher", epochs=5)
objective = tutelage.objectives.wttm(gamma=0.25, beta=1.0)
run = tutelage.distill(student=student, teacher=teacher, data=data, objective=objective, name="my-student", epochs=5)
judged = run.evaluation["student"]
print(f"accuracy {judged['accuracy']:.1%}, agreement {judged['agreement']:.1%}, H(q) {judged['entropy']:.2f} nats")
print(f"the records and the report are in {run.folder}")
