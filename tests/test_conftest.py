"""What pytest is told for all tests: the devices that they see, which warnings are errors, and how errors are told."""

import os
import warnings

import pytest
from tests._helpers.refusals import refused

from tutelage.errors import InvalidTypeError, InvalidValueError, RecipeError


def test_a_test_sees_no_gpu():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("category", "module"),
    [
        (DeprecationWarning, "torch.jit._script"),
        (FutureWarning, "timm.layers"),
        (PendingDeprecationWarning, "sys"),
        (RuntimeWarning, "torch._dynamo.guards"),
    ],
)
def test_what_a_dependency_says_of_itself_is_no_error(category, module):
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn_explicit("an old form", category, "file.py", 1, module=module)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("category", "module"),
    [
        (DeprecationWarning, "tutelage.losses.logits"),
        (DeprecationWarning, "tests.losses.test_logits"),
        (FutureWarning, "__main__"),
        (PendingDeprecationWarning, "<string>"),
        (UserWarning, "torch.nn.modules.loss"),  # Of what it was called with.
        (RuntimeWarning, "numpy"),
    ],
)
def test_what_is_said_of_a_line_of_ours_is_an_error(category, module):
    with pytest.raises(category, match="an old form"):
        warnings.warn_explicit("an old form", category, "file.py", 1, module=module)


@pytest.mark.parametrize(
    "refusal",
    [
        refused(InvalidTypeError, "gamma"),
        refused(InvalidValueError, "gamma"),  # A class that it is derived from.
        refused(RecipeError, "gam"),
        refused(RecipeError, ["gamma", "beta"]),
        refused(RecipeError, "gamma", got=1),
        refused(RecipeError, "gamma", got=[-1, 3]),
        refused(RecipeError, "gamma", suggests="beta=0.3"),
    ],
)
def test_another_error_than_was_named_fails(refusal):
    error = RecipeError("gamma", "a number > 0", -1, "type gamma=0.3")
    with refused(RecipeError, "gamma", got=-1, suggests="gamma=0.3"):
        raise error
    with pytest.raises((AssertionError, RecipeError)), refusal:
        raise error


def test_no_error_fails():
    with pytest.raises(pytest.fail.Exception), refused(RecipeError):
        pass
