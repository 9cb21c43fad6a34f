"""Every preset goes through every check of the battery."""

from dataclasses import replace

import battery
import pytest
import torch
from tests._helpers.processes import processes

from tutelage import objectives
from tutelage.objectives import PRESETS, Apply, Objective, WeightedTerm, is_built_in
from tutelage.types import Batch, Progress, StatefulTerm, Totals


@pytest.fixture(autouse=True)
def _alone():
    """Graphs that were compiled for one method are none of the next one's business."""
    yield
    torch.compiler.reset()


def test_every_preset_has_a_row():
    names = [row.preset for row in battery.ROWS]
    assert len(set(names)) == len(names)
    missing = sorted(name for name in PRESETS if is_built_in(name) and name not in names)
    assert not missing, f"add a row for {', '.join(missing)} to ROWS in tests/conformance/battery.py"


def test_every_law_of_a_row_is_known():
    for row in battery.ROWS:
        assert set(row.laws.split()) <= battery.LAWS.keys()


QUICKLY_COMPILED = {"kd", "ttm", "wttm", "dist"}
"""One of each kind is compiled in the quick tests: tracing one takes up to some seconds."""


def each(checks):
    return [
        pytest.param(
            row,
            check,
            id=f"{row.preset}-{check.replace(' ', '_')}",
            marks=[
                pytest.mark.skipif(not row.known, reason=f"there is no preset {row.preset} yet"),
                *([pytest.mark.slow] if check == "compiled" and row.preset not in QUICKLY_COMPILED else []),
            ],
        )
        for row in battery.ROWS
        for check in checks
    ]


@pytest.mark.parametrize(("row", "check"), each(battery.CHECKS))
def test_it_passes(row, check):
    assert battery.run(row, check) in {"pass", "refused", "n/a"}


@pytest.mark.slow
@pytest.mark.parametrize(("row", "check"), each(battery.SLOW))
def test_it_passes_compiled_by_inductor(row, check):
    assert battery.run(row, check) in {"pass", "n/a"}


# Two processes. What draws by itself draws otherwise in each of them; what guards buffers sees to them itself.


def shared_rows():
    known = [row for row in battery.ROWS if row.known and row.objective().needs.coupled]
    bound = {row.preset: battery.case_of(row.preset).bind() for row in known}
    return [
        row for row in known if not any(isinstance(term, StatefulTerm) for term in bound[row.preset].terms.values())
    ]


def gathered_step(row, rank=None):
    """Value and gradients, by outputs and by parameters, of a whole batch, or of a process's share of it."""
    case = battery.case_of(row.preset)
    student, teacher = case.outputs(0, dtype=torch.float64)
    batch, totals = case.batch(), None
    if rank is not None:
        case = replace(case, objective=case.objective.gathered())
        student, teacher = (battery._map(o, lambda x: x.split(PARTS)[rank]) for o in (student, teacher))
        batch = Batch(*(x.split(PARTS)[rank] for x in batch[:3]))
        totals = Totals(*torch.full((3,), battery.BATCH / len(PARTS)))
    bound = case.bind().double()
    student, leaves = battery._leaves(student)
    loss = bound(student, teacher, batch, Progress(), totals)
    loss.total.backward()
    slopes = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    return loss.total.detach(), slopes, {n: p.grad for n, p in bound.named_parameters() if p.grad is not None}


PARTS = (4, 2)


def one_of_two(rank, folder):
    torch.distributed.init_process_group("gloo")
    torch.save({row.preset: gathered_step(row, rank) for row in shared_rows()}, folder / f"{rank}.pt")


@pytest.mark.slow
def test_gathered_over_two_processes_coupled_methods_are_those_of_one(tmp_path):
    processes(len(PARTS), one_of_two, tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(PARTS))]
    assert "itrd" in found[0]
    for row in shared_rows():
        value, slopes, parameters = gathered_step(row)
        both = [process[row.preset] for process in found]
        for rank, (own, ours, _) in enumerate(both):
            torch.testing.assert_close(own, value)
            for mine, whole in zip(ours, slopes, strict=True):
                # DDP's average over processes divides this by their number.
                torch.testing.assert_close(mine / len(PARTS), whole.split(PARTS)[rank])
        for name, whole in parameters.items():
            torch.testing.assert_close((both[0][2][name] + both[1][2][name]) / len(PARTS), whole)


# The runner that says so can also say no.


def test_a_table_shows_what_fails(capsys, monkeypatch):
    monkeypatch.setattr(
        battery, "CHECKS", {"zero": battery.zero, "recipe": battery.recipe, "soft": battery.soft_labels}
    )
    monkeypatch.setattr(battery, "ROWS", [battery.Row("kd", {}, "zero"), battery.Row("ttm", {}, "zero")])
    battery.case_of.cache_clear()
    assert battery.main(["kd"]) == 0
    assert "| `kd` | pass | pass | pass |" in capsys.readouterr().out.splitlines()
    assert battery.main([]) == 1
    said = capsys.readouterr()
    assert "| `ttm` | FAIL | pass | pass |" in said.out.splitlines()
    assert said.err.startswith("ttm, zero: AssertionError: expected 0 of ttm, got ")
    battery.case_of.cache_clear()
    assert battery.main(["kdd"]) == 2
    assert "expected names among kd, ttm; got kdd" in capsys.readouterr().err


def wrong(student_logits, teacher_logits, labels):
    """Nothing that a loss must be: float16 inside, a gradient that is none, unlabelled samples that count."""
    return (student_logits - teacher_logits).half().square().float().sum(-1) + student_logits[:1, 0] * (1 + labels[:1])


def deaf(student_logits, teacher_logits):
    return (student_logits.detach() - teacher_logits).square().sum(-1) + 0 * student_logits.sum(-1)


@pytest.fixture
def named(monkeypatch):
    """Makes a loss a preset of the battery."""
    known = dict(PRESETS)

    def name(loss):
        @objectives.preset("none")
        def bad(*, weight: float = 1.0):
            return Objective.of(WeightedTerm("bad", weight, Apply(loss)))

        monkeypatch.setattr(battery, "ROWS", [battery.Row("bad", {}, battery.LOGITS)])
        battery.case_of.cache_clear()
        return battery.ROWS[0]

    yield name
    for new in set(PRESETS) - set(known):
        del PRESETS[new]
    battery.case_of.cache_clear()


CAUGHT = ["large", "unlabelled", "soft labels", "gradient", "zero", "shift", "samples", "classes"]


@pytest.mark.parametrize(
    ("loss", "check"),
    [
        (deaf, "trains"),
        (deaf, "gradient"),
        *(pytest.param(wrong, name, marks=pytest.mark.slow if name == "shift" else []) for name in CAUGHT),
    ],
)
def test_a_wrong_loss_fails(named, loss, check):
    row = named(loss)
    with pytest.raises((AssertionError, RuntimeError)):
        battery.run(row, check)
