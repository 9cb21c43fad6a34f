from dataclasses import replace

from tests._helpers.refusals import refused

import tutelage
from tutelage import losses, models, objectives
from tutelage.data import DataSettings, open_data
from tutelage.errors import RecipeError
from tutelage.objectives.objective import Objective
from tutelage.objectives.term import Apply, WeightedTerm
from tutelage.runs.setup import RunInputs, check_compatible


def index_only(student_logits, labels):
    return losses.cross_entropy(student_logits, labels)


def test_an_objective_for_indices_alone_is_refused_before_training():
    needs_index = Objective.of(WeightedTerm("mine", 1.0, Apply(index_only)))
    for settings, wrong in (({}, False), ({"cutmix": 1.0}, True)):
        splits = open_data(DataSettings(**settings))
        student = models.create("mlp:4", classes=10, channels=1, image_size=(8, 8))
        smoothed = (objectives.cross_entropy(label_smoothing=0.1),)
        run_inputs = RunInputs(splits=splits, student=student, teacher=None, objectives=smoothed)
        check_compatible(run_inputs)
        if wrong:
            with refused(RecipeError, "data", suggests="data.mixup=0 data.cutmix=0"):
                check_compatible(replace(run_inputs, objectives=(needs_index,)))
        else:
            check_compatible(replace(run_inputs, objectives=(needs_index,)))


def test_a_student_learns_from_mixed_samples(tmp_path):
    data = {"source": "digits", "randaugment": {"magnitude": 3}, "random_erasing": 0.1, "mixup": 0.8, "cutmix": 1.0}
    optimizer = {"name": "sgd", "lr": 0.2}
    run = tutelage.train(
        model="mlp:32", data=data, epochs=5, optimizer=optimizer, name="mixed", runs=tmp_path, device="cpu"
    )
    assert run.manifest["status"] == "finished"
    assert run.manifest["recipe"]["data"]["randaugment"] == {"operations": 2, "magnitude": 3, "magnitude_std": 0.5}
    assert run.epochs[-1]["train"]["samples"] == 1437
    assert 0.2 < run.epochs[-1]["train"]["accuracy"] < run.accuracy
    assert run.accuracy > 0.7
