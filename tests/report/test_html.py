from __future__ import annotations

import gzip
import itertools
import json
import re
from html.parser import HTMLParser

import pytest
from plotly.offline import get_plotlyjs_version
from tests._helpers import synthetic

from tutelage import records
from tutelage.report import html, manifest, results, summary
from tutelage.report.reading import read

EVIL = '<script>alert("x")</script>'


class Page(HTMLParser):
    """The page's result rows, its elements, and its text outside scripts and styles."""

    def __init__(self, source):
        super().__init__()
        self.rows, self.tags, self.links, self.words, self._inside = [], [], [], [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self._inside = tag
        if "data-entry" in given:
            self.rows.append(given)
        self.links += [given[key] for key in ("src", "href") if given.get(key)]

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def written(folder):
    path = html.write_report(folder)
    assert path == folder / "report.html"
    return path.read_text()


def test_the_tables_data_attributes_are_the_rows_numbers(tmp_path):
    synthetic.write_comparison(tmp_path)
    page = Page(written(tmp_path))
    expected = results.rows(tmp_path)
    assert len(page.rows) == len(expected) == 4
    for shown, row in zip(page.rows, expected, strict=True):
        assert (shown["data-entry"], shown["data-role"], shown["data-n"]) == (row.name, row.role, str(row.n))
        for key in ("accuracy", "std", "gain", "best", "agreement", "entropy", "kl_to_teacher", "ece"):
            value = shown[f"data-{key.replace('_', '-')}"]
            assert (float(value) if value else None) == getattr(row, key)


def test_the_page_is_one_file_with_plotly_once(tmp_path):
    synthetic.write_comparison(tmp_path)
    source = written(tmp_path)
    assert source.count(html._plotly()) == 1
    assert len(source) < 900_000
    assert [link for link in Page(source).links if not link.startswith("#")] == ["data:,"]
    assert not list(tmp_path.glob(".*tmp"))


def test_headline_says_what_was_run_and_what_came_out(tmp_path):
    synthetic.write_comparison(tmp_path)
    shown = Page(written(tmp_path)).text
    assert "3 objectives (ce, kd, wttm), 3 seeds: cifar:resnet8x4 on hf:uoft-cs/cifar100" in shown
    assert "Of 2 objectives besides the baseline, wttm has the highest mean, 76.01 ± 0.12 % on the test set" in shown
    assert "3.85 points above the baseline ce (72.16 ± 0.25 %): better (p = 0.005); the teacher has 79.42 %." in shown
    one = synthetic.write_run(tmp_path / "one")
    shown = Page(written(tmp_path / "one")).text
    assert "was distilled from cifar:resnet32x4 on hf:uoft-cs/cifar100 with wttm(gamma=0.1, beta=3.0)" in shown
    assert f"reaches {100 * one['student']['accuracy']:.2f} % on the test set" in shown


def test_a_loss_against_the_baseline_is_said_to_be_one(tmp_path):
    synthetic.write_comparison(tmp_path, baseline="wttm")
    shown = Page(written(tmp_path)).text
    assert "Of 2 objectives besides the baseline, kd has the highest mean, 73.81 ± 0.27 % on the test set" in shown
    assert "2.20 points below the baseline wttm (76.01 ± 0.12 %): worse (p = 0.007); the teacher has" in shown


@pytest.mark.parametrize(("baseline", "said"), [("ce", "Highest mean"), ("wttm", "Highest mean of the others")])
def test_a_mean_below_the_baselines_is_not_called_the_highest(tmp_path, baseline, said):
    synthetic.write_comparison(tmp_path, baseline=baseline)
    names = [tile.name for tile in summary.tiles(read(tmp_path), results.rows(tmp_path))]
    assert f"{said}, test accuracy" in names


@pytest.mark.parametrize(
    ("selected", "said"),
    [
        ("validation", "The validation set was used for selection by accuracy; the test set took no part in it."),
        ("test", "The test set was used for selection by accuracy: the best epoch's figure is optimistic."),
        ("none", "No set was used for selection."),
    ],
)
def test_the_page_states_which_set_selected(tmp_path, selected, said):
    synthetic.write_run(tmp_path / "run", selected=selected)
    assert said in Page(written(tmp_path / "run")).text


def test_names_from_the_records_are_inert(tmp_path):
    folder = tmp_path / "run"
    synthetic.write_run(folder, names=[EVIL, *map(str, range(9))])
    synthetic.change(
        folder / records.MANIFEST, name=EVIL, notes=[EVIL], student={"name": EVIL}, objective=[{EVIL: {EVIL: EVIL}}]
    )
    epoch = next(iter(records.read_epochs(folder)))
    epoch["train"]["terms"] = {EVIL: 1.0, "</script>": 2.0}
    (folder / records.METRICS).write_text(json.dumps(epoch) + "\n")
    source = written(folder)
    synthetic.write_run(tmp_path / "plain")
    plain = written(tmp_path / "plain")
    assert "<script>alert" not in source
    assert Page(source).tags.count("script") == Page(plain).tags.count("script")
    assert EVIL in Page(source).text


def test_control_characters_of_the_records_are_written_out(tmp_path):
    folder, steers = tmp_path / "run", "a\x1b[2J\u202eb"
    synthetic.write_run(folder, names=[steers, *map(str, range(9))])
    values = {
        "name": steers,
        "status": steers,
        "notes": [steers],
        "student": {steers: steers},
        "hardware": {"gpu": steers},
    }
    synthetic.change(folder / records.MANIFEST, **values)
    source = written(folder)
    shown = source[: source.index('id="plotly"')]
    assert "a\\x1b[2J\\u202eb" in shown
    assert not {"\x1b", "\u202e"} & set(shown)


def test_the_manifest_is_shown_whole_and_grouped(tmp_path):
    synthetic.write_run(tmp_path / "run")
    synthetic.change(tmp_path / "run" / records.MANIFEST, unheard_of={"deep": {"er": [1, 2]}})
    made = {title: dict(items) for title, items in manifest.groups(read(tmp_path / "run").manifest).items()}
    assert made["Data"]["sizes.train"] == "5000"
    assert made["Teacher"]["accuracy"] == "0.7942"
    assert made["Recipe"]["optimizer.lr"] == "0.05"
    assert made["Seeds"] == {"seed": "0", "data_seed": "0", "split_seed": "0"}
    assert made["Software"]["torch"] == "2.7.0"
    assert made["Objective"]["objective"] == "wttm(gamma=0.1, beta=3.0)"
    assert made["Other"] == {"unheard_of.deep.er": "1, 2"}
    shown = Page(written(tmp_path / "run")).text
    for items in made.values():
        for key, value in items.items():
            assert key in shown
            assert value in shown


def test_what_differs_between_runs_is_shown_with_who_has_it(tmp_path):
    synthetic.write_comparison(tmp_path)
    made = manifest.differences(read(tmp_path).runs)
    assert made["objective"]["kd(temperature=4.0)"] == "kd-0, kd-1, kd-2"
    assert made["seeds.seed"]["1"] == "ce-1, kd-1, wttm-1"
    assert not {"name", "started", "command", "data.source"} & set(made)


def test_unfinished_runs_are_said_to_be(tmp_path):
    synthetic.write_comparison(tmp_path)
    synthetic.change(tmp_path / "kd-2" / records.MANIFEST, status="failed")
    shown = Page(written(tmp_path)).text
    assert "1 of 9 runs is not finished and in no mean (kd, seed 2: failed)." in shown
    assert "Not averaged: kd: kd-2 (seed 2, failed, 20 epochs done)." in shown


def test_skipped_steps_are_said(tmp_path):
    synthetic.write_run(tmp_path / "run", length=2)
    first, second = records.read_epochs(tmp_path / "run")
    lines = [json.dumps(epoch | {"skipped_steps": 3}) for epoch in (first, second)]
    (tmp_path / "run" / records.METRICS).write_text("\n".join(lines) + "\n")
    assert "6 steps had a non-finite loss or gradient" in Page(written(tmp_path / "run")).text


@pytest.mark.parametrize(
    "options",
    [
        {"status": "running", "length": 0},
        {"status": "failed", "length": 2},
        {"length": 1, "test": False, "validation": False},
        {"taught": False, "objective": "ce", "selected": "none"},
        {"classes": 100},
    ],
)
def test_every_kind_of_run_has_a_report(tmp_path, options):
    synthetic.write_run(tmp_path / "run", **options)
    shown = Page(written(tmp_path / "run")).text
    assert ("No result" in shown) == ("status" in options)


def test_partial_records_do_not_break_the_report(tmp_path):
    synthetic.write_run(tmp_path / "run", length=0)
    for name in (records.MANIFEST, records.EVALUATION):
        path = tmp_path / "run" / name
        whole = json.loads(path.read_text())
        for key in whole:
            # In turn missing and null, so that the test stays quick.
            synthetic.change(path, **(whole | {key: None if len(key) % 2 else ...}))
            html.render(read(tmp_path / "run"))
        synthetic.write(path, whole)
    for who in ("student", "teacher"):
        for key in whole[who]:
            synthetic.write(path, whole | {who: {name: held for name, held in whole[who].items() if name != key}})
            html.render(read(tmp_path / "run"))


def test_partial_records_of_one_run_do_not_break_a_comparison(tmp_path):
    synthetic.write_comparison(tmp_path, length=2)
    synthetic.write(tmp_path / "ce-0" / records.MANIFEST, {})
    synthetic.write(tmp_path / "kd-1" / records.EVALUATION, {"set": "test", "student": {"accuracy": 0.7}})
    (tmp_path / "wttm-0" / records.METRICS).write_text('{"stage": 0, "epoch": 1}\n{"stage": 0, "ep')
    page = Page(written(tmp_path))
    shown = {row["data-entry"]: row for row in page.rows}
    assert float(shown["kd"]["data-accuracy"]) == pytest.approx((0.7391 + 0.7 + 0.735) / 3)
    assert shown["kd"]["data-entropy"] == ""


def test_an_empty_comparison_has_a_report(tmp_path):
    synthetic.write(tmp_path / records.COMPARISON, {"name": "none yet", "entries": []})
    assert "No result yet: no run has finished." in Page(written(tmp_path)).text


def test_a_runs_own_report_is_linked_where_there_is_one(tmp_path):
    synthetic.write_comparison(tmp_path)
    written(tmp_path / "kd-0")
    assert "./kd-0/report.html" in Page(written(tmp_path)).links
    assert "./kd-1/report.html" not in Page(written(tmp_path)).links


def test_a_page_of_language_models_shows_perplexity(tmp_path):
    synthetic.write_comparison_of_text(tmp_path)
    subject, found = read(tmp_path), results.rows(tmp_path)
    page = Page(written(tmp_path))
    assert "Of 2 objectives besides the baseline, kd has the lowest mean, a perplexity of 20.25 ± 0.25" in page.text
    assert "10.50 below the baseline ce (30.75 ± 0.25): better (p = 0.002); the teacher has 9.50." in page.text
    assert "used for selection by perplexity; the test set took no part in it. The perplexity that is" in page.text
    assert "Perplexity exp of the mean cross-entropy per token" in page.text
    assert "samples on which" not in page.text
    assert [tuple(tile) for tile in summary.tiles(subject, found)] == [
        ("Teacher, test perplexity", "9.50", "", "cifar:resnet32x4; 0.812 bits per byte"),
        ("Baseline, test perplexity", "30.75 ± 0.25", "", "ce, n = 3; 1.236 bits per byte"),
        ("Lowest mean, test perplexity", "20.25 ± 0.25", "", "kd, n = 3; 1.085 bits per byte"),
        ("Change from the baseline", "-10.50", "", "kd; p = 0.002"),
    ]
    assert [float(row["data-perplexity"]) for row in page.rows] == pytest.approx([row.value for row in found])
    assert "Perplexity Bits per byte Best epoch Agreement (%) Time ce-0 ce 0 finished 5 31.00" in page.text


def test_a_perplexity_above_the_baselines_is_not_called_the_lowest(tmp_path):
    synthetic.write_comparison_of_text(tmp_path, baseline="kd")
    subject, found = read(tmp_path), results.rows(tmp_path)
    assert "Lowest mean of the others, test perplexity" in [tile.name for tile in summary.tiles(subject, found)]
    said = summary.result(subject, found)
    assert "wttm has the lowest mean, a perplexity of 24.83 ± 0.76" in said
    assert "4.58 above the baseline kd (20.25 ± 0.25)" in said


class Structure(HTMLParser):
    """What a page's elements are called, and those that a reader could not name."""

    def __init__(self, source):
        super().__init__()
        self.ids, self.links, self.unnamed, self.headings = [], [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"][1:]] if given.get("href", "").startswith("#") else []
        self.links += given.get("aria-labelledby", "").split()
        self.headings += [int(tag[1])] if tag in ("h1", "h2", "h3") else []
        named = given.get("alt") or given.get("aria-label") or given.get("aria-labelledby")
        if (tag in ("img", "nav", "section") or given.get("role") or "tabindex" in given) and not named:
            self.unnamed.append((tag, attrs))


@pytest.fixture
def worthy(tmp_path):
    synthetic.write_comparison(tmp_path, length=2)
    for run in tmp_path.glob("*-*"):
        synthetic.add_worth(run)
    return tmp_path


def test_every_element_has_a_name_of_its_own_and_every_link_a_target(worthy):
    seen = Structure(written(worthy))
    assert len(seen.ids) == len(set(seen.ids))
    assert not set(seen.links) - set(seen.ids)
    assert seen.unnamed == []
    assert seen.headings[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(seen.headings))


SECTIONS = ("What it costs", "Samples in dispute", "Most confused classes", "Before and after temperature scaling")


def test_a_run_says_whether_its_student_is_worth_it(worthy):
    source = written(worthy / "wttm-0")
    shown = Page(source).text
    assert all(section in shown for section in SECTIONS)
    assert 'alt="Sample 17: class 3"' in source
    assert "6.0 times fewer than the teacher" in shown
    assert len(source) < 900_000


def test_records_of_before_have_none_of_these_sections(tmp_path):
    synthetic.write_run(tmp_path / "run", length=2)
    shown = Page(written(tmp_path / "run")).text
    assert not any(section in shown for section in SECTIONS)
    assert "McNemar" not in shown
    assert "95 % interval 72." in shown


def test_what_a_disputed_sample_says_is_inert(tmp_path):
    synthetic.write_run(tmp_path / "run", length=2, names=[EVIL, *map(str, range(9))])
    synthetic.add_worth(tmp_path / "run", picture='data:image/png;base64,"><script>alert(1)</script>', said=EVIL)
    source = written(tmp_path / "run")
    assert "<script>alert" not in source
    assert EVIL in Page(source).text


def test_the_figures_library_knows_what_the_python_package_writes():
    banner = gzip.decompress(html.PLOTLY.read_bytes())[:200].decode()
    ours = int(re.search(r"plotly\.js \(basic - minified\) v(\d+)", banner).group(1))
    assert ours >= int(get_plotlyjs_version().split(".")[0])
