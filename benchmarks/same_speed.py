"""Time training steps and losses of this version against another version, alternating, on one machine.

    python benchmarks/same_speed.py BASE                        ten rounds, about five minutes on one core
    python benchmarks/same_speed.py BASE --write results.json   keeps every figure

BASE is a git revision, checked out into a temporary worktree. Each version waits in its own process, with one thread. A
round asks both for a speed; the order changes from round to round. For each measurement the script prints the median
over rounds of this version's speed over BASE's, with the smallest and the largest: above 1 this version is faster. It
only makes documented calls, so modules may move between the two versions.
"""

import statistics
import tempfile
import time

import versions

PAIRS = {"steps resnet56/resnet20": ("resnet56", "resnet20"), "steps vgg13/vgg8": ("vgg13", "vgg8")}
SHAPES = {"losses 64 x 100": (64, 100, 400), "losses 256 x 1000": (256, 1000, 60)}
"""Batch, classes, and repetitions of forward and backward."""
IMAGES = 640


def serve():
    """Answer the name of each measurement with its speed: images per second, or losses per second."""
    import torch

    from tutelage import data, distill, kernels, losses, models

    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)

    class Images(torch.utils.data.Dataset):
        images = torch.rand(IMAGES, 3, 32, 32, generator=draw)
        targets = torch.randint(100, (IMAGES,), generator=draw).tolist()

        def __init__(self, count):
            self.count, self.targets = count, self.targets[:count]

        def __len__(self):
            return self.count

        def __getitem__(self, index):
            return self.images[index], self.targets[index]

    splits = data.from_datasets(Images(IMAGES), Images(64), classes=100)
    networks = {name: models.create(f"cifar:{name}", classes=100) for pair in PAIRS.values() for name in pair}
    plain = {"compile_teacher": False, "compile_student": False, "gradient_products": False}
    plain |= {"precision": "fp32", "threads": 1, "device": "cpu", "weak_teacher": True}
    plain["optimizer"] = {"name": "sgd", "lr": 1e-4}  # a student is trained on from round to round, on noise

    def steps(teacher, student):
        with tempfile.TemporaryDirectory() as folder:
            given = {"student": networks[student], "teacher": networks[teacher], "data": splits, "objective": "wttm"}
            run = distill(**given, name="run", runs=folder, epochs=1, batch_size=64, **plain)
            return run.epochs[-1]["images_per_second"]

    def loss(batch, classes, times):
        z, v = torch.randn(2, batch, classes, generator=draw)
        labels = torch.randint(classes, (batch,), generator=draw)
        z.requires_grad_()
        began = time.perf_counter()
        for _ in range(times):
            (losses.cross_entropy(z, labels) + losses.wttm(z, v, gamma=0.25)).sum().backward()
            torch.stack(kernels.cross_entropy_and_wttm(z, v, labels, gamma=0.25)).sum().backward()
        return times / (time.perf_counter() - began)

    versions.serve(lambda name: steps(*PAIRS[name]) if name in PAIRS else loss(*SHAPES[name]))


def measure(sides, rounds):
    """Return every ratio by measurement, and print each row when it is known."""
    ratios = {}
    for name in (*PAIRS, *SHAPES):
        pairs = ratios[name] = [row["here"] / row["base"] for row in versions.in_turn(sides, rounds, name)]
        print(f"{name:<26} {statistics.median(pairs):.3f}  {min(pairs):.3f} to {max(pairs):.3f}", flush=True)
    return {"ratios": ratios}


if __name__ == "__main__":
    versions.main(__file__, __doc__, serve, measure, rounds=10)
