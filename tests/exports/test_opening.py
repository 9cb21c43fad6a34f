"""What of a run goes into a file."""

import torch
from tests._helpers.refusals import refused
from torch import nn

import tutelage
from tutelage import data
from tutelage.errors import InvalidValueError
from tutelage.exports.opening import source_of
from tutelage.runs.networks import adopt


def test_inputs_are_evenly_spaced_test_samples_with_their_labels(make):
    source = make(samples=10)
    whole = make(samples=1000)
    assert len(whole.inputs) == 37
    assert torch.equal(source.inputs, whole.inputs[[0, 4, 8, 12, 16, 20, 24, 28, 32, 36]])
    assert torch.equal(source.labels, whole.labels[[0, 4, 8, 12, 16, 20, 24, 28, 32, 36]])
    assert source.class_names == ("rose", "tulip", "lily")
    assert source.metadata["preprocessing"]["size"] == [4, 4]
    assert source.calibration is None
    assert len(make(int8=True).calibration) == 20


def test_the_student_is_copied(make):
    module = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(16, 3)).double().train()
    source = make(module)
    assert module[2].weight.dtype == torch.float64
    assert module.training
    assert module[2].weight.requires_grad
    assert source.classifier.network[2].weight.dtype == torch.float32
    assert not source.classifier.training


def test_images_are_those_of_the_networks_own_size(make):
    from tests.exports.conftest import splits

    student = tutelage.models.adopt(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), channels=1, image_size=(2, 2))
    student = adopt(student, splits(), "student")
    assert student.resizes
    source = source_of(student, splits(), name="small")
    assert source.inputs.shape == (37, 1, 2, 2)
    whole = splits().test.fetch(torch.arange(37).numpy())
    torch.testing.assert_close(source.logits(source.inputs), student.eval()(whole))


def test_labels_that_are_not_the_networks_are_left_out(make):
    assert make(nn.Sequential(nn.Flatten(), nn.Linear(16, 3))).labels is not None
    from tests.exports.conftest import Samples

    other = tutelage.models.adopt(nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), channels=1, classes=5)
    source = source_of(other, data.from_datasets(Samples(4), Samples(5), classes=3), name="other")
    assert source.labels is None


def test_networks_of_several_inputs_are_refused(make):
    with refused(InvalidValueError, "model", got="keywords"):
        make(tutelage.Adapter(nn.Linear(4, 3), inputs=("x",)))
    with refused(InvalidValueError, "samples", got=0):
        make(samples=0)
