"""What the automatic numbers are for one teacher, and what the published ones are by the same measure.

    python benchmarks/automatic.py [data.source=hf:path/to/cifar100]

The teacher is the resnet56 of benchmarks/results/cifar100-quick, on the training samples that a run asks it about.
Writes benchmarks/results/automatic.json and prints what docs/methods.md has of it: the betas of `ttm` and `wttm`, the
ratio of their gradients for this teacher and for one at half its temperature, how far the betas of parts of these
samples are from theirs, the first gradients over cross-entropy's that the betas of the paper's tables 1 and 3 have with
this teacher, the mean size of WTTM's gradient, and the target of each transform with its automatic gamma.
"""

from itertools import product
from pathlib import Path
from statistics import median

import output

from tutelage import config, objectives, targets
from tutelage.config.schema import Recipe
from tutelage.objectives import BindContext
from tutelage.objectives.automatic import FLAT_GAMMA, SHARE
from tutelage.runs.setup import build_inputs, run_context
from tutelage.studies import study_file

RESULTS = Path(__file__).parent / "results"
TEACHER = RESULTS / "cifar100-quick" / "teacher"
GAMMAS = (0.1, 0.2, 0.25, 0.3, 0.4)
METHODS = {"ttm": objectives.ttm, "wttm": objectives.wttm}
SCALES = (1, 1.5, 2, 3, 4)


def beta(logits, method, gamma):
    """Return an automatic beta."""
    return METHODS[method](gamma=gamma).bind(BindContext(teacher_logits=logits)).resolved[method]["beta"]


def size(logits, method, gamma):
    """Return the mean size of a first gradient, which an automatic beta is the inverse of."""
    p = (gamma * logits.double()).softmax(-1)
    weight = targets.power_sum(logits.double().log_softmax(-1), gamma=gamma) if method == "wttm" else 1.0
    return float((weight * (p - 1 / p.shape[-1]).norm(dim=-1)).mean())


def published_shares(logits):
    """Return the first gradient of every published setting over cross-entropy's, with this teacher, by method."""
    found = {method: {} for method in METHODS}
    for table, method in product(("table1", "table3"), METHODS):
        study, _ = study_file.read(table, [])
        for pair, arguments in study.methods[method].pairs.items():
            gamma, weight = arguments[method]["gamma"], arguments[method]["beta"]
            share = weight * size(logits, method, gamma) / (1 - 1 / logits.shape[1]) ** 0.5
            found[method][pair] = {"gamma": gamma, "beta": weight, "share": share}
    return found


def parts(logits):
    """Return how far the betas of parts of the samples are from those of all, at most."""
    whole = {each: size(logits, *each) for each in product(METHODS, GAMMAS)}
    apart = {}
    for samples in (len(logits) // 2, 500):
        step = len(logits) // samples
        off = (whole[each] / size(logits[k::step], *each) - 1 for k in range(step) for each in whole)
        apart[str(samples)] = max(map(abs, off))
    return apart


def target(logits, transform, gamma):
    """Return the mean shares of some classes in a target, with what is found for it."""
    log_p = logits.double().log_softmax(-1)
    bound = objectives.transformed_matching(transform=transform, gamma=gamma).bind(BindContext(teacher_logits=logits))
    (found,) = bound.resolved.values()
    gamma = found.get("gamma", gamma)
    p = (
        targets.transform(log_p, targets.Pointwise(transform, gamma=gamma))
        .exp()
        .sort(-1, descending=True)
        .values.mean(0)
    )
    shares = {"first": p[0], "second": p[1], "fifth": p[4], "last 50": p[-50:].sum()}
    return {"gamma": gamma, **{name: float(value) for name, value in shares.items()}, "beta": found["beta"]}


def main(options, rest):
    views = {"source": "hf:uoft-cs/cifar100", "image": "img", "label": "fine_label"}
    common = {"name": "automatic", "student": "cifar:resnet20", "epochs": 1, "device": "cpu", "teacher": str(TEACHER)}
    recipe = config.parse(Recipe, config.override({**common, "data": views, "objective": "ttm"}, rest))
    inputs = build_inputs(recipe)
    logits = run_context(inputs.objectives[0], inputs).teacher_logits
    shares = published_shares(logits)
    of_all = [each["share"] for pairs in shares.values() for each in pairs.values()]
    sizes = [size(scale * logits, "wttm", gamma) for scale, gamma in product(SCALES, (0.1, 0.2, 0.3))]
    record = {
        "share": SHARE,
        "samples": len(logits),
        "betas": {str(gamma): {method: beta(logits, method, gamma) for method in METHODS} for gamma in GAMMAS},
        "ratios": {
            str(scale): {str(g): size(scale * logits, "wttm", g) / size(scale * logits, "ttm", g) for g in GAMMAS}
            for scale in (1, 2)
        },
        "parts": parts(logits),
        "published": shares,
        "median_share": {
            **{m: median(e["share"] for e in s.values()) for m, s in shares.items()},
            "all": median(of_all),
        },
        "wttm_sizes": [min(sizes), max(sizes)],
        "targets": {
            "none": target(logits, "power", 1.0),
            "power": target(logits, "power", FLAT_GAMMA),
            **{name: target(logits, name, "auto") for name in ("logarithm", "rational", "complement")},
        },
    }
    output.write(RESULTS / "automatic.json", record)
    for gamma, found in record["betas"].items():
        print(f"| {gamma} | {found['ttm']:g} | {found['wttm']:g} |")
    for gamma, ratio in record["ratios"]["1"].items():
        print(f"ratio at {gamma}: {ratio:.1f}, at half the temperature {record['ratios']['2'][gamma]:.1f}")
    print("parts", {samples: f"{100 * off:.1f} %" for samples, off in record["parts"].items()})
    for method, pairs in shares.items():
        found = [each["share"] for each in pairs.values()]
        print(method, f"{min(found):.1f} to {max(found):.1f}, median {record['median_share'][method]:.1f}")
        print({pair: round(each["share"], 2) for pair, each in pairs.items()})
    print(f"median of all {record['median_share']['all']:.1f}; sizes {min(sizes):.2f} to {max(sizes):.2f}")
    for name, row in record["targets"].items():
        cells = [f"{row[key]:.3f}" for key in ("first", "second", "fifth", "last 50")]
        print(f"| {name} | {row['gamma']:.4g} | {' | '.join(cells)} | {row['beta']:g} |")


if __name__ == "__main__":
    main(*output.parser(__doc__).parse_known_args())
