import copy

import pytest
import torch

from tutelage import config
from tutelage.runs import autotune
from tutelage.runs.setup import build_inputs


def parsed(**keys):
    value = {"name": "x", "student": "mlp:8", "objective": "cross_entropy", "batch_size": 64, "device": "cpu"}
    recipe = config.parse(config.Recipe, {**value, **keys})
    return recipe, build_inputs(recipe)


def test_steps_are_real_ones_on_copies():
    recipe, run_inputs = parsed()
    before = copy.deepcopy(run_inputs.student.network.state_dict())
    seconds, terms = autotune.time_step(recipe, run_inputs)
    assert seconds > 0
    assert list(terms) == ["ce"]
    assert all(torch.equal(before[name], value) for name, value in run_inputs.student.network.state_dict().items())


@pytest.mark.parametrize(("limit", "taken"), [(1e9, 4), (0.0, 2)])
def test_slow_steps_are_fewer(monkeypatch, limit, taken):
    recipe, run_inputs = parsed()
    seen = []
    plain = autotune.fit

    def counted(distiller, teacher, batches, settings, **keywords):
        seen.append(batches)
        yield from plain(distiller, teacher, batches, settings, **keywords)

    monkeypatch.setattr(autotune, "fit", counted)
    autotune.time_step(recipe, run_inputs, limit=limit)
    (few,) = seen
    assert 1 + few.steps == taken


def test_a_network_is_asked_about_a_batch(monkeypatch):
    recipe, run_inputs = parsed()
    sizes = []
    monkeypatch.setattr(
        autotune, "evaluate_network", lambda recipe, network, few: [sizes.append(len(b.index)) for b in few.epoch(0)]
    )
    assert autotune.time_evaluation(recipe, run_inputs.student, run_inputs.splits.train) > 0
    assert sizes == [autotune.EVALUATED] * 2
