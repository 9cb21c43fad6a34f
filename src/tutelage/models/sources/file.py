"""The source ``file:path.py:function``: a network that the user's code makes. It runs that code."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import nn

from tutelage import user_code
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.models import names, structure
from tutelage.models.card import Card
from tutelage.models.spec import ModelRequest, ModelSpec

PREFIX = "file"
LISTED = [("file:PATH.py:FUNCTION", "a function of your own that returns a module; runs code, so needs --trust-code")]


def plan(path: str, request: ModelRequest) -> ModelSpec:
    """Find a function in a file.

    The function is called with those of the keywords ``classes=``, ``channels=`` and ``image_size=`` that it takes, and
    returns the network; if no classes are given, its last linear layer determines them. Its inputs are not normalised:
    they reach it unchanged, in [0, 1]. The path is relative to the working folder.

    Raises:
        ValueError: if the code is not trusted, the name cannot be read, or the file has no such function.
        FileNotFoundError: if there is no such file.
        TypeError: if the function returns no module.
    """
    name = f"{PREFIX}:{path}"
    file, function = names.user_function(path, trust_code=request.trust_code)
    build = _Builder(file, function, request, name)
    classes = request.classes
    if classes is None or not build.takes("classes"):
        actual = structure.head_classes(build(classes=classes))
        classes = actual if classes is None else classes
        if classes is None:
            raise InvalidValueError(
                "classes", f"a number for {name}", "none", f"type tutelage.models.create({name!r}, classes=10)"
            )
        if actual is not None and "classes" in request.as_trained:
            classes = actual
        if actual not in (None, classes):
            expected = f"{actual}, as {name} makes them and takes no classes="
            instead = f"give the function a parameter classes, or type classes={actual}"
            raise InvalidValueError("classes", expected, classes, instead)
    source = f"{file.name}, sha256 {user_code.digest(file)}"
    card = Card(name=name, classes=classes, channels=request.channels, image_size=request.image_size, source=source)
    return ModelSpec(card=card, build=build)


class _Builder:
    """Calls the function with the keywords that it takes."""

    def __init__(self, file: Path, function: str, request: ModelRequest, name: str) -> None:
        self.function = user_code.function_of(user_code.execute(file, "model"), function, file, "model")
        self.name = self.user_code = name
        self.request = request
        self.parameters = inspect.signature(self.function).parameters

    def takes(self, keyword: str) -> bool:
        every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in self.parameters.values())
        return every or keyword in self.parameters

    def __call__(self, *, classes: int | None) -> nn.Module:
        values = {"channels": self.request.channels, "image_size": self.request.image_size, "classes": classes}
        keywords: dict[str, Any] = {k: v for k, v in values.items() if v is not None and self.takes(k)}
        variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        for keyword, parameter in self.parameters.items():
            if parameter.default is parameter.empty and parameter.kind not in variable and keyword not in keywords:
                instead = f"give the parameter a default, or the model {keyword}="
                raise InvalidValueError(keyword, f"a value, which {self.name} requires", "none", instead)
        network = self.function(**keywords)
        if not isinstance(network, nn.Module):
            raise InvalidTypeError(
                "model", f"{self.name} to return a torch.nn.Module", type(network).__name__, "return the network itself"
            )
        return network
