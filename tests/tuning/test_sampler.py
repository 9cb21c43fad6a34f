"""What Optuna decides: a function of the record and the trial's number; pruning by the median."""

import pickle
import re

import pytest

from tutelage import records
from tutelage.errors import MissingExtraError
from tutelage.runs.run import PrunedError
from tutelage.tuning import objective_space, sampler, space

LR = space.number("optimizer.lr", 1e-3, 1.0, log=True)
SPACE = [LR, space.number("batch_size", 8, 64, whole=True), space.choice("clip", [None, 1.0])]


def trial(number, values, value, state="finished"):
    return {"number": number, "values": values, "value": value, "state": state, "epochs": 2}


def ask(searched, trials, numbers, seed=0):
    return sampler.ask(searched, trials, numbers, seed=seed, measure=records.ACCURACY)


def test_what_is_drawn_depends_on_seed_record_and_number_alone():
    first = ask(SPACE, [], range(4))
    assert ask(SPACE, [], range(4)) == first
    assert ask(SPACE, [], range(4), seed=1) != first
    assert len({values["optimizer.lr"] for values in first}) == 4
    for values in first:
        assert 1e-3 <= values["optimizer.lr"] <= 1
        assert values["optimizer.lr"] == float(f"{values['optimizer.lr']:.3g}")
        assert isinstance(values["batch_size"], int)
        assert values["clip"] in (None, 1.0)


def test_it_learns_from_what_was_better():
    def tried(good):
        drawn = ask([LR], [], range(30))
        return [trial(k, v, 0.9 if good(v["optimizer.lr"]) else 0.1) for k, v in enumerate(drawn)]

    high = ask([LR], tried(lambda lr: lr > 0.1), range(30, 40))
    low = ask([LR], tried(lambda lr: lr < 0.01), range(30, 40))
    assert sum(v["optimizer.lr"] > 0.1 for v in high) >= 7
    assert sum(v["optimizer.lr"] < 0.01 for v in low) >= 7


def test_failed_trials_and_such_outside_the_space_tell_nothing():
    kept = [trial(0, {"optimizer.lr": 0.1}, 0.5)]
    odd = [trial(1, {}, 0.9), trial(2, {"optimizer.lr": 0.2}, None, "failed")]
    assert ask([LR], kept + odd, [3]) == ask([LR], kept, [3])


def test_a_conditional_key_is_drawn_where_it_is_there():
    searched = objective_space.dimensions()
    for values in ask(searched, [], range(30)):
        for dimension in searched:
            assert (dimension["key"] in values) == space.is_there(dimension, values), dimension["key"]


def test_without_the_library_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=re.escape("tutelage[tune]")):
        ask([LR], [], [0])


def test_a_run_below_the_median_ends_and_the_last_epoch_is_never_cut():
    rule = sampler.Pruning(tuple((0.1 * k, 0.2 * k, 0.3 * k, 0.3 * k) for k in range(1, 6)), 4)
    assert rule.stops((0.9,)) is None
    assert rule.stops((0.1, 0.9)) == 1
    assert rule.stops((0.4, 0.5)) == 2
    assert rule.stops((0.4, 0.7, 0.95)) is None
    assert rule.stops((0.4, 0.7, 0.95, 0.0)) is None
    assert sampler.Pruning(rule.courses[:4], 4).stops((0.0,)) is None  # too few to say
    assert pickle.loads(pickle.dumps(rule)).stops((0.1,)) == 1  # as it is sent to another node


def test_the_rule_reads_what_a_run_has_recorded(tmp_path):
    rule = sampler.Pruning(tuple((0.5, 0.5) for _ in range(5)), 2)
    epoch = {"stage": 0, "epoch": 1, "validation": {"accuracy": 0.2}}
    records.rewrite_epochs(tmp_path, [epoch])
    with pytest.raises(PrunedError, match="less after epoch 1"):
        rule(tmp_path, epoch)
