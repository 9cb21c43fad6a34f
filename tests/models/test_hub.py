"""Folders that are handed on: every kind of network comes back to the bit, from a folder and from a server."""

import ast
import copy
import json
import re
import time

import pytest
import torch
from tests._helpers.hub_server import hub
from tests._helpers.refusals import refused
from tests.test_architecture import files
from torch import nn

from tutelage import models, records
from tutelage.errors import InvalidTypeError, InvalidValueError, NetworkError, NotFoundError
from tutelage.models import Card, Classifier

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def named(name, classes=4, **keys):
    made = models.create(name, classes=classes, seed=3, **keys)
    made.card = models.registry.dataclasses.replace(made.card, class_names=tuple("abcdefgh"[:classes]))
    return made.eval()


def of_pixels():
    network = nn.Conv2d(3, 2, 1)
    return Classifier(network, Card(name="object:Conv2d", classes=2, image_size=(16, 16), task="pixels")).eval()


def mapped(name="mlp:8"):
    """A classifier whose classes are some of its network's outputs, in another order."""
    whole = named(name, classes=6, image_size=(16, 16))
    card = models.registry.dataclasses.replace(whole.card, classes=2, class_names=("d", "b"))
    return Classifier(whole.network, card, outputs=[3, 1]).eval()


KINDS = {
    "cifar": lambda: named("cifar:resnet8"),
    "statistics": lambda: named("mlp:8", image_size=(16, 16), mean=None),
    "float64": lambda: named("mlp:8", image_size=(16, 16)).double(),
    "labels": lambda: named("mlp:8", image_size=(16, 16), task="labels"),
    "outputs": mapped,
}


def same_answers(first, second, inputs=IMAGES):
    with torch.no_grad():
        expected, got = first(inputs), second(inputs)
    return expected.dtype == got.dtype and torch.equal(expected, got)


def same_card(first, second):
    ours, theirs = (each.card.to_json() | {"weights": None, "fresh_head": None} for each in (first, second))
    return ours == theirs


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_comes_back_to_the_bit(kind, tmp_path):
    saved = KINDS[kind]()
    before = models.fingerprint(saved)
    assert saved.save_pretrained(tmp_path / "x") is None
    again = Classifier.from_pretrained(tmp_path / "x")
    assert models.fingerprint(again) == before == models.fingerprint(saved)
    assert same_answers(saved, again)
    assert same_card(saved, again)
    assert not again.training
    written = {path.name for path in (tmp_path / "x").iterdir()}
    assert written == {records.STUDENT, records.CARD, records.README}


def test_chosen_outputs_come_back_by_a_name_too_and_are_replaced_by_a_new_head(tmp_path):
    saved = mapped()
    saved.save_pretrained(tmp_path)
    assert same_answers(saved, models.create(str(tmp_path), classes=2).eval())
    assert same_answers(saved, models.create(str(tmp_path), classes=9, as_trained=("classes",)).eval())
    fresh = models.create(str(tmp_path), classes=5)
    assert (fresh.outputs, fresh(IMAGES).shape, fresh.card.fresh_head) == (None, (3, 5), True)


def test_a_module_of_ones_own_comes_back_where_it_is_handed_in(tmp_path):
    saved = of_pixels()
    saved.save_pretrained(tmp_path)
    again = models.from_pretrained(tmp_path, network=nn.Conv2d(3, 2, 1))
    assert same_answers(saved, again)
    assert same_card(saved, again)
    with refused(InvalidValueError, "network", suggests="network=module"):
        models.from_pretrained(tmp_path)
    with refused(InvalidValueError, "model", suggests="tutelage.load"):
        models.create(str(tmp_path))
    with refused(InvalidValueError, "weights"):
        models.from_pretrained(tmp_path, network=nn.Conv2d(3, 5, 1))
    with refused(InvalidTypeError, "network", got="type"):
        models.from_pretrained(tmp_path, network=nn.Conv2d)


def test_a_file_of_ones_own_is_trusted_or_its_network_handed_in(tmp_path, monkeypatch):
    path = tmp_path / "own.py"
    path.write_text(
        "from torch import nn\ndef net(classes): return nn.Sequential(nn.Flatten(), nn.Linear(768, classes))\n"
    )
    saved = models.create(f"file:{path}:net", classes=4, image_size=(16, 16), trust_code=True).eval()
    saved.save_pretrained(tmp_path / "x")
    assert str(tmp_path) not in (tmp_path / "x" / records.CARD).read_text() + card_text(tmp_path / "x")
    with refused(InvalidValueError, "model", suggests="trust_code=True"):
        models.from_pretrained(tmp_path / "x")
    with refused(NotFoundError, "model", suggests="network=module"):
        models.from_pretrained(tmp_path / "x", trust_code=True)
    alike = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    assert same_answers(saved, models.from_pretrained(tmp_path / "x", network=alike))
    monkeypatch.chdir(tmp_path)
    assert same_answers(saved, models.from_pretrained(tmp_path / "x", trust_code=True))


def card_text(folder):
    return (folder / records.README).read_text()


def test_a_network_that_is_frozen_in_part_is_written_whole(tmp_path):
    saved = named("cifar:resnet8")
    saved.named_seed = 3
    saved.train_head_alone()
    saved.eval()
    saved.save_pretrained(tmp_path)
    assert models.read(tmp_path / records.STUDENT).keys() == saved.network.state_dict().keys()
    assert same_answers(saved, models.from_pretrained(tmp_path))
    assert not any(p.requires_grad for n, p in saved.network.named_parameters() if not n.startswith("fc."))


def test_what_is_no_single_network_or_no_folder_of_its_own_is_refused(tmp_path):
    pair = models.ensemble(named("mlp:8", image_size=(16, 16)), named("mlp:4", image_size=(16, 16)))
    with refused(InvalidValueError, "model", got="several", suggests="model.members"):
        pair.save_pretrained(tmp_path / "x")
    with refused(InvalidValueError, "model", got="several"):
        pair.push_to_hub("me/pair")
    (tmp_path / records.MANIFEST).write_text("{}")
    with refused(InvalidValueError, "save_directory", got="a run's"):
        named("cifar:resnet8").save_pretrained(tmp_path)
    (tmp_path / "file").write_text("")
    with refused(InvalidValueError):
        named("cifar:resnet8").save_pretrained(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", records.MANIFEST]


@pytest.mark.parametrize("name", ["nowhere/at/all", "/nowhere", "no such", "", "..", 3])
def test_what_is_no_name_and_no_folder_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((NotFoundError, InvalidValueError, InvalidTypeError), match="model: expected"):
        models.from_pretrained(name)


def test_a_name_is_for_a_network_of_the_name(tmp_path):
    named("cifar:resnet8").save_pretrained(tmp_path)
    with refused(InvalidValueError, "network", suggests="leave network out"):
        models.from_pretrained(tmp_path, network=nn.Linear(3, 3))


def test_the_hub_keeps_and_gives_back(tmp_path, monkeypatch):
    saved = named("cifar:resnet8")
    with hub(monkeypatch, tmp_path / "cache") as server:
        url = saved.push_to_hub("me/small", model_card_kwargs={"license": "apache-2.0"})
        assert url.startswith(f"{server.url}/me/small/commit/")
        repository = server.repositories["me/small"]
        assert repository.keys() == {records.STUDENT, records.CARD, records.README}
        readme = repository[records.README].decode()
        assert 'from_pretrained("me/small")' in readme
        assert "license: apache-2.0" in readme
        again = Classifier.from_pretrained("me/small")
        assert same_answers(saved, again)
        assert same_card(saved, again)
        server.repositories["me/foreign"] = {"config.json": b"{}", "model.safetensors": b"0" * 1000}
        server.refused |= {"me/gated": (403, "GatedRepo"), "me/denied": (403, "Forbidden")}
        before = time.monotonic()
        with refused(NotFoundError, "model", got="me/nothing", suggests="check the name"):
            models.from_pretrained("me/nothing")
        with refused(NotFoundError, "model", suggests="revision"):
            models.from_pretrained("me/small", revision="v9")
        with refused(InvalidValueError, "model", got="me/foreign", suggests="hf:me/foreign"):
            models.from_pretrained("me/foreign")
        assert not any("model.safetensors" in path for path in server.asked)
        with refused(NotFoundError, "model", got="a gated repository", suggests="log in"):
            models.from_pretrained("me/gated")
        with refused(NetworkError, "repo_id", suggests="log in"):
            saved.push_to_hub("me/denied")
        with refused(NotFoundError, "repo_id"):
            saved.push_to_hub("me/a/b")
        with refused(NetworkError, "model", suggests="connect"):
            models.from_pretrained("me/other", local_files_only=True)
        again.save_pretrained(tmp_path / "kept")
        kept = models.from_pretrained(tmp_path / "kept")
        kept.save_pretrained(tmp_path / "again", push_to_hub=True, repo_id="me/again")
        assert server.repositories["me/again"].keys() == repository.keys()
        saved.save_pretrained(tmp_path / "first")
        models.from_pretrained(tmp_path / "first").push_to_hub("me/second")
        assert b'from_pretrained("me/second")' in server.repositories["me/second"][records.README]
        with refused(InvalidTypeError, "save_pretrained", got="licence"):
            kept.save_pretrained(tmp_path / "typo", licence="mit")
        count = len(server.asked)
        assert same_answers(saved, models.from_pretrained("me/small", local_files_only=True))
        assert len(server.asked) == count
        assert time.monotonic() - before < 5
    with refused(NetworkError, "repo_id", suggests="connect"):
        saved.push_to_hub("me/away")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with refused(NetworkError, "model", got="HF_HUB_OFFLINE", suggests="unset it"):
        models.from_pretrained("me/never")
    with refused(NetworkError, "repo_id"):
        saved.push_to_hub("me/never")


def test_what_came_from_elsewhere_keeps_its_card_until_it_is_trained_on(tmp_path):
    named("cifar:resnet8").save_pretrained(tmp_path / "x", model_card_kwargs={"language": ["en"]})
    again = models.from_pretrained(tmp_path / "x")
    again.save_pretrained(tmp_path / "y")
    assert card_text(tmp_path / "y") == card_text(tmp_path / "x")
    again.save_pretrained(tmp_path / "mit", model_card_kwargs={"license": "mit"})
    assert card_text(tmp_path / "mit") == card_text(tmp_path / "x").replace("license: unknown", "license: mit")
    with torch.no_grad():
        next(again.network.parameters()).add_(1)
    again.save_pretrained(tmp_path / "z")
    assert "language" not in card_text(tmp_path / "z")


def test_a_classifier_is_copied_and_counted_as_before(tmp_path):
    named("cifar:resnet8").save_pretrained(tmp_path)
    again = models.from_pretrained(tmp_path)
    assert again.state_dict().keys() == named("cifar:resnet8").state_dict().keys()
    assert same_answers(copy.deepcopy(again), again)


def test_the_hubs_library_is_imported_where_it_is_used_alone():
    importing = {
        path.stem
        for path in files("models")
        if re.search(r"^(    )?(from|import) huggingface_hub", path.read_text(), re.M)
    }
    assert importing == {"published", "readme"}
    for name in ("classifier", "registry", "io"):
        path = next(path for path in files("models") if path.stem == name)
        lines = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        assert not {f"tutelage.models.{name}" for name in ("hub", "published", "readme")} & lines


def test_the_sources_of_names_are_those_that_are_registered():
    assert set(models.names.SOURCES) == set(models.registry._SOURCES)


def test_a_card_of_chosen_outputs_that_is_damaged_is_refused(tmp_path):
    mapped().save_pretrained(tmp_path)
    described = json.loads((tmp_path / records.CARD).read_text())
    (tmp_path / records.CARD).write_text(json.dumps(described | {"outputs": {"chosen": "all"}}))
    with pytest.raises(InvalidValueError, match="outputs"):
        models.from_pretrained(tmp_path)
