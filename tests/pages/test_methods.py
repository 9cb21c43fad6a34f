"""The page of the methods: what it says of the automatic numbers is what was measured."""

from __future__ import annotations

import json
import re

from tests._helpers import ROOT

from tutelage.objectives.automatic import SHARE


def test_the_automatic_numbers_are_those_of_the_record():
    record = json.loads((ROOT / "benchmarks/results/automatic.json").read_text(encoding="utf-8"))
    page = " ".join((ROOT / "docs/methods.md").read_text(encoding="utf-8").split())
    assert (record["share"], record["samples"]) == (SHARE, 10_000)
    betas, (ratios, surer), median = record["betas"], record["ratios"].values(), record["median_share"]
    shares = {method: [each["share"] for each in pairs.values()] for method, pairs in record["published"].items()}
    of_pair = [record["published"][method]["resnet56/resnet20"]["share"] for method in ("ttm", "wttm")]
    said = [
        *(f"| {gamma} | {float(each['ttm']):#.4g} | {each['wttm']:.3f} |" for gamma, each in betas.items()),
        "ratio would be {:.1f}, {:.1f} and {:.1f} for the first three".format(
            *(surer[g] for g in ("0.1", "0.2", "0.3"))
        ),
        f"a factor between {min(shares['wttm']):.1f} and {max(shares['wttm']):.1f} for WTTM, with a median of "
        f"{median['wttm']:.1f}, and between {min(shares['ttm']):.1f} and {max(shares['ttm']):.1f} for TTM, with a "
        f"median of {median['ttm']:.1f}; the median over both is {median['all']:.1f}",
        "the factor is {:.1f} and {:.1f}".format(*of_pair),
        f"correspond to a factor with a median of {median['all']:.1f}; it is {of_pair[0]:.1f} for TTM with resnet56",
        "Its mean size is between {:.2f} and {:.2f} for".format(*record["wttm_sizes"]),
        "same numbers to {:.1%}, 500 samples to {:.1%}.".format(*record["parts"].values()).replace("%", " %"),
    ]
    for name, row in record["targets"].items():
        found = f"{row['gamma']:.4g}" if name != "power" else "0.25, typed"
        shown = " | ".join(f"{row[key]:.3f}" for key in ("first", "second", "fifth", "last 50"))
        of_none = "| none | | {} | |" if name == "none" else f"| `{name}` | {found} | {{}} | {row['beta']:.2f} |"
        said.append(of_none.format(shown))
    assert [each for each in said if each not in page] == []
    of_ratios = page.partition("| Ratio of the gradients of this teacher |")[2].partition(" The paper's teachers")[0]
    rows = re.findall(r"\| (0\.\d) \| [\d., ]+ \| ([\d.]+) \|", of_ratios)
    assert rows == [(gamma, f"{ratios[gamma]:.1f}") for gamma in ("0.1", "0.2", "0.3", "0.4")]
