"""Records as a run writes them, with numbers drawn from a fixed generator: nothing here was trained."""

from __future__ import annotations

import json
import math

import numpy as np

from tutelage import records

CLASSES = 10
BINS = 15


def write(path, value):
    """Write JSON without the waits for the disk that real records need."""
    path.write_text(json.dumps(value, allow_nan=False))


def judgement(rng, accuracy, *, classes=CLASSES, samples=1000, teacher=None, sharpness=2.0):
    edges = np.linspace(0, math.log(classes), 41)
    entropies = np.minimum(rng.gamma(1.0, 1 / sharpness, samples), math.log(classes))
    counts = np.histogram(entropies, edges)[0]
    held = rng.multinomial(samples, np.linspace(0, 1, BINS) ** 3 / (np.linspace(0, 1, BINS) ** 3).sum())
    reliability = []
    for at, count in enumerate(held.tolist()):
        low, high = at / BINS, (at + 1) / BINS
        sure = (low + high) / 2 if count else 0.0
        right = min(1.0, max(0.0, sure - 0.1 + 0.05 * rng.random())) if count else 0.0
        reliability.append({"low": low, "high": high, "count": count, "confidence": sure, "accuracy": right})
    made = {
        "accuracy": accuracy,
        "loss": float(rng.uniform(0.2, 1.0)),
        "entropy": float(entropies.mean()),
        "ece": float(rng.uniform(0.01, 0.1)),
        "per_class": np.clip(rng.normal(accuracy, 0.06, classes), 0, 1).tolist(),
        "entropy_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "reliability": reliability,
    }
    if teacher is not None:
        made |= {"agreement": float(rng.uniform(0.8, 0.95)), "kl_to_teacher": float(rng.uniform(0.05, 0.4))}
        made |= {"kl_to_target": float(rng.uniform(0.01, 0.1))}
    return made


def epochs(rng, count, final, *, terms, taught=True, validation=False, test=True):
    made = []
    for epoch in range(1, count + 1):
        rise = 1 - math.exp(-4 * epoch / count)

        def held_out(name, rise=rise):
            return {
                "set": name,
                "accuracy": float(final * rise + rng.normal(0, 0.004)),
                "loss": float(1.5 - rise),
                "entropy": float(2 - 1.4 * rise + rng.normal(0, 0.02)),
                "kl_to_target": float(0.5 - 0.4 * rise) if taught else None,
                "agreement": float(0.9 * rise) if taught else None,
                "samples": 1000,
            }

        made.append(
            {
                "stage": 0,
                "epoch": epoch,
                "step": 50 * epoch,
                "learning_rate": 0.05 * (1 + math.cos(math.pi * (epoch - 1) / count)) / 2,
                "train": {
                    "loss": float(3 - 2 * rise + rng.normal(0, 0.02)),
                    "terms": {name: float((3 - 2 * rise) / (at + 1)) for at, name in enumerate(terms)},
                    "accuracy": float(min(1, final * rise + 0.04)),
                    "entropy": float(2 - 1.5 * rise),
                    "kl_to_target": float(0.5 - 0.45 * rise) if taught else None,
                    "agreement": float(0.92 * rise) if taught else None,
                    "samples": 5000,
                },
                "validation": held_out("validation") if validation else None,
                "test": held_out("test") if test else None,
                "images_per_second": 5000.0,
                "memory_mb": 400.0,
                "seconds": 1.5,
                "skipped_steps": 0,
            }
        )
    return made


def manifest(name, objective, terms, *, seed=0, status="finished", selected="validation", taught=True):
    return {
        "schema": 1,
        "name": name,
        "verb": "distill" if taught else "train",
        "status": status,
        "repeatable": True,
        "started": f"2026-05-04T10:0{seed}:00Z",
        "duration_s": 4000.25 + seed,
        "command": f"tutelage distill recipe.yaml seed={seed}",
        "commit": "0123abc",
        "version": "0.1.0",
        "hardware": {"processor": "x86_64", "cores": 2, "memory_gb": 8.0, "device": "cpu", "gpu": None},
        "software": {"python": "3.11.4", "torch": "2.7.0"},
        "seeds": {"seed": seed, "data_seed": seed, "split_seed": 0},
        "data": {
            "source": "hf:uoft-cs/cifar100",
            "fingerprint": "ab12",
            "classes": CLASSES,
            "channels": 3,
            "image_size": [32, 32],
            "sizes": {"train": 5000, "labelled": 5000, "validation": 0, "test": 1000},
        },
        "teacher": {
            "name": "cifar:resnet32x4",
            "fingerprint": "t0",
            "parameters": 7433860,
            "accuracy": 0.7942,
            "set": "test",
            "samples": 1000,
        }
        if taught
        else None,
        "student": {
            "name": "cifar:resnet8x4",
            "parameters": 1233540,
            "weights": "random",
            "fingerprint": f"s{seed}",
            "normalisation": "data",
        },
        "objective": [objective],
        "objective_terms": [terms],
        "selection": {"set": selected, "metric": "accuracy"},
        "recipe": {"epochs": 40, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.05}},
        "notes": [],
        "resumed": 0,
    }


OBJECTIVES = {
    "ce": ([{"ce": {}}], {"ce": 1.0}),
    "kd": ([{"kd": {"temperature": 4.0}}], {"ce": 0.1, "kd": 0.9}),
    "wttm": ([{"wttm": {"gamma": 0.1, "beta": 3.0}}], {"ce": 1.0, "wttm": 3.0}),
}


def write_run(
    folder,
    *,
    objective="wttm",
    seed=0,
    accuracy=0.75,
    status="finished",
    selected="validation",
    taught=True,
    length=20,
    classes=CLASSES,
    names=None,
    validation=True,
    test=True,
):
    """Write one run's records and return its evaluation; a run that is not finished has none."""
    rng = np.random.default_rng([seed, *objective.encode()])
    folder.mkdir(parents=True, exist_ok=True)
    parts, terms = OBJECTIVES[objective]
    said = manifest(folder.name, parts, terms, seed=seed, status=status, selected=selected, taught=taught)
    write(folder / records.MANIFEST, said)
    made = epochs(rng, length, accuracy, terms=terms, taught=taught, validation=validation, test=test)
    (folder / records.METRICS).write_text("".join(json.dumps(epoch, allow_nan=False) + "\n" for epoch in made))
    if status != "finished":
        return None
    sharpness = {"ce": 4.0, "kd": 2.0, "wttm": 1.5}[objective]
    evaluation = {
        "set": "test",
        "samples": 1000,
        "class_names": names or [f"class {at}" for at in range(classes)],
        "student": judgement(rng, accuracy, classes=classes, teacher=taught or None, sharpness=sharpness),
        "teacher": judgement(np.random.default_rng(1), 0.7942, classes=classes) if taught else None,
        "best": {"set": selected, "accuracy": accuracy + 0.003, "epoch": length - 1, "stage": 0}
        if selected != "none"
        else None,
    }
    write(folder / records.EVALUATION, evaluation)
    return evaluation


ACCURACIES = {"ce": (0.721, 0.7243, 0.7195), "kd": (0.7391, 0.7402, 0.735), "wttm": (0.7613, 0.7589, 0.7602)}


def write_comparison(folder, *, baseline="ce", **options):
    """Write three objectives by three seeds and return the evaluations by entry."""
    found, entries = {}, []
    for name, accuracies in ACCURACIES.items():
        for seed, accuracy in enumerate(accuracies):
            place = f"{name}-{seed}"
            one = write_run(folder / place, objective=name, seed=seed, accuracy=accuracy, **options)
            found.setdefault(name, []).append(one)
            entries.append({"folder": place, "objective": name, "seed": seed})
    said = {"name": "matching on cifar", "baseline": baseline, "teacher": None, "entries": entries}
    write(folder / records.COMPARISON, said)
    return found


def change(path, **values):
    """Set keys of a JSON record; an ellipsis takes a key out."""
    held = json.loads(path.read_text())
    held |= values
    write(path, {key: value for key, value in held.items() if value is not ...})


PERPLEXITIES = {"ce": (31.0, 30.5, 30.75), "kd": (20.0, 20.5, 20.25), "wttm": (25.0, 25.5, 24.0)}
"""Of a language model: the lowest is not where the accuracy is the highest."""


def of_text(folder, perplexity, teacher=9.5):
    """Make a run's records those of a language model: its perplexity falls to this one, and was 1 lower at its best."""

    def measures(value):
        return {"perplexity": value, "bits_per_byte": math.log2(value) / 4}

    held = json.loads((folder / records.EVALUATION).read_text())
    held["student"] |= measures(perplexity) | {"per_class": []}
    if held["teacher"]:
        held["teacher"] |= measures(teacher) | {"per_class": []}
    if held["best"]:
        held["best"] |= {"perplexity": perplexity - 1}
    write(folder / records.EVALUATION, held)
    epochs = list(records.read_epochs(folder))
    for epoch in epochs:
        for name in ("validation", "test"):
            if epoch[name]:
                epoch[name] |= measures(perplexity + len(epochs) - epoch["epoch"])
    (folder / records.METRICS).write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))


def write_comparison_of_text(folder, *, baseline="ce"):
    """Write a comparison of language models, of five epochs."""
    write_comparison(folder, baseline=baseline, length=5)
    for name, values in PERPLEXITIES.items():
        for seed, value in enumerate(values):
            of_text(folder / f"{name}-{seed}", value)


SAMPLES = 1000
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
PIXEL += "rkJggg=="


def answers(rng, labels, accuracy, classes=CLASSES):
    """Draw answers of which this share is right, the first samples of a class less often than the last."""
    wrong = (labels + rng.integers(1, classes, len(labels))) % classes
    return np.where(rng.permutation(len(labels)) < round(accuracy * len(labels)), labels, wrong)


def cost(name, parameters, latency):
    return {
        "network": name,
        "parameters": parameters,
        "flops": 250 * parameters,
        "file_bytes": 4 * parameters + 1000,
        "latency_ms": latency,
        "latency_p90_ms": 1.1 * latency,
        "latency_n": 50,
        "throughput": 4000 / latency,
        "batch": 64,
    }


def add_worth(folder, *, classes=CLASSES, picture=PIXEL, said=None):
    """Add to a finished run what says whether its student is worth it; its predictions have its accuracies."""
    evaluation = json.loads((folder / records.EVALUATION).read_text())
    seed = json.loads((folder / records.MANIFEST).read_text())["seeds"]["seed"]
    rng = np.random.default_rng([seed, *folder.name.encode()])
    labels = np.arange(SAMPLES) % classes
    given = {who: answers(rng, labels, evaluation[who]["accuracy"], classes) for who in ("student", "teacher")}
    given |= {f"{who}_probability": rng.uniform(0.4, 1, SAMPLES).astype(np.float32) for who in ("student", "teacher")}
    records.write_predictions(folder, records.Predictions("test", np.arange(SAMPLES), labels, **given))
    for who in ("student", "teacher"):
        scaled = {"temperature": 1.7, "fitted_on": "validation", "loss": 0.3, "ece": 0.012}
        evaluation[who]["calibration"] = scaled | {"reliability": evaluation[who]["reliability"]}
    write(folder / records.EVALUATION, evaluation)
    costs = {"device": "cpu", "hardware": "x86_64", "threads": 2, "precision": "fp32", "input": [3, 32, 32]}
    networks = {"student": cost("cifar:resnet8x4", 1233540, 0.8), "teacher": cost("cifar:resnet32x4", 7433860, 4.0)}
    write(folder / records.COSTS, costs | networks)
    sample = {"index": 17, "label": 3, "student": {"label": 5, "probability": 0.981}, "picture": picture, "text": said}
    disputed = {"set": "test", "count": 212, "samples": [sample | {"teacher": {"label": 3, "probability": 0.9}}]}
    write(folder / records.DISPUTED, disputed)
