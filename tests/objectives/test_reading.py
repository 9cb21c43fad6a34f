"""Functions in files of one's own as objectives: what a file may hold, whose code is run, and when."""

import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import losses, objectives
from tutelage.errors import InvalidTypeError, InvalidValueError, NotFoundError, UserCodeError
from tutelage.objectives import PRESETS, from_recipe
from tutelage.settings.objective import SIGNATURES, read_objective
from tutelage.types import Batch, Outputs

LOSS = """
from tutelage import losses

def ours(student_logits, teacher_logits, *, temperature: float = 2.0):
    return losses.kd(student_logits, teacher_logits, temperature=temperature)
"""
PRESET = """
from tutelage import objectives
from tutelage.objectives import Weight

def ours(*, temperature: float = 2.0, weight: Weight = 1.0):
    return objectives.kd(temperature=temperature, weight=weight, supervised=1)
"""
DECORATED = PRESET.replace("def ours", "@objectives.preset('Us 2026')\ndef ours")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def method(here):
    def write(text, name="method.py"):
        (here / name).write_text(text, encoding="utf-8")
        return f"file:{name}:ours"

    return write


def values(objective):
    z, v = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    return objective.bind()(Outputs(z), Outputs(v), Batch(torch.arange(5), torch.zeros(5, 1), torch.arange(5) % 4))


@pytest.mark.parametrize("text", [LOSS, PRESET, DECORATED], ids=["loss", "preset", "decorated"])
def test_a_file_holds_a_loss_or_a_preset(method, text):
    name = method(text)
    before = set(PRESETS)
    objective = from_recipe(
        {name: {"temperature": 3, "weight": {"schedule": "linear", "start": 0, "end": 2}}, "scale": 2}, trust_code=True
    )
    assert objective.name == name
    (written,) = objective.to_recipe()
    assert written[name] == {
        "temperature": 3,
        "weight": {"schedule": "linear", "start": 0, "end": 2, "begin": 0, "until": 1},
    }
    assert written["scale"] == 2
    assert len(written["sha256"]) == 16
    assert from_recipe([written]) == objective
    plain = from_recipe(name)
    expected = objectives.kd(temperature=2.0, weight=1.0, supervised=1.0)
    assert torch.equal(values(plain).total, values(expected).total)
    assert set(PRESETS) == before | {name}  # and not by the function's name alone


def test_a_source_is_told_as_that_of_a_model_is(method):
    from tutelage.objectives.registry import papers

    assert papers(from_recipe(method(DECORATED), trust_code=True)) == ["Us 2026"]
    (line,) = papers(from_recipe(method(LOSS), trust_code=True))
    assert line.startswith("method.py, sha256 ")


def test_a_loss_of_labels_takes_the_place_of_the_cross_entropy(method):
    name = method(
        "def ours(student_logits, labels):\n"
        "    return (student_logits.argmax(-1) != labels) + 0 * student_logits.sum(-1)\n"
    )
    assert from_recipe(name, trust_code=True).weights() == {"ours": 1.0}
    assert from_recipe({name: {"supervised": 1}}).weights() == {"ce": 1.0, "ours": 1.0}
    alone = method("def ours(student_logits):\n    return student_logits.square().mean(-1)\n", "penalty.py")
    assert from_recipe(alone, trust_code=True).weights() == {"ce": 1.0, "ours": 1.0}


@pytest.mark.parametrize(
    "text",
    [
        "from functools import partial\nours = partial(losses.kd, temperature=2.0)\n",
        "class Kd:\n    def __call__(self, student_logits, teacher_logits):\n"
        "        return losses.kd(student_logits, teacher_logits, temperature=2.0)\n\nours = Kd()\n",
        "ours = lambda student_logits, teacher_logits: losses.kd(student_logits, teacher_logits, temperature=2.0)\n",
    ],
    ids=["partial", "instance", "lambda"],
)
def test_a_loss_need_not_be_written_with_def(method, text):
    made = from_recipe(method(f"from tutelage import losses\n{text}"), trust_code=True)
    assert made.weights() == {"ce": 1.0, "ours": 1.0}
    assert torch.equal(values(made).total, values(from_recipe(method(LOSS, "other.py"), trust_code=True)).total)


def test_a_preset_that_a_file_imports_is_that_of_the_file(method):
    name = method("from tutelage.objectives import kd as ours\n")
    (written,) = from_recipe({name: {"temperature": 3}}, trust_code=True).to_recipe()
    assert written[name] == {"temperature": 3}
    assert not objectives.is_built_in(name)


def test_a_loss_of_maps_is_tried_on_other_features_in_vain(method):
    name = method(
        "from tutelage import objectives\n"
        "from tutelage.objectives import Apply, Objective, WeightedTerm\n\n"
        "def loss(student_features, teacher_features):\n"
        "    return (student_features - teacher_features).square().mean((1, 2, 3))\n\n"
        "def ours(*, weight=1.0):\n"
        "    match = Apply(loss, student_tap='layer1', teacher_tap='layer1')\n"
        "    return objectives.cross_entropy() + Objective.of(WeightedTerm('maps', weight, match))\n"
    )
    assert set(from_recipe(name, trust_code=True).weights()) == {"ce", "maps"}


def test_it_adds_to_presets_of_the_package(method):
    both = from_recipe([{method(LOSS): {"supervised": 0}}, "itrd"], trust_code=True)
    assert set(both.weights()) >= {"ours"}


def test_reading_runs_nothing_and_reads_the_file_for_its_digest(method):
    name = method("raise SystemExit('it ran')")
    (call,) = read_objective({name: {"anything": [1, {"a": 2}]}}, SIGNATURES).presets
    assert call.arguments == {"anything": [1, {"a": 2}]}
    assert len(call.sha256) == 16
    assert read_objective("file:gone.py:ours", SIGNATURES).presets[0].sha256 is None


@pytest.mark.parametrize("trust", [False, None, frozenset(), frozenset({"file:other.py:ours"})])
def test_code_is_run_with_consent_alone(method, trust):
    name = method("raise SystemExit('it ran')")
    with refused(InvalidValueError, "objective", suggests="--trust-code"):
        from_recipe(name, trust_code=trust)


def test_a_name_is_consent_to_that_function(method):
    name = method(LOSS)
    assert from_recipe(name, trust_code=frozenset({name})).name == name
    assert from_recipe(name).name == name  # it has been run
    with refused(InvalidValueError, "objective", suggests="--trust-code"):
        from_recipe(name, trust_code=False)


def test_a_changed_file_is_read_anew_and_is_no_longer_what_a_recipe_knew(method, here):
    name = method(LOSS)
    known = from_recipe(name, trust_code=True)
    method(LOSS.replace("2.0", "5.0"))
    with refused(InvalidValueError, "objective", suggests="--trust-code"):
        from_recipe(name)  # other code, to which nobody consented
    changed = from_recipe(name, trust_code=True)
    assert changed != known
    assert from_recipe(known.to_recipe()) == known  # this process still has it: a run in it goes on
    from tutelage.objectives import reading

    reading._OWN.clear()
    with refused(InvalidValueError, f"objective {name}", suggests="sha256"):
        from_recipe(known.to_recipe(), trust_code=True)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("ours = 3\n", refused(InvalidValueError, "objective", got="ours")),
        (
            "def ours(*, weight=1.0):\n    return 'kd'\n",
            refused(InvalidValueError, "objective.file:method.py:ours", got="str"),
        ),
        (
            "def ours(*, weight=1.0):\n    raise KeyError('x')\n",
            refused(UserCodeError, "file:method.py:ours", got="KeyError"),
        ),
        ("raise SystemExit(0)\n", refused(UserCodeError, "file:method.py", got="SystemExit")),
        ("import beside\n", refused(UserCodeError, "file:method.py", got="beside", suggests="PYTHONPATH=.")),
        (
            "def ours(*, weight=1.0):\n    raise SystemExit(0)\n",
            refused(UserCodeError, "file:method.py:ours", got="SystemExit"),
        ),
        (
            "def ours(student, teacher):\n    return student - teacher\n",
            refused(InvalidValueError, "objective.file:method.py:ours", got="student", suggests="rename"),
        ),
        (
            "def ours(student_logits, *, width: 'Gone' = 1.0):\n    return student_logits\n",
            refused(UserCodeError, "file:method.py:ours", got="NameError"),
        ),
        ("from torch import add as ours\n", refused(UserCodeError, "file:method.py:ours", got="ValueError")),
        (
            "def ours(student_logits):\n    yield student_logits\n",
            refused(InvalidValueError, "objective.file:method.py:ours: term ours", got="generator"),
        ),
        (
            "def ours(student_logits):\n    return student_logits.mean()\n",
            refused(InvalidValueError, "objective.file:method.py:ours: term ours", got="()"),
        ),
        ("def ours(:\n", refused(UserCodeError, "file:method.py", got="SyntaxError")),
        ("def ours(student_logits, other):\n    return other\n", refused(InvalidTypeError, "loss", got="other")),
        ("def ours(student_logits, **rest):\n    return student_logits.mean(-1)\n", None),
        ("def ours(**rest):\n    return None\n", refused(InvalidTypeError, "file:method.py:ours", got="**rest")),
        (
            "def ours(student_features):\n    return student_features.mean(-1)\n",
            refused(InvalidTypeError, "student_tap", suggests="student_tap"),
        ),
    ],
)
def test_what_is_refused(method, here, text, refusal):
    (here / "beside.py").touch()
    name = method(text)
    if refusal is None:
        assert from_recipe(name, trust_code=True).name == name
        return
    with refusal:
        from_recipe(name, trust_code=True)


def test_a_file_that_is_not_there(here):
    with refused(NotFoundError, "objective", got="gone.py"):
        from_recipe("file:gone.py:ours", trust_code=True)
    with refused(InvalidValueError, "objective", got="file:gone.py", suggests="file:my_method.py:my_loss"):
        from_recipe("file:gone.py", trust_code=True)


def test_the_losses_of_a_file_are_the_users_own_code(method):
    bound = from_recipe(method(LOSS), trust_code=True).bind()
    assert bound.terms["ours"].user_code == "loss ours"
    assert losses.kd(*torch.zeros(2, 1, 3), temperature=2.0) == 0
