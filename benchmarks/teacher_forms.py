"""Measure what each form of a recorded teacher costs, against all of its logits.

    python benchmarks/teacher_forms.py TEXTS [RESULT.json] [--work FOLDER] [--seeds N]

TEXTS is a folder of AG News in Parquet. The teacher of recipes/ag-news-lm.yaml is trained first. Compared are, at about
equal bytes a token: its top classes alone (dropped, and renormalised with the student's), the top with a uniform tail,
the top with the rest as one bucket, and classes drawn from it, from p and from p**0.8.

The gradient is that of ttm at gamma 1 with respect to the student's logits, on tokens of the training set, at a student
that was trained on all logits. ``bias2`` is the mean over tokens of the squared distance between its mean over draws
and the dense gradient, ``variance`` the mean of its squared distance from that mean, both over the mean squared size of
the dense gradient. Of draws ``bias2`` is estimated without bias from independent recordings, so it may be below 0; its
standard error is over tokens. ``mean_bias2`` is of the mean over all these tokens instead, which a large batch sees,
over the squared size of the dense mean; ``mean_bias2_noise`` is what draws of no bias would have left in it, which is
taken off. ``tv`` is the mean total variation between target and teacher; a bucket's rest has the student's shape.

Then students learn from the first --train rows of an order in one pass, by the cross-entropy and the divergence with
equal weights, from the same batches of 16 rows, with the recipe's optimizer, rate and warm-up. What they learn from is
packed and read by the recorded forms' own code, from the teacher's logits of the batch. ``ece`` is the expected
calibration error of a student's likeliest tokens on the first --rows test rows, 15 bins of equal width, and its
perplexity is on these too.

A seed or a measurement that is in --work is not made again, so the script can be stopped and started.
"""

import json
import math
import statistics
from pathlib import Path

import output
import torch

import tutelage
from tutelage import config, data, losses, objectives, targets
from tutelage.config.schema import Recipe
from tutelage.runs import setup
from tutelage.runs.execute import execute
from tutelage.settings.outputs import Bucket, Sampled
from tutelage.teacher_cache.forms import BucketForm, SampledForm
from tutelage.teacher_cache.top_k import TopK
from tutelage.types import Outputs, Sparse

RECIPE = Path(__file__).parents[1] / "recipes" / "ag-news-lm.yaml"
BUDGETS = (40, 72, 136, 264)
"""Bytes a token."""
TRAINED = 72
"""Budget at which students are trained."""
BATCH = 16
BEYOND = ("objectives", "seeds", "name", "teacher")
"""Keys of the recipe that one student's run does not have."""
BLOCK = 512


def numbers_of(budget):
    """Return how many classes or draws each form keeps in so many bytes, with classes that take 2."""
    return {
        "dropped": budget // 4,
        "renormalised": budget // 4,
        "uniform tail": (budget - 32) // 4,
        "bucket": (budget - 8) // 4,
        "sampled": (budget - 4) // 2,
        "sampled 0.8": (budget - 4) // 6,
    }


def recipe_of(texts, name, **changes):
    """Return the recipe of a run."""
    keys = {key: value for key, value in config.read(RECIPE).items() if key not in BEYOND}
    keys["data"] = {**keys["data"], "source": f"hf:{texts}"}
    return config.parse(Recipe, {**keys, "name": name, "threads": 1, "device": "cpu", **changes})


def finished(folder):
    path = folder / "manifest.json"
    return path.exists() and json.loads(path.read_text())["status"] == "finished"


def read_as(form, number, logits, seed=0):
    """Return what is read of the teacher's logits in a form."""
    classes = logits.shape[-1]
    if form == "uniform tail":
        kept = TopK(kept=number, classes=classes)
        return kept.as_sparse(kept.pack(logits), 1.0)
    if form == "bucket":
        kept = BucketForm(settings=Bucket(top=number), classes=classes)
        return kept.as_sparse(kept.pack(logits), 1.0)
    if form.startswith("sampled"):
        settings = Sampled(draws=number, proposal=float(form.partition(" ")[2] or 1))
        kept = SampledForm(settings=settings, classes=classes, seed=seed)
        return kept.as_sparse(kept.pack(logits, kept.bits(0, range(len(logits)))), 1.0)
    values, index = logits.log_softmax(-1).topk(number)
    return Sparse(values, index, torch.full_like(values[:, 0], -torch.inf), classes)


def gradient(form, number, z, logits, seed=0):
    """Return the gradient of the loss with respect to the student's logits."""
    z = z.clone().requires_grad_()
    if form == "dense":
        values = losses.ttm(z, logits, gamma=1)
    elif form == "renormalised":
        values = losses.top_k(z, logits, top=number, rest=form)
    else:
        values = losses.ttm(z, read_as(form, number, logits, seed), gamma=1)
    return torch.autograd.grad(values.sum(), z)[0].double()


def target(form, number, z, logits):
    """Return the distribution that a token's student is pulled to."""
    if form == "dense":
        return logits.double().softmax(-1)
    known = read_as(form, number, logits)
    if known.form == "sampled":
        return torch.zeros_like(logits.double()).scatter_add_(-1, known.index, known.values.double().exp())
    if known.form == "level":
        return targets.dense(known).double().softmax(-1)
    q = z.double().softmax(-1)
    rest = q.scatter(-1, known.index, 0.0)
    rest = rest / rest.sum(-1, keepdim=True) * known.level.double().exp()[:, None]
    return rest.scatter(-1, known.index, known.values.double().exp())


def of_gradient(form, number, z, logits, redraws):
    """Return what is measured of a form's gradient and target."""
    bias2, size2, variance, apart, total, dense_total = [], [], [], [], 0.0, 0.0
    redraws = redraws if form.startswith("sampled") else 1
    for block in range(0, len(z), BLOCK):
        rows, of_teacher = z[block : block + BLOCK], logits[block : block + BLOCK]
        dense = gradient("dense", 0, rows, of_teacher)
        mean, square = torch.zeros_like(dense), torch.zeros(len(rows), dtype=torch.float64)
        for draw in range(redraws):
            # A block's rows are hashed by their place in it, so each block and recording has a seed of its own.
            got = gradient(form, number, rows, of_teacher, seed=draw * len(z) + block)
            mean += got / redraws
            square += got.square().sum(-1) / redraws
        spread = (square - mean.square().sum(-1)) * redraws / max(redraws - 1, 1) if redraws > 1 else 0 * square
        bias2.append((mean - dense).square().sum(-1) - spread / redraws)
        size2.append(dense.square().sum(-1))
        variance.append(spread)
        p = of_teacher.double().softmax(-1)
        apart.append((target(form, number, rows, of_teacher) - p).abs().sum(-1) / 2)
        total, dense_total = total + mean.sum(0), dense_total + dense.sum(0)
    bias2, size2, variance, apart = (torch.cat(each) for each in (bias2, size2, variance, apart))
    size = float(size2.mean())
    noise = float(variance.sum()) / redraws
    return {
        "bias2": float(bias2.mean()) / size,
        "bias2_standard_error": float(bias2.std()) / math.sqrt(len(bias2)) / size,
        "variance": float(variance.mean()) / size,
        "mean_bias2": (float((total - dense_total).square().sum()) - noise) / float(dense_total.square().sum()),
        "mean_bias2_noise": noise / float(dense_total.square().sum()),
        "tv": float(apart.mean()),
    }


@torch.no_grad()
def tokens_of(network, split, rows):
    """Return a network's logits and the labels at the counted positions of a split's first rows."""
    logits, labels = [], []
    for batch in data.BatchLoader(split, batch_size=32, train=False).epoch(0):
        logits.append(network(batch.inputs)[batch.counted].float())
        labels.append(batch.labels[batch.counted])
        rows -= len(batch.index)
        if rows <= 0:
            break
    return torch.cat(logits), torch.cat(labels)


def calibration_error(logits, labels, bins=15):
    confidence, predicted = logits.softmax(-1).max(-1)
    right = (predicted == labels).double()
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = [
        abs(float((confidence[place == k].double() - right[place == k]).sum())) / len(labels)
        for k in range(bins)
        if (place == k).any()
    ]
    return sum(gaps)


def new_student(recipe, splits, seed):
    torch.manual_seed(seed)
    return setup.build_inputs(recipe, splits=splits).student


def train(recipe, splits, teacher, seed, rows, held_out):
    """Return each student's test perplexity and calibration error after a pass over the first rows."""
    kinds = {"cross-entropy": 0, "dense": 0, **numbers_of(TRAINED)}
    del kinds["sampled 0.8"]
    made, steps = {}, -(-rows // BATCH)
    for name, number in kinds.items():
        student = new_student(recipe, splits, seed)
        objective = objectives.ttm(gamma=1, beta=1.0)
        if name == "cross-entropy":
            objective = objectives.cross_entropy()
        elif name == "renormalised":
            objective = objectives.top_k(top=number, rest=name)
        optimizer = torch.optim.AdamW(student.parameters(), lr=recipe.optimizer.lr, weight_decay=0.05)
        scale = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / (0.1 * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps))
        )
        made[name] = tutelage.Distiller(student, objective), optimizer, scale, number
    loader = data.BatchLoader(splits.train, batch_size=BATCH, train=True, data_seed=seed)
    for step, batch in enumerate(loader.epoch(0)):
        if step == steps:
            break
        with torch.no_grad():
            logits = teacher(batch.inputs).float()
        for name, (distiller, optimizer, scale, number) in made.items():
            answers = Outputs(logits)
            if name in ("dropped", "uniform tail", "bucket", "sampled"):
                known = read_as(name, number, logits.flatten(0, 1), seed=seed * steps + step)
                known = known._replace(
                    values=known.values.unflatten(0, logits.shape[:-1]),
                    index=known.index.unflatten(0, logits.shape[:-1]),
                    level=known.level.unflatten(0, logits.shape[:-1]),
                )
                answers = Outputs(known.values[..., :0], sparse=known)
            optimizer.zero_grad()
            distiller(batch, answers).loss.total.backward()
            optimizer.step()
            scale.step()
        if step % 16 == 0:
            print(f"seed {seed}: step {step} of {steps}", flush=True)
    found = {}
    for name, (distiller, *_, number) in made.items():
        distiller.eval()
        z, labels = tokens_of(distiller.student, splits.test, held_out)
        perplexity = float(losses.cross_entropy(z, labels).double().mean().exp())
        found[name] = {"number": number, "perplexity": perplexity, "ece": calibration_error(z, labels)}
    return found, made["dense"][0].student.state_dict()


def summarised(seeds):
    """Return mean and sample standard deviation of each kind of student over the seeds."""
    summary = {}
    for name in seeds[0]:
        summary[name] = {"number": seeds[0][name]["number"], "n": len(seeds)}
        for key in ("perplexity", "ece"):
            values = [each[name][key] for each in seeds]
            spread = statistics.stdev(values) if len(values) > 1 else None
            summary[name][key] = {"values": values, "mean": statistics.mean(values), "deviation": spread}
    return summary


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("texts", type=Path)
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/teacher_forms"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=2048, help="rows of 64 tokens that a student learns from")
    parser.add_argument("--rows", type=int, default=128, help="test rows")
    parser.add_argument("--tokens", type=int, default=2048, help="training tokens for gradients")
    parser.add_argument("--redraws", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    texts, work = arguments.texts.resolve(), arguments.work
    if not finished(work / "teacher"):
        whole = config.read(RECIPE)["teacher"]
        execute(recipe_of(texts, "teacher", teacher=whole).training("teacher"), work / "teacher")
    recipe = recipe_of(texts, "student")
    splits, teacher = data.open_data(recipe.data), tutelage.load(work / "teacher").eval()
    seeds = []
    for seed in range(arguments.seeds):
        path, weights = work / f"seed{seed}.json", work / f"dense{seed}.pt"
        if not path.exists():
            found, dense = train(recipe, splits, teacher, seed, arguments.train, arguments.rows)
            torch.save(dense, weights)
            path.write_text(json.dumps(found))
        seeds.append(json.loads(path.read_text()))
    student = new_student(recipe, splits, 0).eval()
    student.load_state_dict(torch.load(work / "dense0.pt"))
    rows = -(-arguments.tokens // 64)
    z, logits = (tokens_of(network, splits.train, rows)[0][: arguments.tokens] for network in (student, teacher))
    v, labels = tokens_of(teacher, splits.test, arguments.rows)
    record = {
        "data": {"train": len(splits.train), "test": len(splits.test), "fingerprint": splits.fingerprint},
        "teacher": {
            "perplexity": float(losses.cross_entropy(v, labels).double().mean().exp()),
            "ece": calibration_error(v, labels),
        },
        "students": {
            "bytes": TRAINED,
            "train_rows": arguments.train,
            "test_tokens": len(v),
            "seeds": list(range(arguments.seeds)),
            "forms": summarised(seeds),
        },
        "gradient": {"tokens": len(z), "redraws": arguments.redraws, "bytes": {}},
    }
    for budget in BUDGETS:
        forms = record["gradient"]["bytes"][str(budget)] = {}
        for form, number in numbers_of(budget).items():
            path = work / f"gradient-{budget}-{form.replace(' ', '-')}.json"
            if number >= 1 and not path.exists():
                path.write_text(json.dumps(of_gradient(form, number, z, logits, arguments.redraws)))
            if number >= 1:
                forms[form] = {"number": number, **json.loads(path.read_text())}
                print(budget, form, forms[form], flush=True)
    output.write(arguments.result, record)
