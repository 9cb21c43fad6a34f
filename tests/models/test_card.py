import json

import pytest
from tests._helpers.refusals import refused

from tutelage.errors import InvalidValueError
from tutelage.models import Card


def test_a_card_survives_json():
    card = Card(
        name="cifar:resnet20",
        classes=2,
        channels=1,
        image_size=(28, 30),
        divisor=16.0,
        mean=(0.1,),
        std=(0.3,),
        weights="x.pth",
        class_names=("a", "b"),
        stages=("layer1", "pool"),
        stage_inputs=("layer1.2.relu:input", "pool"),
        embedding="pool",
        head="fc",
        fresh_head=True,
    )
    assert Card.from_json(json.loads(json.dumps(card.to_json()))) == card


def test_the_least_card_survives_json():
    card = Card(name="mine", classes=7)
    assert Card.from_json(json.loads(json.dumps(card.to_json()))) == card


def test_a_card_written_without_a_divisor_means_8_bits():
    older = {k: v for k, v in Card(name="mine", classes=7).to_json().items() if k != "divisor"}
    assert Card.from_json(older).divisor == 255


def test_a_card_written_before_there_were_taps_is_read():
    card = Card(name="mine", classes=7, stages=("layer1", "pool"))
    older = {k: v for k, v in card.to_json().items() if k not in ("preactivations", "embedding", "head")}
    read = Card.from_json(older)
    assert (read.embedding, read.head) == (None, None)
    assert read.stage_inputs == ("layer1", "pool")


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"classes": 0}, refused(InvalidValueError, "classes")),
        ({"classes": True}, refused(InvalidValueError, "classes")),
        ({"channels": 0}, refused(InvalidValueError, "channels")),
        ({"image_size": (32,)}, refused(InvalidValueError, "image_size")),
        ({"image_size": (0, 32)}, refused(InvalidValueError, "image_size")),
        ({"divisor": 0.0}, refused(InvalidValueError, "divisor")),
        ({"mean": (0.5,) * 3}, refused(InvalidValueError, "mean and std")),
        ({"mean": (0.5,), "std": (0.5,)}, refused(InvalidValueError, "mean")),
        ({"mean": (0.5,) * 3, "std": (0.5, 0.0, 0.5)}, refused(InvalidValueError, "std")),
        ({"class_names": ("a",)}, refused(InvalidValueError, "class_names")),
        ({"stages": ("a", "b"), "stage_inputs": ("a",)}, refused(InvalidValueError, "stage_inputs", got=1)),
        ({"stage_inputs": ("a",)}, refused(InvalidValueError, "stage_inputs", got=1)),
        ({"stages": ("fc:output",)}, refused(InvalidValueError, "stages", got="'fc:output'")),
        ({"stages": ("",)}, refused(InvalidValueError, "stages", got="''")),
        ({"stages": ("fc:input",), "stage_inputs": (":input",)}, refused(InvalidValueError, "stages", got="':input'")),
        ({"stages": ("pool", "layer1"), "embedding": "pool"}, refused(InvalidValueError, "embedding", got="'pool'")),
        ({"embedding": "fc:input"}, refused(InvalidValueError, "embedding")),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(fields, refusal):
    with refusal:
        Card(**{"name": "mine", "classes": 10, **fields})


def test_unknown_and_missing_fields_are_named():
    with refused(InvalidValueError, "card", got=["'colour'", "'classes'"]):
        Card.from_json({"name": "mine", "colour": 3})
