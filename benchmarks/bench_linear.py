"""Time the last linear layers with cross-entropy and WTTM, and their memory, against whole logits.

    python benchmarks/bench_linear.py [RESULT.json [FORM ...]] [--tokens N] [--classes N] [--device cuda]

By default 4096 tokens and 128256 classes; width 1024 on both sides, float32, one thread; forward and backward to hidden
states and weights. Each form runs in a fresh process, for its processor time and its peak memory above the start, less
gradients. Prints medians and ratios; given a file name, records them with the machine, the versions and n. If you name
forms, only those are measured again; the file's others are kept. Where liger-kernel can be imported, its chunked
Jensen-Shannon divergence with cross-entropy is measured beside ours.

On a GPU: width 2048, bfloat16, WTTM, KD and Jensen-Shannon, see `gpu_losses.py`, and Liger if installed; a FORM is part
of a line's name, such as "kd: kernels". ``--small`` tries that in tiny sizes, also with ``--device cpu``, and records
nothing.
"""

from functools import partial
from importlib.util import find_spec
from pathlib import Path

import gpu_losses
import output
import torch

from tutelage import kernels, losses
from tutelage.benchmark import timing
from tutelage.benchmark.linear import BETA, CLASSES, FORMS, GAMMA, REFERENCE, WIDTH, measure

JENSEN_SHANNON, LIGER = "kernels, Jensen-Shannon", "Liger, Jensen-Shannon"


def jensen_shannon(*inputs):
    return kernels.linear(partial(losses.divergence, kind="jensen_shannon"), *inputs, weight=BETA).total


def liger(*inputs):
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    return LigerFusedLinearJSDLoss(weight_hard_loss=1.0, weight_soft_loss=BETA)(*inputs)


OTHERS = {JENSEN_SHANNON: jensen_shannon, LIGER: liger} if find_spec("liger_kernel") else {}

if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("forms", nargs="*", metavar="FORM")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--classes", type=int, default=CLASSES)
    output.add_device(parser)
    arguments = parser.parse_args()
    if arguments.device == "cuda" or arguments.small:
        size = {"tokens": arguments.tokens, "classes": arguments.classes}
        gpu_losses.bench(parser, arguments, gpu_losses.layer_items(arguments, **size), arguments.forms)
    torch.set_num_threads(1)
    forms = output.read(arguments.result).get("forms", {}) if arguments.forms else {}
    for name in arguments.forms or [*FORMS, *OTHERS]:
        form = OTHERS.get(name, name)
        forms[name] = timing.in_fresh_process(partial(measure, form, arguments.tokens, classes=arguments.classes))
        print(name, forms[name], flush=True)
    reference = forms.get(REFERENCE)
    for name, form in forms.items():
        if reference and form["tokens"] == reference["tokens"]:
            form["times_as_long"] = form["median_s"] / reference["median_s"]
            form["times_the_memory"] = form["added_mb"] / reference["added_mb"]
            print(
                f"{name:<24} {form['median_s']:6.2f} s, {form['times_as_long']:.3f} times as long; "
                f"{form['added_mb']:8.1f} MB, {form['times_the_memory']:.4f} times as much (n = {form['n']})"
            )
    if JENSEN_SHANNON in forms and LIGER in forms:
        time, memory = (forms[JENSEN_SHANNON][key] / forms[LIGER][key] for key in ("median_s", "added_mb"))
        print(f"Jensen-Shannon, ours over Liger's: {time:.3f} of the time, {memory:.3f} of the memory")
    settings = {"width": WIDTH, "classes": arguments.classes, "gamma": GAMMA, "threads": 1}
    output.write(arguments.result, {**settings, "forms": forms})
