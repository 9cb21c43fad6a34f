from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image
from tests._helpers import ROOT, synthetic
from tests._helpers.refusals import refused

from tutelage import records
from tutelage.errors import InvalidValueError, MissingExtraError, NotFoundError
from tutelage.studies import paper, paper_figures, paper_records

PAIR, OTHER = "resnet56/resnet20", "vgg13/vgg8"
EDGES = [round(math.log(100) * at / 30, 6) for at in range(31)]
LENGTH = 12


def part(name, terms, **arguments):
    return [{name: arguments}], terms


OBJECTIVES = {
    "ce": part("cross_entropy", {"ce": 1.0}, label_smoothing=0.0, weight=1.0),
    "ls": part("cross_entropy", {"ce": 1.0}, label_smoothing=0.5, weight=1.0),
    "kd-t1": part("kd", {"ce": 0.1, "kd": 0.9}, temperature=1, weight=0.9, supervised=0.1),
    "kd": part("kd", {"ce": 0.1, "kd": 0.9}, temperature=4, weight=0.9, supervised=0.1),
    "ttm": part("ttm", {"ce": 1.0, "ttm": 36.0}, gamma=0.25, beta=36.0, supervised=1.0),
    "wttm": part("wttm", {"ce": 1.0, "wttm": 3.0}, gamma=0.25, beta=3.0, supervised=1.0),
    "ttm-small": part("ttm", {"ce": 0.1, "ttm": 3.6}, gamma=0.25, beta=3.6, supervised=0.1),
    "ttm-flat": part("ttm", {"ce": 1.0, "ttm": 36.0}, gamma=0.1, beta=36.0, supervised=1.0),
    "wttm-small": part("wttm", {"ce": 0.1, "wttm": 0.4}, gamma=0.25, beta=0.4, supervised=0.1),
    "ttm-alone": part("ttm", {"ttm": 36.0}, gamma=0.25, beta=36.0, supervised=0.0),
    "wttm-alone": part("wttm", {"wttm": 3.0}, gamma=0.25, beta=3.0, supervised=0.0),
    "wttm-sharp": part("wttm", {"wttm": 3.0}, gamma=0.5, beta=3.0, supervised=0.0),
    "crd": part("crd", {"ce": 1.0, "crd": 0.8}, weight=0.8),
}
ENTROPIES = {"ce": 0.35, "ls": 2.9, "kd-t1": 0.55, "kd": 0.2, "ttm": 2.6, "wttm": 2.9, "crd": 0.4}


def write_run(folder, method, seed, *, entropy=None, divergence=0.1, length=LENGTH, status="finished"):
    """Write the records of one run whose curves end at known values, a hundredth higher for each seed."""
    objective, terms = OBJECTIVES[method]
    entropy = ENTROPIES.get(method, 1.0) if entropy is None else entropy
    folder.mkdir(parents=True)
    said = synthetic.manifest(folder.name, objective, terms, seed=seed, status=status)
    said["recipe"]["epochs"] = LENGTH
    synthetic.write(folder / records.MANIFEST, said)
    epochs = synthetic.epochs(np.random.default_rng(seed), length, 0.7, terms=terms)
    for epoch in epochs:
        left = 1 - epoch["epoch"] / length
        epoch["train"]["entropy"] = entropy + 0.01 * seed + left
        taught = method not in ("ce", "ls")
        epoch["train"]["kl_to_target"] = divergence + 0.01 * seed + left if taught else None
    (folder / records.METRICS).write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    if status != "finished":
        return
    counts = [0] * 30
    counts[min(29, int(entropy / EDGES[1]))] = 1000
    judgement = {"accuracy": 0.7, "entropy": entropy, "entropy_histogram": {"edges": EDGES, "counts": counts}}
    synthetic.write(folder / records.EVALUATION, {"set": "test", "samples": 1000, "student": judgement})


def write_study(folder, figures, methods, *, pairs=(PAIR,), seeds=2, options=None, **changes):
    """Write a study; ``options`` by method, seed or none: what `write_run` is told, or None for a run not started."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = []
    for pair in pairs:
        for method in methods:
            for seed in range(seeds):
                place = f"{pair.replace('/', '-')}/{method}-{seed}"
                told = (options or {}).get((method, seed), (options or {}).get(method, {}))
                if told is not None:
                    write_run(folder / place, method, seed, **told)
                cells.append({"folder": place, "pair": pair, "teacher": None, "method": method, "seed": seed})
    study = {
        "name": "figures",
        "title": "Transformed teacher matching",
        "source": "arXiv:2402.11148",
        "pairs": list(pairs),
        "methods": list(methods),
        "cells": cells,
        "published": [],
        "figures": list(figures),
        "departures": [],
    }
    synthetic.write(folder / records.STUDY, study | changes)
    return folder


def texts(path):
    """Every text of an SVG."""
    tree = ElementTree.fromstring(path.read_bytes())
    return ["".join(node.itertext()) for node in tree.iter("{http://www.w3.org/2000/svg}text")]


def pictures(folder):
    return paper_figures.pictures(paper_records.read_study(folder))


def picture(folder, kind):
    return next(one for one in pictures(folder) if one.kind == kind)


def statements(folder):
    return paper.statements(pictures(folder))


def panels(folder):
    return paper.panels(pictures(folder))


ALL = ("entropy", "divergence", "histogram", "mappings")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A study of every method on two pairs, drawn."""
    folder = tmp_path_factory.mktemp("paper") / "study"
    methods = ("ce", "ls", "kd-t1", "kd", "ttm", "wttm", "ttm-alone", "wttm-alone")
    options = {"wttm-alone": {"divergence": 0.05}}
    write_study(folder, ALL, methods, pairs=(PAIR, OTHER), options=options, departures=["One seed fewer."])
    return folder, paper.draw(folder)


# ------------------------------------------------------------------------------------------------------ what is written


def test_every_figure_is_written_in_both_forms_with_words_beside(drawn):
    folder, written = drawn
    assert written == [folder / f"{kind}.{end}" for kind in ALL for end in ("svg", "png")] + [folder / "figures.md"]
    assert {path.name for path in folder.iterdir()} - {path.name for path in written} == {
        "study.json",
        "resnet56-resnet20",
        "vgg13-vgg8",
    }


LABELS = {
    "entropy": ["Epoch", "H(q) (nats)", PAIR, OTHER, "KD, T = 4", "TTM, γ = 0.25", "TTM, γ = 0.25, no cross-entropy"],
    "divergence": ["Epoch", "D(p_T‖q) (nats)", PAIR, OTHER, "WTTM, γ = 0.25, no cross-entropy"],
    "histogram": ["H(q) (nats)", "Density (1/nat)", "label smoothing 0.5: mean 2.90 nats, n = 2"],
    "mappings": ["Probability x", "f(x), before normalisation", "sin(πx/2)", "γ = 0.1", "γ = 4"],
}


@pytest.mark.parametrize("kind", ALL)
def test_the_svg_holds_its_labels_as_text(drawn, kind):
    found = texts(drawn[0] / f"{kind}.svg")
    assert set(LABELS[kind]) <= set(found)
    caption = " ".join(found)
    for said in ("hf:uoft-cs/cifar100", "12 epochs", "n = 2 seeds") if kind != "mappings" else ("no runs",):
        assert said in caption


def written_texts(made):
    """Every text that matplotlib puts on the paper, with its box, and the box of the paper."""
    from matplotlib.backends.backend_agg import RendererAgg

    from tutelage.studies import paper_print, print_style

    found = []

    class Watched(RendererAgg):
        def draw_text(self, *args, mtext=None, **options):
            found.append((mtext.get_text(), mtext.get_window_extent(self).padded(-1)))

    with print_style.style() as plt:
        figure = paper_print._figure(plt, made)
        figure.draw(Watched(figure.bbox.width, figure.bbox.height, figure.dpi))
    return found, figure.bbox


@pytest.mark.parametrize("kind", ALL)
def test_no_two_texts_of_a_figure_lie_on_each_other_and_none_leaves_it(drawn, kind):
    boxes, paper_box = written_texts(picture(drawn[0], kind))
    assert len(boxes) > 20
    for at, (words, box) in enumerate(boxes):
        assert min(box.x0, box.y0) >= 0, words
        assert box.x1 <= paper_box.x1, words
        assert box.y1 <= paper_box.y1, words
        assert not [other for other, its in boxes[at + 1 :] if box.overlaps(its)], words


@pytest.mark.parametrize("kind", ALL)
def test_the_png_is_a_picture_of_some_size_with_colours_in_it(drawn, kind):
    image = Image.open(io.BytesIO((drawn[0] / f"{kind}.png").read_bytes())).convert("RGB")
    assert image.width > 1000
    pixels = np.asarray(image, dtype=int)
    assert tuple(pixels[0, 0]) == (255, 255, 255)
    coloured = np.ptp(pixels, axis=2) > 60
    assert coloured.mean() > 0.002
    assert (pixels.max(axis=2) < 100).mean() > 0.002


def test_the_same_records_give_the_same_bytes(drawn, monkeypatch):
    import matplotlib

    folder, written = drawn
    before = {path: path.read_bytes() for path in written}
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 9)
    monkeypatch.setitem(matplotlib.rcParams, "svg.hashsalt", "another")
    assert paper.draw(folder) == written
    assert {path: path.read_bytes() for path in written} == before
    assert matplotlib.rcParams["lines.linewidth"] == 9
    assert not any(b"<dc:date>" in content for content in before.values())


def test_matplotlib_is_loaded_to_draw_alone_and_pyplot_never(tmp_path):
    write_study(tmp_path, ["mappings"], [])
    code = (
        "import sys, pathlib; from tutelage.studies import paper, paper_figures, paper_records; "
        "study = paper_records.read_study(pathlib.Path(sys.argv[1])); "
        "paper.statements(paper_figures.pictures(study)); before = 'matplotlib' in sys.modules; "
        "paper.draw(sys.argv[1]); print(before, 'matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "True", "False"], done.stderr


def test_the_words_hold_captions_statements_and_departures(drawn):
    folder, _ = drawn
    words = (folder / "figures.md").read_text()
    assert "![Entropy of the student's output](entropy.png)" in words
    assert "The paper's order KD \\< TTM \\<= WTTM appears." in words
    assert "- One seed fewer." in words
    assert all(paper._plain(said) in words for said in statements(folder))


def test_words_are_not_read_as_markup():
    assert paper._plain("a_b <i>*\n[x](y)") == "a\\_b \\<i>\\* \\[x\\](y)"


# --------------------------------------------------------------------------------------------------- what the lines are


def test_a_line_is_the_mean_over_seeds_with_its_deviation(drawn):
    made = picture(drawn[0], "entropy")
    assert [plot.name for plot in made.plots] == [PAIR, OTHER]
    kd = next(line for line in made.plots[0].lines if line.label == "KD, T = 4")
    assert kd.x == [*range(1, LENGTH + 1)]
    assert kd.n == 2
    assert kd.y[-1] == pytest.approx(0.205)
    assert kd.spread[-1] == pytest.approx(0.01 / math.sqrt(2))


def test_a_single_seed_has_no_band(tmp_path):
    write_study(tmp_path, ["entropy"], ["kd"], seeds=1)
    made = picture(tmp_path, "entropy")
    assert made.plots[0].lines[0].spread is None
    assert "band" not in made.caption
    assert "n = 1 seed." in made.caption


def test_divergence_shows_matching_without_cross_entropy(drawn):
    made = picture(drawn[0], "divergence")
    labels = [line.label for line in made.plots[0].lines]
    assert labels == ["TTM, γ = 0.25, no cross-entropy", "WTTM, γ = 0.25, no cross-entropy"]
    assert made.plots[0].lines[1].y[-1] == pytest.approx(0.055)
    assert "leave out" not in made.caption


def test_divergence_with_cross_entropy_says_that_it_has_it(tmp_path):
    write_study(tmp_path, ["divergence"], ["ttm", "wttm"])
    made = picture(tmp_path, "divergence")
    assert [line.label for line in made.plots[0].lines] == ["TTM, γ = 0.25", "WTTM, γ = 0.25"]
    assert "These runs have a cross-entropy term, which the paper's leave out." in made.caption


def test_a_histogram_is_a_density_pooled_over_seeds(drawn):
    made = picture(drawn[0], "histogram")
    piles = made.plots[0].piles
    assert [pile.label for pile in piles] == ["cross-entropy", "label smoothing 0.5", "KD, T = 1", "KD, T = 4"]
    assert all(pile.edges == EDGES for pile in piles)
    for pile in piles:
        assert sum(np.asarray(pile.density) * np.diff(pile.edges)) == pytest.approx(1)
        assert pile.n == 2
    assert [pile.mean for pile in piles] == pytest.approx([0.35, 2.9, 0.55, 0.2])
    assert made.plots[0].level == pytest.approx(0.35)


def test_a_histogram_with_other_bins_is_left_out_and_said_to_be(tmp_path):
    write_study(tmp_path, ["histogram"], ["ce", "kd"])
    path = tmp_path / "resnet56-resnet20" / "kd-1" / records.EVALUATION
    held = json.loads(path.read_text())
    held["student"]["entropy_histogram"] = {"edges": [0, 1, 2], "counts": [5, 5]}
    synthetic.write(path, held)
    made = picture(tmp_path, "histogram")
    assert [pile.n for pile in made.plots[0].piles] == [2, 1]
    assert "Runs with other bins are left out." in made.caption


def test_mappings_are_mappings_of_the_interval():
    made = paper_figures.mappings()
    candidates, powers = made.plots
    for line in (*candidates.lines, *powers.lines):
        y = np.asarray(line.y)
        assert (y[0], y[-1]) == pytest.approx((0, 1), abs=1e-12)
        assert (np.diff(y) >= 0).all()
    x = np.asarray(candidates.lines[0].x)
    # The words say that f(x)/x falls for every candidate and for exponents below 1, and that it rises above 1.
    for line in candidates.lines[:-1]:
        assert (np.diff(np.asarray(line.y)[1:] / x[1:]) <= 1e-12).all()
    for line, gamma in zip(powers.lines, paper_figures.GAMMAS, strict=True):
        assert list(line.y) == pytest.approx(list(x**gamma))
    assert min(paper_figures.GAMMAS) == 0.1
    assert max(paper_figures.GAMMAS) > 1
    assert candidates.lines[-1].y == candidates.lines[-1].x


def test_mappings_need_no_runs(tmp_path):
    write_study(tmp_path, ["mappings"], [])
    assert [path.name for path in paper.draw(tmp_path)] == ["mappings.svg", "mappings.png", "figures.md"]


def test_every_method_of_a_study_has_a_line_and_a_look_of_its_own(tmp_path):
    write_study(tmp_path, ["entropy"], ["crd", "kd", "ttm"], seeds=1)
    lines = picture(tmp_path, "entropy").plots[0].lines
    assert [line.label for line in lines] == ["crd", "KD, T = 4", "TTM, γ = 0.25"]
    assert len({line.look for line in lines}) == 3


def test_knowledge_distillation_of_standardised_logits_is_not_called_kd(tmp_path, monkeypatch):
    standardised = part("kd", {"ce": 0.1, "kd": 9.0}, temperature=2, weight=9.0, supervised=0.1, logits="standardised")
    monkeypatch.setitem(OBJECTIVES, "lskd", standardised)
    raw = part("kd", {"ce": 0.1, "kd": 0.9}, temperature=4, weight=0.9, supervised=0.1, logits="raw")
    monkeypatch.setitem(OBJECTIVES, "kd", raw)
    write_study(tmp_path, ["entropy"], ["kd", "lskd"], seeds=1)
    lines = picture(tmp_path, "entropy").plots[0].lines
    assert [line.label for line in lines] == ["KD, T = 4", "lskd"]


def test_methods_that_read_alike_keep_their_names(tmp_path):
    write_study(tmp_path, ["entropy"], ["kd"], seeds=1)
    write_run(tmp_path / "again", "kd", 0)
    cell = {"pair": PAIR, "teacher": None, "seed": 0}
    cells = [{**cell, "folder": "resnet56-resnet20/kd-0", "method": "kd"}, {**cell, "folder": "again", "method": "kd2"}]
    synthetic.change(tmp_path / records.STUDY, cells=cells)
    lines = picture(tmp_path, "entropy").plots[0].lines
    assert [line.label for line in lines] == ["KD, T = 4 (kd)", "KD, T = 4 (kd2)"]


def test_the_last_stage_and_older_flat_records_are_understood(tmp_path):
    write_study(tmp_path, ["entropy"], ["kd", "ttm"], seeds=1)
    flat, staged = (tmp_path / "resnet56-resnet20" / name / records.MANIFEST for name in ("kd-0", "ttm-0"))
    synthetic.change(flat, objective=[{"kd": {"temperature": 2}}], objective_terms={"ce": 0.1, "kd": 0.9})
    own, terms = OBJECTIVES["ttm"]
    synthetic.change(staged, objective=[[{"fitnet": {}}], *own], objective_terms=[{"hint": 1.0}, *terms])
    labels = [line.label for line in picture(tmp_path, "entropy").plots[0].lines]
    assert labels == ["KD, T = 2", "TTM, γ = 0.25"]


def test_numbers_that_were_found_automatically_are_named(tmp_path):
    write_study(tmp_path, ["entropy"], ["kd", "ttm"], seeds=1)
    open_numbers = {"kd": {"temperature": "auto"}, "ttm": {"gamma": "auto", "beta": "auto"}}
    found = {"kd": {"temperature": 2.5}, "ttm": {"gamma": 0.4, "beta": 9.0}}
    for name, arguments in open_numbers.items():
        file = tmp_path / "resnet56-resnet20" / f"{name}-0" / records.MANIFEST
        synthetic.change(file, objective=[[{name: arguments}]], objective_resolved=[{name: found[name]}])
    labels = [line.label for line in picture(tmp_path, "entropy").plots[0].lines]
    assert labels == ["KD, T = 2.5", "TTM, γ = 0.4"]


def test_runs_of_another_folder_may_be_shared(tmp_path):
    write_study(tmp_path / "first", ["entropy"], ["kd"], seeds=1)
    cell = {"folder": "../first/resnet56-resnet20/kd-0", "pair": PAIR, "teacher": None, "method": "kd", "seed": 0}
    write_study(tmp_path / "second", ["entropy"], [], cells=[cell])
    assert picture(tmp_path / "second", "entropy").plots[0].lines[0].n == 1


# ----------------------------------------------------------------------------------------------------------- statements


def said(folder, *arguments, **options):
    write_study(folder, *arguments, **options)
    return " ".join(statements(folder))


ORDERS = [
    ({}, "order KD < TTM <= WTTM appears."),
    ({"wttm": {"entropy": 2.6}}, "order KD < TTM <= WTTM appears."),
    ({"kd": {"entropy": 2.6}}, "does not appear: KD < TTM does not hold, TTM <= WTTM holds."),
    ({"wttm": {"entropy": 2.0}}, "does not appear: KD < TTM holds, TTM <= WTTM does not hold."),
    ({"wttm": {"status": "running"}}, "cannot be judged: no finished run of WTTM."),
    ({"wttm": {"length": 6}}, "cannot be judged: they were trained for different numbers of epochs."),
]


@pytest.mark.parametrize(("options", "verdict"), ORDERS)
def test_the_order_of_the_entropies_is_said(tmp_path, options, verdict):
    words = said(tmp_path, ["entropy"], ["kd", "ttm", "wttm"], options=options)
    assert words.endswith(verdict)


def test_the_last_values_are_said(tmp_path):
    words = said(tmp_path, ["entropy"], ["kd", "ttm", "wttm"])
    assert f"{PAIR}: at epoch 12 H(q) in nats is 0.205 ± 0.007 with KD, T = 4 (n = 2); 2.605 ± 0.007 with TTM" in words


def test_of_several_temperatures_the_one_of_ttm_counts(tmp_path):
    words = said(tmp_path, ["entropy"], ["kd-t1", "kd", "ttm", "wttm"], options={"kd-t1": {"entropy": 9.0}})
    assert words.endswith("order KD < TTM <= WTTM appears.")


def test_matched_weights_are_said_to_change_the_scale(tmp_path):
    write_study(tmp_path / "matched", ["entropy"], ["kd", "ttm"], seeds=1)
    assert "TTM's loss is then 10 times KD's plus" in picture(tmp_path / "matched", "entropy").caption
    whole = picture(ROOT / "benchmarks/results/cifar100-quarter/method-alone", "entropy").caption  # KD's labels weigh 1
    assert whole.endswith("is matched to KD, T = 3.333: TTM's loss is then KD's plus the entropy term.")
    for name, methods in {"weight": ["kd-t1", "ttm"], "target": ["kd", "ttm-flat"]}.items():
        write_study(tmp_path / name, ["entropy"], methods, seeds=1)
        assert "is matched to" not in picture(tmp_path / name, "entropy").caption


DISTANCES = [
    (["ttm-alone", "wttm-alone"], {"wttm-alone": {"divergence": 0.05}}, "WTTM ends below TTM, as in the paper."),
    (["ttm-alone", "wttm-alone"], {}, "WTTM does not end below TTM, unlike in the paper."),
    (["ttm-alone", "wttm-sharp"], {}, "cannot be judged: their exponents differ, so their targets do."),
    (["ttm-alone", "wttm-alone"], {"wttm-alone": {"length": 5}}, "trained for different numbers of epochs."),
    (["wttm-alone"], {}, "cannot be judged: no finished run of TTM."),
]


@pytest.mark.parametrize(("methods", "options", "verdict"), DISTANCES)
def test_which_ends_below_is_said(tmp_path, methods, options, verdict):
    assert said(tmp_path, ["divergence"], methods, options=options).endswith(verdict)


def test_where_the_histograms_lie_is_said(tmp_path):
    as_told = said(tmp_path / "as", ["histogram"], ["ce", "ls", "kd-t1", "kd"])
    assert "Label smoothing 0.5 lies above cross-entropy, as in the paper." in as_told
    assert "KD, T = 1 lies above cross-entropy, as in the paper." in as_told
    assert "KD, T = 4 lies below cross-entropy, as in the paper." in as_told
    otherwise = {"ls": {"entropy": 0.1}, "kd-t1": {"entropy": 0.1}, "kd": {"entropy": 3.0}}
    not_so = said(tmp_path / "not", ["histogram"], ["ce", "ls", "kd-t1", "kd"], options=otherwise)
    assert "Label smoothing 0.5 does not lie above cross-entropy, unlike in the paper." in not_so
    assert "KD, T = 1 does not lie above cross-entropy, unlike in the paper." in not_so
    assert "KD, T = 4 does not lie below cross-entropy, unlike in the paper." in not_so


def test_what_a_histogram_lacks_is_said(tmp_path):
    words = said(tmp_path / "some", ["histogram"], ["ce", "kd"])
    assert "Label smoothing: no finished run. KD, T = 1: no finished run." in words
    words = said(tmp_path / "base", ["histogram"], ["kd"])
    assert words.endswith("cannot be judged: no finished run of cross-entropy.")


# ------------------------------------------------------------------------------------------------------ unfinished runs


def test_unfinished_runs_are_drawn_thin_and_are_in_no_mean(tmp_path):
    options = {("kd", 1): {"status": "interrupted", "length": 5}, ("ttm", 0): None}
    write_study(tmp_path, ["entropy", "histogram"], ["ce", "kd", "ttm"], options=options)
    made = picture(tmp_path, "entropy")
    _, kd, ttm = made.plots[0].lines
    assert (kd.n, [sorted(found) for found in kd.loose]) == (1, [[1, 2, 3, 4, 5]])
    assert (ttm.n, ttm.loose) == (1, [])
    assert "1 run is not finished and drawn as far as recorded" in made.caption
    assert "1 run is not finished and left out." in made.caption
    assert made.pending == [
        f"{PAIR}, KD, T = 4, seed 1: interrupted, 5 of 12 epochs done; thin line, in no mean",
        f"{PAIR}, TTM, γ = 0.25, seed 0: not started, 0 epochs done; left out",
    ]
    assert "1 run is not finished and left out." in picture(tmp_path, "histogram").caption
    written = paper.draw(tmp_path)
    assert "not finished" in texts(tmp_path / "entropy.svg")
    assert "seed 1: interrupted, 5 of 12 epochs done" in written[-1].read_text()


def test_of_unfinished_runs_alone_there_are_thin_lines_and_no_verdict(tmp_path):
    options = {name: {"status": "running", "length": 1} for name in ("kd", "ttm", "wttm")}
    words = said(tmp_path, ["entropy"], ["kd", "ttm", "wttm"], options=options)
    assert "no run has finished." in words
    assert "cannot be judged" in words
    assert [path.name for path in paper.draw(tmp_path)] == ["entropy.svg", "entropy.png", "figures.md"]


def test_what_nothing_is_recorded_of_is_not_drawn_and_said_so(tmp_path):
    options = dict.fromkeys(("ce", "kd"))
    write_study(tmp_path, ["entropy", "divergence", "histogram"], ["ce", "kd"], options=options)
    assert [path.name for path in paper.draw(tmp_path)] == ["figures.md"]
    assert statements(tmp_path)[0].startswith("Figure 1 (entropy): nothing to draw yet.")
    assert panels(tmp_path) == []


def test_a_pair_without_runs_has_no_panel(tmp_path):
    write_study(tmp_path, ["entropy"], ["kd"], seeds=1)
    synthetic.change(tmp_path / records.STUDY, pairs=[OTHER, PAIR])
    assert [plot.name for plot in picture(tmp_path, "entropy").plots] == [PAIR]


# ------------------------------------------------------------------------------------------------------- panels, errors


def test_the_report_gets_a_panel_for_every_pair(drawn):
    made = panels(drawn[0])
    assert [one.key for one in made] == [f"paper-{kind}-{at}" for kind in ALL for at in range(2)]
    entropy, divergence = made[0], made[2]
    assert entropy.figure.layout.title.text == f"Entropy of the student's output: {PAIR}"
    assert entropy.figure.layout.yaxis.title.text == "H(q) (nats)"
    assert "order KD < TTM <= WTTM appears." in entropy.caption
    line = next(trace for trace in divergence.figure.data if trace.name and trace.name.startswith("WTTM"))
    assert line.y[-1] == pytest.approx(0.055)
    assert "KD, T = 4: mean 0.20 (n = 2)" in [trace.name for trace in made[4].figure.data]


def test_a_panel_shows_bands_and_where_an_unfinished_run_ends(tmp_path):
    write_study(tmp_path, ["entropy"], ["kd"], seeds=3, options={("kd", 2): {"status": "running", "length": 4}})
    band, line, loose = panels(tmp_path)[0].figure.data
    assert list(band.y[:LENGTH]) == pytest.approx([y + 0.01 / math.sqrt(2) for y in line.y])
    assert (line.name, loose.name) == ("KD, T = 4 (n = 2)", "KD, T = 4 (not finished)")
    assert (list(loose.x), list(loose.marker.size)) == ([1, 2, 3, 4], [0, 0, 0, 7])


def test_hostile_names_are_names(tmp_path):
    name = "<b>$\\frac{a$ & \x00\x1b\n模型 " + "very long " * 20
    write_study(tmp_path, ["entropy"], ["kd", "crd"], pairs=["a"], seeds=1, title=name)
    study = json.loads((tmp_path / records.STUDY).read_text())
    cells = [{**cell, "pair": name, "method": f"{cell['method']} {name}"} for cell in study["cells"]]
    synthetic.change(tmp_path / records.STUDY, cells=cells, pairs=[name], methods=[])
    paper.draw(tmp_path)
    assert any(found.startswith("<b>$\\frac{a$ & 模型 very") for found in texts(tmp_path / "entropy.svg"))
    assert "<b>" not in panels(tmp_path)[0].figure.to_json()
    assert "&lt;b&gt;" in panels(tmp_path)[0].figure.layout.title.text


def test_an_unknown_figure_is_named(tmp_path):
    write_study(tmp_path, ["entropy", "entropie"], ["kd"], seeds=1)
    for call in (paper.draw, statements, panels):
        with refused(InvalidValueError, "figures", got="'entropie'"):
            call(tmp_path)
    assert not (tmp_path / "entropy.svg").exists()


def test_a_folder_without_a_study_is_named(tmp_path):
    with refused(NotFoundError, "folder", got=tmp_path, suggests="tutelage study"):
        paper.draw(tmp_path)


def test_a_study_that_asks_for_no_figure_gets_none(tmp_path):
    write_study(tmp_path, [], ["kd"], seeds=1)
    assert paper.draw(tmp_path) == []
    assert statements(tmp_path) == []


def test_without_matplotlib_the_extra_is_named_and_the_rest_works(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_study(tmp_path, ["mappings"], [])
    with refused(MissingExtraError, "figures", suggests="pip install 'tutelage[figures]'"):
        paper.draw(tmp_path)
    assert len(panels(tmp_path)) == 2
    assert statements(tmp_path)


def test_each_scale_of_figure_1_is_judged_apart(tmp_path):
    """The published study has TTM and WTTM at two scales of the loss."""
    options = {"ttm-small": {"entropy": 0.1}, "wttm-small": {"entropy": 0.15}}
    write_study(tmp_path, ["entropy"], ("kd", "ttm", "wttm", "ttm-small", "wttm-small"), options=options)
    (said,) = statements(tmp_path)
    assert "With cross-entropy at 1: The paper's order KD < TTM <= WTTM appears." in said
    assert (
        "With cross-entropy at 0.1: The paper's order KD < TTM <= WTTM does not appear: KD < TTM does not hold" in said
    )
