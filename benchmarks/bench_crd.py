"""Time CRD's scores by one dense product against gathering the bank's rows first, as public code does.

    python benchmarks/bench_crd.py [RESULT.json] [--columns N] [--rounds N]

Scores of one side of the loss with their gradient: 64 samples, by default 1 + 16384 columns, a bank of 50000 rows of
128. Prints both medians and the ratio; given a file name, records them with the machine, the versions and n.
"""

from functools import partial
from pathlib import Path

import output
import torch

from tutelage import losses
from tutelage.benchmark import timing

BATCH, SAMPLES, DIMENSION = 64, 50_000, 128


def dense(embeddings, bank, columns):
    """Multiply with the whole bank, then select the columns."""
    return losses.bank_scores(embeddings, bank, columns, temperature=0.07)


def gathered(embeddings, bank, columns):
    """Gather the rows first: ``(batch, columns, dimension)``."""
    rows = bank.index_select(0, columns.flatten()).view(*columns.shape, -1)
    return torch.bmm(rows, embeddings[:, :, None])[..., 0] / 0.07


def seconds(form, inputs):
    """Time scores and gradient once, in processor time of this process."""
    return timing.backward(lambda: form(*inputs).sum())[0]


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("--columns", type=int, default=16_385)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    embeddings = torch.nn.functional.normalize(torch.randn(BATCH, DIMENSION), dim=1).requires_grad_()
    bank = torch.nn.functional.normalize(torch.randn(SAMPLES, DIMENSION), dim=1)
    inputs = embeddings, bank, torch.randint(0, SAMPLES, (BATCH, arguments.columns))
    forms = {"dense product": dense, "reference: rows gathered first": gathered}
    torch.testing.assert_close(*(form(*inputs) for form in forms.values()))
    taken = timing.in_turn({name: partial(seconds, form, inputs) for name, form in forms.items()}, arguments.rounds)
    medians = timing.medians(taken)
    ratio = {name: median / list(medians.values())[-1] for name, median in medians.items()}
    for name, median in medians.items():
        print(f"{name:<32} {median * 1e3:.0f} ms, {ratio[name]:.3f} times the reference")
    output.write(arguments.result, {"n": arguments.rounds, "median_s": medians, "ratio": ratio})
