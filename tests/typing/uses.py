"""What a user types, for the type checkers: nothing here is called. A line with an ignore must be an error of both.

pyright reports an ignore that silences nothing (reportUnnecessaryTypeIgnoreComment), and so does mypy.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, assert_type

from torch import Tensor, nn

import tutelage
from tutelage import objectives, records
from tutelage.models.predict import Prediction
from tutelage.objectives import Apply, Objective, WeightedTerm, preset
from tutelage.report.results import Result
from tutelage.runs.run import Run
from tutelage.studies.compare import ComparedRuns
from tutelage.tuning.search import Search
from tutelage.types import Loss


def calls(student: nn.Module, teacher: nn.Module, data: tuple[Any, Any]) -> None:
    run = tutelage.distill(
        student=student,
        teacher=teacher,
        data=data,
        objective=tutelage.objectives.wttm(gamma=0.25, beta=1) + 0.5 * objectives.kd(),
        epochs=5,
        batch_size=128,
        optimizer={"name": "adamw", "lr": 1e-3},
        schedule="cosine",
        clip=None,
        precision="bf16",
        graphs=False,
        stages=[{"epochs": 1}],
    )
    assert_type(run, Run)
    assert_type(run.accuracy, float | None)
    assert_type(run.evaluation["student"]["accuracy"], float | None)
    assert_type(tutelage.train(model="cifar:resnet8", data="digits", seed=1, objective=["kd", {"ttm": None}]), Run)
    tutelage.train(model="mlp:8", data="digits", display=None)
    tutelage.evaluate(run, display=tutelage.Reporter())
    run.student.predict(["rose.jpg"])
    compared = tutelage.compare(
        student="mlp:8",
        teacher={"train": {"model": "mlp:16"}},
        data={"source": "digits", "labelled": 5},
        objectives={"kd": "kd", "wttm": objectives.wttm(beta=3.0), "both": [{"kd": {"temperature": 2}}]},
        seeds=3,
        epochs=2,
    )
    assert_type(compared, ComparedRuns)
    assert_type(compared.runs["kd"][0], Run)
    assert_type(compared.results, list[Result])
    ranges = {"optimizer.lr": "1e-3..1,log", "batch_size": [32, 64]}
    search = tutelage.tune(
        student="mlp:8", teacher="a", data="digits", objective="kd", trials=9, search=ranges, epochs=2
    )
    assert_type(search, Search)
    assert_type(search.best, Run)
    assert_type(search.recipe_line, str)
    assert_type(tutelage.evaluate(run, data="digits", best=True, device="cpu"), records.Judgement)
    assert_type(tutelage.evaluate(run)["accuracy"], float | None)
    assert_type(tutelage.predict(Path("runs/student"), "rose.jpg")[0], Prediction)
    assert_type(tutelage.predict(run, ["rose.jpg"])[0].name, str | None)


def misspelt_settings() -> None:
    tutelage.distill(student="a", teacher=None, data="digits", objective="kd", epoch=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tutelage.train(model="a", data="digits", learning_rate=0.1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tutelage.compare(student="a", teacher=None, data="digits", objectives={}, seed=0, sedes=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tutelage.tune(student="a", teacher=None, data="digits", objective="kd", trial=9)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tutelage.evaluate("runs/student", epochs=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def wrong_settings() -> None:
    tutelage.train(model="a", data="digits", epochs="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tutelage.train(model="a", data="digits", precision="fp8")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tutelage.train(model="a", data="digits", optimizer="adam")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tutelage.train(model="a", data="digits", display="bar")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tutelage.train(model=3, data="digits")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tutelage.train(model="a", data=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def arguments() -> None:
    assert_type(objectives.kd(temperature=4, weight=0.9), Objective)
    objectives.kd(weight=objectives.Linear(0.0, 1.0), supervised={"schedule": "linear", "start": 1, "end": 0})
    objectives.ttm(gamma="auto", beta="auto")
    objectives.ttm(beta=objectives.AUTO)
    objectives.transformed_matching(gamma="auto", transform="logarithm")
    objectives.attention_transfer(student_taps="layer1", teacher_taps=["layer1"])


def misspelt_arguments() -> None:
    objectives.wttm(gama=0.1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    objectives.wttm(0.1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    objectives.dkd(temperature="auto")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    objectives.nkd(weight="auto")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    objectives.renyi_penalty(weight=0.1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    objectives.attention_transfer(student_taps=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def misspelt_names() -> None:
    tutelage.distil  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018
    tutelage.data.open_dat  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018
    tutelage.models.creat  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018
    tutelage.kernels.lineal  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018
    tutelage.objectives.wtm  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018


def modules(z: Tensor, v: Tensor, labels: Tensor) -> None:
    assert_type(tutelage.losses.wttm(z, v, gamma=0.1), Tensor)
    assert_type(tutelage.targets.shannon_entropy(z), Tensor)
    tutelage.losses.wttm(z, v, gama=0.1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert_type(tutelage.kernels.linear(partial(tutelage.losses.wttm, gamma=0.1), z, z, v, v, labels, weight=1), Loss)
    tutelage.kernels.linear(partial(tutelage.losses.kd, temperature=4.0), z, z, v, v, labels, weigth=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert_type(tutelage.taps.find(nn.Linear(2, 2), "")[0], nn.Module)
    tutelage.data.from_datasets([], [], classes=10)
    try:
        tutelage.load("runs/student").predict("rose.jpg")
    except tutelage.errors.RunError as error:
        assert_type(error.what, str)
    except tutelage.TutelageError as error:
        assert_type(error.instead, str)


def of_ones_own() -> None:
    @preset("mine")
    def mine(*, weight: objectives.Weight = 1.0, temperature: float = 4.0) -> Objective:
        term = Apply(tutelage.losses.kd, {"temperature": temperature})
        return Objective.of(WeightedTerm("mine", weight, term))

    mine(weight=0.5, temperature=2)
    mine(wait=0.5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
