import json

import pytest

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
    ("fields", "says"),
    [
        ({"classes": 0}, "classes: expected"),
        ({"classes": True}, "classes: expected"),
        ({"channels": 0}, "channels: expected"),
        ({"image_size": (32,)}, "image_size: expected"),
        ({"image_size": (0, 32)}, "image_size: expected"),
        ({"divisor": 0.0}, "divisor: expected"),
        ({"mean": (0.5,) * 3}, "both or neither"),
        ({"mean": (0.5,), "std": (0.5,)}, "mean: expected 3 values"),
        ({"mean": (0.5,) * 3, "std": (0.5, 0.0, 0.5)}, "std: expected values above 0"),
        ({"class_names": ("a",)}, "class_names: expected 10"),
        ({"stages": ("a", "b"), "stage_inputs": ("a",)}, "stage_inputs: expected 2 taps, as many as stages, got 1"),
        ({"stage_inputs": ("a",)}, "stage_inputs: expected 0 taps"),
        ({"stages": ("fc:output",)}, "stages: expected taps such as layer3 or fc:input, got 'fc:output'"),
        ({"stages": ("",)}, "stages: expected taps"),
        ({"stages": ("fc:input",), "stage_inputs": (":input",)}, "stages: expected taps.*got ':input'"),
        ({"stages": ("pool", "layer1"), "embedding": "pool"}, "embedding: expected the last of the stages, got 'pool'"),
        ({"embedding": "fc:input"}, "embedding: expected the last of the stages"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        Card(**{"name": "mine", "classes": 10, **fields})


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(ValueError, match=r"unknown \['colour'\] and missing \['classes'\]"):
        Card.from_json({"name": "mine", "colour": 3})
