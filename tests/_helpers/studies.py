"""A study of a second, and what it says."""

from tutelage.runs.reporter import Reporter

QUICK = {"data": "digits", "epochs": 1, "batch_size": 512, "optimizer": {"lr": 0.5}, "device": "cpu", "threads": 1}
STUDY = {
    "name": "grid",
    "protocol": QUICK,
    "pairs": {"wide/narrow": {"teacher": "mlp:16", "student": "mlp:8"}},
    "methods": ["cross_entropy", "kd"],
}


class Lines(Reporter):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)
