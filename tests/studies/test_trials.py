"""Studies that search first: what is tried, what is chosen, and what the runs have of it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import yaml
from tests._helpers import ROOT
from tests._helpers.refusals import refused
from tests._helpers.studies import QUICK, STUDY, Lines

from tutelage import records
from tutelage.errors import RecipeError
from tutelage.objectives import from_spec
from tutelage.places import time_limit
from tutelage.report.statistics import mean_interval
from tutelage.runs.run import RunOptions
from tutelage.studies import budget, plan, run_study, schema, study_file, study_table, trials
from tutelage.training import lockstep

SMOOTHING = [{"cross_entropy": {"label_smoothing": 0.1}}, {}]
WEIGHT = [{"kd": {"weight": {"times": 3}}}, {}]
METHODS = {
    "cross_entropy": {"objective": "cross_entropy", "candidates": SMOOTHING},
    "kd": {"objective": "kd", "candidates": WEIGHT},
}
SEARCH = {**STUDY, "protocol": {**QUICK, "epochs": 2}, "methods": METHODS, "search": {"epochs": 1, "validation": 0.2}}


def asked(tmp_path, study=SEARCH, **changes):
    parsed = schema.parse(study)
    return plan.assign(parsed, parsed, runs=tmp_path, **changes)


def do(request):
    reporter = Lines()
    return run_study.run_study(request, options=RunOptions(reporter=reporter)), reporter.lines


def search_of(request):
    return json.loads((request.folder / records.STUDY).read_text())["search"]


def values(request, method):
    return [each["value"] for each in search_of(request)["candidates"] if each["method"] == method]


# What may be written


def test_candidates_are_laid_over_the_objective_and_the_pair_s_arguments():
    schedule = {"schedule": "warm_up", "value": 1.0, "epochs": 20}
    methods = {
        "wttm": {
            "objective": {"wttm": {"gamma": 0.5, "beta": 2}},
            "pairs": {"wide/narrow": {"wttm": {"beta": 4}}},
            "candidates": [{"wttm": {"beta": {"times": 0.5}}}, {}, {"wttm": {"beta": 7, "gamma": 0.25}}],
        },
        "dkd": {"objective": "dkd", "candidates": [{"dkd": {"weight": {"times": 3}}}, {}, {"dkd": {"beta": 2}}]},
    }
    study = schema.parse({**SEARCH, "methods": methods}, check=from_spec)
    wttm, dkd = study.methods.values()
    assert [wttm.setting(k, "wide/narrow")["wttm"] for k in range(3)] == [
        {"beta": 2.0, "gamma": 0.5},
        {"beta": 4, "gamma": 0.5},
        {"beta": 7, "gamma": 0.25},
    ]
    assert dkd.setting(0, "wide/narrow")["dkd"] == {"weight": {**schedule, "value": 3.0}, "beta": 8.0}
    assert wttm.with_candidates({"wide/narrow": 2}).entry("wide/narrow") == [{"wttm": {"gamma": 0.25, "beta": 7}}]
    assert dkd.with_candidates({"wide/narrow": 1}).spec_for("wide/narrow") == dkd.spec_for("wide/narrow")


@pytest.mark.parametrize(
    ("changes", "what", "got", "suggests"),
    [
        ({"search": None}, "search", "2 of cross_entropy", "search={epochs: 60, validation: 0.1}"),
        ({"methods": {**METHODS, "kd": "kd"}}, "search", "0 of kd", "methods.NAME.candidates"),
        ({"methods": {"kd": {"objective": "kd", "candidates": [{}]}}}, "search", "1 of kd", None),
        ({"search": {"epochs": 0}}, "search.epochs", 0, None),
        ({"search": {"epochs": 1, "validation": 1}}, "search.validation", 1, None),
        (
            {"methods": {"kd": {"objective": "kd", "candidates": [{"ttm": {"beta": 1}}, {}]}}},
            "methods.kd.candidates",
            "'ttm'",
            None,
        ),
        (
            {"methods": {"kd": {"objective": "kd", "candidates": [{"kd": {"weigth": 1}}, {}]}}},
            "methods.kd: objective.kd.weigth",
            "'weigth'",
            "weight",
        ),
        (
            {"methods": {"kd": {"objective": "kd", "candidates": [{"kd": {"weigth": {"times": 3}}}, {}]}}},
            "methods.kd: objective.kd.weigth",
            "'weigth'",
            "weight",
        ),
        ({"methods": {**METHODS, "kd trial0": METHODS["kd"]}}, "search", "'kd trial0'", "rename it"),
        (
            {"methods": {"ttm": {"objective": "ttm", "candidates": [{"ttm": {"beta": {"times": 3}}}, {}]}}},
            "methods.ttm: candidates: ttm.beta",
            "'auto'",
            "write values instead",
        ),
        (
            {"methods": {"kd": {"objective": "kd", "candidates": [{"kd": {"weight": {"times": -1}}}, {}]}}},
            "methods.kd: candidates: kd.weight",
            -1,
            "{times: 3}",
        ),
    ],
)
def test_what_is_wrong_with_a_search_is_answered(changes, what, got, suggests):
    with refused(RecipeError, f"study: {what}", got=got, suggests=suggests):
        schema.parse({**SEARCH, **changes}, check=from_spec)


def test_the_search_is_part_of_what_a_study_is(tmp_path):
    plain, changed = (schema.parse({**SEARCH, "search": {"epochs": epochs}}) for epochs in (1, 2))
    request = plan.assign(plain, changed, runs=tmp_path)
    assert request.pool != "grid"
    assert request.deviations == ("search.epochs: 2 instead of 1",)
    shorter = plan.assign(changed, changed, runs=tmp_path, epochs=1)
    assert shorter.deviations == ("epochs: 1 instead of 2; epochs of a trial: 1 instead of 2",)


# What is trained


def test_trials_hold_samples_out_and_are_as_long_as_the_search_says(tmp_path):
    protocol = {**QUICK, "epochs": 8, "outputs": "out"}
    pair = {**SEARCH["pairs"]["wide/narrow"], "settings": {"data": {"split_seed": 3}}}
    study = {**SEARCH, "protocol": protocol, "pairs": {"wide/narrow": pair}, "search": {"epochs": 4}, "seeds": 2}
    request = asked(tmp_path, study, epochs=4)
    searched = plan.jobs(trials.trials_of(request))
    students = [job.recipe for job in searched if job.method != "teacher"]
    assert [recipe.name.removeprefix(f"{request.pool}/") for recipe in students] == [
        *(f"students/narrow-cross_entropy-trial{k}-seed0" for k in range(2)),
        *(f"wide-narrow/kd-trial{k}-seed0" for k in range(2)),
    ]
    assert {(recipe.epochs, recipe.data.validation, recipe.data.split_seed) for recipe in students} == {(2, 0.1, 3)}
    assert students[2].outputs == "out/wide-data0-trials"
    assert [recipe.objective.presets[0].arguments["weight"] for recipe in students[2:]] == [0.9 * 3, 0.9]
    teachers = [next(job.recipe for job in jobs if job.method == "teacher") for jobs in (searched, plan.jobs(request))]
    assert teachers[0] == teachers[1]


def test_a_setting_is_recorded_as_the_runs_have_it(tmp_path):
    rising = {"schedule": "warm_up", "value": 1.0, "epochs": 20}
    methods = {"dkd": {"objective": {"dkd": {"weight": rising}}, "candidates": [{"dkd": {"weight": {"times": 3}}}, {}]}}
    protocol = {**QUICK, "epochs": 240}
    request = asked(
        tmp_path, {**SEARCH, "protocol": protocol, "methods": methods, "search": {"epochs": 120}}, epochs=12
    )
    (searched,) = {job.recipe.epochs for job in plan.jobs(trials.trials_of(request)) if job.method != "teacher"}
    assert searched == 6
    settings = [candidate["setting"] for candidate in trials.results(request, {})]
    assert settings == [{"dkd": {"weight": {**rising, "value": value, "epochs": 1}}} for value in (3.0, 1.0)]


@pytest.fixture
def test_set_prefers_the_other(monkeypatch):
    """The test set says of every trial that its last candidate is best by far."""
    real = records.read_epochs

    def read(folder):
        for epoch in real(folder):
            better = "trial1" in folder.name
            yield {**epoch, "test": {**epoch["test"], "accuracy": float(better)}}

    monkeypatch.setattr(records, "read_epochs", read)


@pytest.mark.slow
def test_the_best_on_validation_is_trained_with_all_seeds(tmp_path, without_reports, test_set_prefers_the_other):
    request = asked(tmp_path, {**SEARCH, "seeds": 2})
    failed, lines = do(request)
    assert failed == {}
    assert lines[0].startswith("grid: 5 of 5 runs of the search to do")
    for method, folder, argument in (
        ("cross_entropy", "students/narrow-cross_entropy", "label_smoothing"),
        ("kd", "wide-narrow/kd", "weight"),
    ):
        found = [each for each in search_of(request)["candidates"] if each["method"] == method]
        recorded = [[*records.read_epochs(tmp_path / f"grid/{folder}-trial{k}-seed0")] for k in range(2)]
        assert [each["value"] for each in found] == [epochs[-1]["validation"]["accuracy"] for epochs in recorded]
        best = max(found, key=lambda each: each["value"])
        assert [each["chosen"] for each in found] == [each is best for each in found]
        for seed in range(2):
            manifest = records.read_manifest(tmp_path / f"grid/{folder}-seed{seed}")
            (preset,) = manifest["recipe"]["objective"]
            assert preset[method][argument] == best["setting"][method][argument]
            assert (manifest["recipe"]["epochs"], manifest["recipe"]["data"]["validation"]) == (2, 0)
    # The same command does nothing more.
    failed, lines = do(request)
    assert [line.partition(",")[0] for line in lines if "to do" in line] == [
        "grid: 0 of 5 runs of the search to do",
        "grid: 0 of 5 runs to do",
    ]


def test_of_equal_candidates_the_first_is_chosen(tmp_path, without_reports):
    methods = {"kd": {"objective": "kd", "candidates": [{}, {"kd": {"weight": 0.9}}]}}
    request = asked(tmp_path, {**SEARCH, "methods": methods})
    do(request)
    assert len({*values(request, "kd")}) == 1
    assert [each["chosen"] for each in search_of(request)["candidates"]] == [True, False]


@pytest.mark.filterwarnings("ignore:weight of ce")
def test_a_trial_that_fails_is_reported_and_not_chosen(tmp_path, without_reports):
    methods = {"kd": {"objective": "kd", "candidates": [{"kd": {"weight": 1e30}}, {}]}}
    request = asked(tmp_path, {**SEARCH, "methods": methods})
    failed, _ = do(request)
    assert list(failed) == ["grid/wide-narrow/kd-trial0-seed0"]
    assert [(each["state"], each["chosen"]) for each in search_of(request)["candidates"]] == [
        ("failed", False),
        ("finished", True),
    ]
    assert study_table.read_table(request.folder).rows[1].n == 1


def test_a_study_stopped_between_trials_and_runs_goes_on(tmp_path, without_reports, monkeypatch):
    request = asked(tmp_path, {**SEARCH, "methods": {"kd": METHODS["kd"]}})
    real = run_study._StudyRun._planned

    def stop(self, group):
        if self.request.trial is None:
            raise KeyboardInterrupt
        return real(self, group)

    with monkeypatch.context() as patch:
        patch.setattr(run_study._StudyRun, "_planned", stop)
        with pytest.raises(KeyboardInterrupt):
            do(request)
    before = values(request, "kd")
    table = study_table.read_table(request.folder)
    assert [row.n for row in table.rows] == [1, 0]
    assert [each.setting is not None for each in table.scoreboard] == [True]
    assert trials.next_runs(request).trial is None
    failed, lines = do(request)
    assert failed == {}
    assert lines[0].startswith("grid: 0 of 3 runs of the search to do")
    assert values(request, "kd") == before


def test_lines_about_a_budget_name_the_search(invoke, tmp_path, without_reports):
    Path("grid.yaml").write_text(yaml.safe_dump({**SEARCH, "methods": {"kd": METHODS["kd"]}}))
    code, out, err = invoke("study", "grid.yaml", "--budget", "2s", "--device", "cpu")
    assert (code, err) == (0, "")
    assert "estimated for the search: " in out
    assert "0 of 3 runs of the search are finished, 0 of the 3 left are begun; they take about" in out
    assert "on this machine; the runs with what it chooses come after\n" in out
    code, out, err = invoke("study", "grid.yaml", "--budget", "10m", "--device", "cpu")
    assert (code, err) == (0, "")
    assert "2 of 2 runs are finished; nothing is left\n" in out


def test_trials_of_another_recipe_choose_nothing(tmp_path, without_reports):
    do(asked(tmp_path, methods=["kd"]))
    other = {**METHODS["kd"], "candidates": [{"kd": {"weight": 0.1}}, {}]}
    request = asked(tmp_path, {**SEARCH, "methods": {"kd": other}})
    failed, _ = do(request)
    assert list(failed) == ["grid/wide-narrow/kd-trial0-seed0"]
    assert "type --pool NAME" in failed["grid/wide-narrow/kd-trial0-seed0"]
    assert [each["state"] for each in search_of(request)["candidates"]] == ["to do", "finished"]
    assert study_table.read_table(request.folder).rows[1].status == "not run"
    left = budget.prepare(trials.next_runs(request), time_limit.begin("1m", time.monotonic()), measure=False)
    assert budget.progress(left) == "3 of 3 runs of the search are finished; the runs with what it chooses come after"


@pytest.mark.slow
def test_trials_are_trained_in_lockstep_and_by_one_recording(tmp_path, without_reports, monkeypatch):
    sizes, real = [], lockstep.Lockstep.__init__

    def count(self, jobs, *arguments, **keywords):
        sizes.append(len(jobs))
        real(self, jobs, *arguments, **keywords)

    monkeypatch.setattr(lockstep.Lockstep, "__init__", count)
    protocol = {**SEARCH["protocol"], "outputs": str(tmp_path / "outputs")}
    live = {**METHODS["kd"], "settings": {"outputs": None}}
    request = asked(tmp_path, {**SEARCH, "protocol": protocol, "methods": {**METHODS, "live": live}})
    failed, _ = do(request)
    assert failed == {}
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"wide-data0", "wide-data0-trials"}
    assert values(request, "kd") == values(request, "live")
    assert max(sizes) >= 4


# The command and what it shows


@pytest.mark.slow
def test_the_scoreboard_of_a_study(invoke, tmp_path, without_reports):
    Path("grid.yaml").write_text(yaml.safe_dump({**SEARCH, "seeds": 3}))
    code, out, err = invoke("study", "grid.yaml", "--dry-run")
    assert code == 0, err
    assert "grid: 7 runs in runs/grid, after 4 trials of 1 epochs" in out
    assert "kd-trial1-seed0 (dry run" in out
    assert not (tmp_path / "runs").exists()
    code, out, err = invoke("study", "grid.yaml")
    assert code == 0, err
    folder = tmp_path / "runs/grid/grid"
    table = json.loads((folder / "table.json").read_text())
    by_method = {each["method"]: each for each in table["scoreboard"]}
    rows = {row["method"]: row for row in table["rows"]}
    kd, ours = by_method["kd"], by_method["cross_entropy"]
    for each in (kd, ours):
        row = rows[each["method"]]
        assert (each["n"], each["value"], each["std"]) == (3, row["accuracy"], row["std"])
        assert each["interval"] == pytest.approx(mean_interval(row["values"]))
    differences = [
        one - other for one, other in zip(rows["cross_entropy"]["values"], rows["kd"]["values"], strict=True)
    ]
    assert (ours["against"], ours["seeds"]) == ("kd", 3)
    assert ours["difference"] == pytest.approx(sum(differences) / 3)
    assert ours["difference_interval"] == pytest.approx(mean_interval(differences))
    assert kd["against"] is None
    written = (folder / "table.md").read_text()
    assert "## Scoreboard" in written
    assert "| kd | 73.33 ± 0.25 (n = 5) accuracy (%) | – | last |" in written
    assert f"{kd['validation']:.2f} of" in written
    assert "Scoreboard: wide/narrow" in out
    code, out, err = invoke("study", "grid.yaml", "--dry-run")
    assert "kd-seed0 (dry run" in out


def test_a_study_without_a_search_has_no_scoreboard(tmp_path, without_reports):
    study = schema.parse(STUDY)
    request = plan.assign(study, study, runs=tmp_path)
    do(request)
    assert "scoreboard" not in json.loads((request.folder / "table.json").read_text())
    assert "Scoreboard" not in (request.folder / "table.md").read_text()
    assert "search" not in json.loads((request.folder / records.STUDY).read_text())


def test_the_example_of_the_page_is_a_study():
    page = (ROOT / "docs" / "studies.md").read_text()
    _, example = re.findall(r"^```yml\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    study = schema.parse(yaml.safe_load(example), check=from_spec)
    assert {len(method.candidates) for method in study.methods.values()} == {3}


@pytest.mark.parametrize("name", ["scoreboard", "scoreboard-texts"])
def test_the_package_s_scoreboards_try_three_candidates_of_each_method(name):
    study, _ = study_file.read(name, check=from_spec)
    assert f"for {len(study.methods)} methods on" in (ROOT / "docs" / "studies.md").read_text()
    assert {len(method.candidates) for method in study.methods.values()} == {3}
    assert study.search.epochs * 2 == study.recipe.epochs
    for pair in study.pairs:
        for method in study.methods.values():
            settings = [json.dumps(method.setting(k, pair)) for k in range(3)]
            assert len({*settings}) == 3
