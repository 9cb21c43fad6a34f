import json
import sys

import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

from tutelage import records
from tutelage.errors import InvalidTypeError, InvalidValueError, NotFoundError
from tutelage.models import (
    Card,
    Classifier,
    adopt,
    available,
    create,
    fingerprint,
    load,
    names,
    parameters,
    read,
    registry,
    save,
)

CODE = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Sizes:
    width: int = 6

def student(classes=7, channels=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 16, Sizes().width), nn.ReLU(), nn.Linear(6, classes))

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5))

def headless():
    return nn.Flatten()

def needy(classes, depth):
    return nn.Linear(depth, classes)

def number(classes=3):
    return 3

open("ran", "w").close()
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    modules = set(sys.modules)
    (tmp_path / "mine.py").write_text(CODE)
    yield tmp_path / "mine.py"
    for name in set(sys.modules) - modules:
        if name.startswith("tutelage_file_"):
            del sys.modules[name]


class TestSeed:
    @pytest.mark.parametrize("name", ["cifar:resnet8", "mlp:8", "timm:resnet18", "torchvision:mobilenet_v3_small"])
    def test_random_weights_are_a_function_of_the_seed_alone(self, name):
        def make(seed):
            return fingerprint(create(name, classes=4, image_size=(32, 32), seed=seed))

        torch.manual_seed(1)
        first = make(11)
        torch.manual_seed(2)
        assert make(11) == first
        assert make(12) != first

    def test_the_global_generator_stays_where_it_was(self, tmp_path):
        torch.save(create("cifar:resnet8").network.state_dict(), tmp_path / "x.pth")
        torch.manual_seed(3)
        state = torch.get_rng_state()
        create("cifar:resnet8")
        create("cifar:resnet8", classes=5, weights=tmp_path / "x.pth")
        with refused(InvalidValueError, "model"):
            create("cifar:nothing")
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_default_device_is_not_asked(self):
        with torch.device("meta"):
            classifier = create("cifar:resnet8")
        assert {p.device.type for p in classifier.parameters()} == {"cpu"}
        assert fingerprint(classifier) == fingerprint(create("cifar:resnet8"))


class TestNames:
    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("cifar:resnet21", "cifar:resnet20"),
            ("resnet8x4", "cifar:resnet8x4"),
            ("cifer:resnet32", "cifar:resnet32"),
            ("timm:resnet19", "timm:resnet18"),
            ("torchvision:resnet51", "torchvision:resnet50"),
        ],
    )
    def test_an_unknown_name_gets_the_nearest(self, name, nearest):
        with refused(InvalidValueError, "model", got=name, suggests=nearest):
            create(name)

    @pytest.mark.parametrize("name", ["", ":", "hub:org/name", "cifar", "cifar:", "timm:"])
    def test_a_name_like_no_other(self, name):
        with refused(InvalidValueError, "model", got=f"'{name}'"):
            create(name)

    def test_a_folder_that_is_no_run(self, tmp_path):
        with refused(InvalidValueError, "model", got=tmp_path):
            create(str(tmp_path))

    def test_all_that_is_listed_by_its_full_name_can_be_made(self):
        listed = dict(available())
        full = [name for name in listed if name.startswith("cifar:")]
        assert len(full) >= 9
        for name in full:
            assert f"{parameters(create(name)):,} parameters" in listed[name]
        assert all(summary for summary in listed.values())
        assert {"mlp", "timm", "torchvision", "file"} <= {name.partition(":")[0] for name in listed}

    def test_the_committed_list_is_that_of_the_sources(self):
        assert names.LISTED.read_text(encoding="utf-8") == registry.listing_json(), "type make generated"

    def test_names_are_unique(self):
        names = [name for name, _ in available()]
        assert len(names) == len(set(names))

    def test_a_module_is_no_name(self):
        with refused(InvalidTypeError, "model", got="Linear", suggests="tutelage.models.adopt(module)"):
            create(nn.Linear(1, 2))


class TestFolder:
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("cifar:resnet8", {"classes": 10}),
            ("cifar:resnet14", {"classes": 3, "channels": 1, "image_size": (28, 28)}),
            ("mlp:16x8", {"classes": 10, "channels": 1, "image_size": (8, 8)}),
            ("timm:resnet18", {"classes": 6}),
            ("torchvision:mobilenet_v3_small", {"classes": 6}),
        ],
    )
    def test_what_is_saved_comes_back(self, tmp_path, name, options):
        student = create(name, seed=9, **options).eval()
        save(student, tmp_path / "run")
        again = create(str(tmp_path / "run")).eval()
        size = student.card.image_size if student.card.image_size[0] < 64 else (64, 64)
        images = torch.rand(2, student.card.channels, *size)
        assert torch.equal(student(images), again(images))
        assert fingerprint(student) == fingerprint(again)
        assert again.card.weights == "run/student.safetensors"
        assert again.card.to_json() | {"weights": None} == student.card.to_json()

    def test_the_files_are_as_described(self, tmp_path):
        student = create("cifar:resnet8", classes=10)
        assert save(student, tmp_path) == tmp_path / records.STUDENT
        value = json.loads((tmp_path / records.CARD).read_text())
        assert value["name"] == "cifar:resnet8"
        assert Card.from_json(value["card"]) == student.card
        assert read(tmp_path / records.STUDENT).keys() == student.network.state_dict().keys()

    def test_a_channels_last_student_is_saved_and_left_so(self, tmp_path):
        student = create("cifar:resnet8").to(memory_format=torch.channels_last)
        save(student, tmp_path)
        assert not student.network.layer1[0].conv1.weight.is_contiguous()
        assert fingerprint(create(str(tmp_path))) == fingerprint(student)

    def test_a_tagged_name_is_rebuilt_without_its_tags_weights(self, tmp_path):
        local = tmp_path / "x.pth"
        torch.save(create("timm:resnet18").network.state_dict(), local)
        student = create("timm:resnet18.a1_in1k", classes=5, weights=local)
        save(student, tmp_path / "run")
        again = create(str(tmp_path / "run"))
        assert fingerprint(again) == fingerprint(student)
        assert student.card.fresh_head
        assert not again.card.fresh_head

    def test_other_classes_replace_the_head(self, tmp_path):
        save(create("cifar:resnet8", classes=10, seed=4), tmp_path)
        tuned = create(str(tmp_path), classes=3)
        assert tuned.card.fresh_head
        assert tuned(torch.rand(1, 3, 32, 32)).shape == (1, 3)
        assert torch.equal(tuned.network.conv1.weight, create(str(tmp_path)).network.conv1.weight)

    def test_another_checkpoint_of_the_run(self, tmp_path):
        save(create("cifar:resnet8", classes=10, seed=4), tmp_path)
        best = create("cifar:resnet8", classes=10, seed=5)
        torch.save(best.network.state_dict(), tmp_path / "best.pth")
        got = create(str(tmp_path), weights=tmp_path / "best.pth")
        assert fingerprint(got) == fingerprint(best)
        assert got.card.weights == "best.pth"

    def test_a_module_of_the_users_own_is_not_rebuilt(self, tmp_path):
        mine = adopt(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), "mine")
        path = save(mine, tmp_path)
        with refused(InvalidValueError, "model", got="'mine'", suggests="network=module"):
            create(str(tmp_path))
        other = adopt(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), "mine")
        load(other, read(path))
        assert fingerprint(other) == fingerprint(mine)

    def test_a_student_made_by_a_file_needs_trust_again(self, file, tmp_path):
        save(create("file:mine.py:student", classes=4, trust_code=True), tmp_path / "run")
        with refused(InvalidValueError, "model", suggests="--trust-code"):
            create(str(tmp_path / "run"))
        again = create(str(tmp_path / "run"), trust_code=True)
        assert again(torch.rand(2, 3, 4, 4)).shape == (2, 4)

    @pytest.mark.parametrize("name", ["cifar:resnet8", "timm:resnet18"])
    def test_a_card_written_before_there_were_taps_gets_them(self, tmp_path, name):
        student = create(name, classes=4)
        save(student, tmp_path)
        value = json.loads((tmp_path / records.CARD).read_text())
        for field in ("preactivations", "embedding", "head"):
            del value["card"][field]
        (tmp_path / records.CARD).write_text(json.dumps(value))
        again = create(str(tmp_path)).card
        assert again.to_json() | {"weights": None} == student.card.to_json()
        assert again.head == "fc"

    def test_a_card_that_cannot_be_read(self, tmp_path):
        save(create("cifar:resnet8"), tmp_path)
        (tmp_path / records.CARD).write_text('{"card": {"name": "x"}}')
        with refused(InvalidValueError, "model"):
            create(str(tmp_path))


class TestFile:
    def test_without_trust_nothing_runs(self, file):
        with refused(InvalidValueError, "model", suggests=["--trust-code", "trust_code=True"]):
            create("file:mine.py:student", classes=4)
        assert not file.with_name("ran").exists()

    def test_with_trust(self, file):
        classifier = create("file:mine.py:student", classes=4, channels=1, trust_code=True)
        assert classifier.card.mean is None
        assert classifier.card.name == "file:mine.py:student"
        assert classifier.card.source.startswith("mine.py, sha256 ")
        images = torch.rand(2, 1, 4, 4)
        assert torch.equal(classifier(images), classifier.network(images))
        assert classifier(images).shape == (2, 4)

    def test_the_seed_holds_there_too(self, file):
        students = [create("file:mine.py:student", classes=4, seed=s, trust_code=True) for s in (1, 1, 2)]
        assert fingerprint(students[0]) == fingerprint(students[1]) != fingerprint(students[2])

    def test_classes_of_its_own(self, file):
        assert create("file:mine.py:student", trust_code=True).card.classes == 7
        assert create("file:mine.py:fixed", trust_code=True).card.classes == 5
        assert create("file:mine.py:fixed", classes=5, trust_code=True).card.classes == 5
        with refused(InvalidValueError, "classes", got=6, suggests="classes=5"):
            create("file:mine.py:fixed", classes=6, trust_code=True)
        with refused(InvalidValueError, "classes", suggests="classes=10"):
            create("file:mine.py:headless", trust_code=True)

    @pytest.mark.parametrize(
        ("name", "refusal"),
        [
            (
                "file:mine.py",
                refused(InvalidValueError, "model", got="'file:mine.py'", suggests="file:my_models.py:student"),
            ),
            ("file:", refused(InvalidValueError, "model", got="'file:'", suggests="file:my_models.py:student")),
            (
                "file:mine.py:a-b",
                refused(InvalidValueError, "model", got="'file:mine.py:a-b'", suggests="file:my_models.py:student"),
            ),
            ("file:none.py:student", refused(NotFoundError, "model", got="'none.py'")),
            (
                "file:mine.py:other",
                refused(InvalidValueError, "model", got="'other'", suggests="student, fixed, headless"),
            ),
            ("file:mine.py:needy", refused(InvalidValueError, "depth")),
            ("file:mine.py:number", refused(InvalidTypeError, "model", got="int")),
        ],
    )
    def test_what_goes_wrong(self, file, name, refusal):
        with refusal:
            create(name, classes=3, trust_code=True)


class TestAdopt:
    def test_a_module(self):
        module = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        classifier = adopt(module, "mine", image_size=(2, 2))
        assert classifier.network is module
        assert classifier.card == Card(
            name="mine", classes=3, image_size=(2, 2), stages=("1:input",), embedding="1:input", head="1"
        )

    def test_a_classifier_is_returned_as_it_is(self):
        classifier = create("cifar:resnet8")
        assert adopt(classifier, "other") is classifier
        assert isinstance(classifier, Classifier)

    def test_what_cannot_be_adopted(self):
        with refused(InvalidTypeError, "model", got="str"):
            adopt("cifar:resnet8")
        with refused(InvalidValueError, "classes"):
            adopt(nn.Flatten())


def test_a_run_that_is_not_there_is_not_taken_for_a_name():
    with refused(NotFoundError, "model", got="'runs/none'"):
        create("runs/none")


def test_the_case_of_a_name_does_not_hide_the_nearest():
    with refused(InvalidValueError, "model", got="'cifar:resnet50'", suggests="cifar:ResNet50"):
        create("cifar:resnet50")


def test_a_path_with_a_colon_that_is_not_there_is_no_unknown_name(tmp_path):
    """As every absolute path on Windows has one."""
    with pytest.raises(FileNotFoundError):
        create(str(tmp_path / "C:" / "none"))
