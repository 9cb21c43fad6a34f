"""The pictures of explained.md: their numbers, by the library's own losses and targets in float64, and their figures.

A picture has a slider. At each of its positions there are the figures, which differ in nothing but their points, and a
sentence that says their numbers. All are of recorded logits of real teachers, by docs/picture_logits.py.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from plotly.graph_objects import Figure
from torch import Tensor

from tutelage import losses, targets
from tutelage.report import figures

LOGITS = Path(__file__).parents[1] / "picture_logits.json"
SAMPLE = 32
"""Among the images of digits: a five that the teacher takes for a nine with a probability of a quarter."""
GAMMAS = [round(1 - 0.05 * step, 2) for step in range(20)]
TEMPERATURES = [1 + 0.25 * step for step in range(37)]
SHARPNESS = [round(0.05 * step, 2) for step in range(41)]
TEMPERATURE = 4.0
"""Of the identity's picture."""
BLUE, RED, GREEN, PINK = (figures.style(index) for index in range(4))


@dataclass(frozen=True)
class Position:
    """What is seen at one position of the slider."""

    value: str
    reading: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Picture:
    """A row of figures with a slider."""

    title: str
    slider: str  # what it moves
    positions: list[Position]
    start: int


# Numbers


@functools.cache
def teacher(name: str) -> Tensor:
    """Return a recorded teacher's logits, ``(images, classes)``."""
    return torch.tensor(json.loads(LOGITS.read_text(encoding="utf-8"))[name]["logits"], dtype=torch.float64)


def sample() -> Tensor:
    """Return the logits of the one image, ``(1, classes)``."""
    return teacher("digits")[SAMPLE : SAMPLE + 1]


def power(gamma: float) -> tuple[Tensor, Tensor]:
    """Return the one image's transformed distribution, ``(classes,)``, and its power sum."""
    log_p = sample().log_softmax(-1)
    return targets.power(log_p, gamma=gamma).exp()[0], targets.power_sum(log_p, gamma=gamma)[0]


def surest() -> Tensor:
    """Return the logits of the image whose teacher is surest, ``(1, classes)``."""
    v = teacher("digits")
    return v[targets.shannon_entropy(v.log_softmax(-1)).argmin()][None]


def matching(temperature: float, sharpness: Sequence[float]) -> dict[str, Tensor]:
    """Return both matching terms, KD's at TTM's scale, the entropy's part and their slopes, each ``(sharpness,)``.

    The student has the teacher's logits, multiplied by its sharpness; slopes are derivatives by that factor.
    """
    gamma, s = 1 / temperature, torch.tensor(sharpness, dtype=torch.float64, requires_grad=True)
    z, v = s[:, None] * sample(), sample().expand(len(sharpness), -1)
    parts = {
        "kd": losses.kd(z, v, temperature=temperature) / temperature,
        "ttm": losses.ttm(z, v, gamma=gamma),
        "renyi": (1 - temperature) * targets.renyi_entropy(z.log_softmax(-1), order=gamma),
    }
    slopes = {f"{name} slope": torch.autograd.grad(part.sum(), s, retain_graph=True)[0] for name, part in parts.items()}
    return {name: part.detach() for name, part in parts.items()} | slopes


def identity(sharpness: Sequence[float]) -> dict[str, Tensor]:
    """Return the three parts of TTM's matching term, and the term, each ``(sharpness,)``."""
    found = matching(TEMPERATURE, sharpness)
    constant = (TEMPERATURE - 1) * targets.shannon_entropy((sample() / TEMPERATURE).log_softmax(-1))
    return {
        "kd": found["kd"],
        "constant": constant.expand(len(sharpness)),
        "renyi": found["renyi"],
        "ttm": found["ttm"],
    }


def weights(name: str, gamma: float) -> Tensor:
    """Return the power sums of a teacher's images, from the surest image (by Shannon entropy) to the least sure."""
    log_p = teacher(name).log_softmax(-1)
    return targets.power_sum(log_p, gamma=gamma)[targets.shannon_entropy(log_p).argsort()]


# Drawing


def panel(title: str, across: str, up: str, x: tuple[float, float], y: tuple[float, float]) -> Figure:
    figure = figures.empty(title, across, up)
    figure.update_layout(height=330, xaxis_range=x, yaxis_range=y)
    return figure


def line(figure: Figure, x: Sequence[float], y: Tensor, name: str, look: figures.Style) -> None:
    figures.add_line(figure, x, y.tolist(), name, look, mode="lines", digits=".3f")


def mark(figure: Figure, x: float, y: float, look: figures.Style) -> None:
    figure.add_scatter(
        x=[x], y=[y], mode="markers", marker=look.points(10), line=look.line(), showlegend=False, hoverinfo="skip"
    )


def steps(values: Tensor) -> tuple[list[float], list[float]]:
    """Return the outline of bars around 0, 1, 2, ..., from the axis and back to it."""
    bars = values.tolist()
    x = [at + side for at in range(len(bars)) for side in (-0.4, -0.4, 0.4, 0.4)]
    return x, [height for bar in bars for height in (0.0, bar, bar, 0.0)]


def block(figure: Figure, at: float, low: float, high: float, name: str, look: figures.Style) -> None:
    """Draw one bar from ``low`` to ``high``."""
    figure.add_scatter(
        x=[at - 0.4, at + 0.4, at + 0.4, at - 0.4],
        y=[low, low, high, high],
        fill="toself",
        fillcolor=look.veil(0.6),
        line={"color": look.colour, "width": 1},
        mode="lines",
        name=name,
        hoverinfo="skip",
    )


def of_gamma(gamma: float) -> str:
    return f"gamma = {gamma:.2f} (T = {1 / gamma:.3g})"


def power_position(gamma: float) -> Position:
    p, _ = power(1.0)
    p_gamma, power_sum = power(gamma)
    classes, grid = len(p), GAMMAS[::-1]
    bars = panel("The target p_gamma of one five", "digit", "probability", (-0.6, classes - 0.4), (0, 0.8))
    x, y = steps(p_gamma)
    bars.add_scatter(
        x=x,
        y=y,
        fill="toself",
        fillcolor=BLUE.veil(0.45),
        line=BLUE.line(),
        mode="lines",
        name="p_gamma",
        hoverinfo="skip",
    )
    x, y = steps(p)
    bars.add_scatter(x=x, y=y, line=RED.line(1.5), mode="lines", name="p, as the teacher gives it", hoverinfo="skip")
    bars.update_layout(xaxis_dtick=1)
    sums = panel("The power sum U_gamma(p)", "gamma", "U_gamma", (0, 1.02), (0, classes))
    uniform = torch.tensor([classes ** (1 - each) for each in grid])
    line(sums, grid, uniform, "a teacher that knows nothing", GREEN)
    line(sums, grid, torch.stack([power(each)[1] for each in grid]), "this five", BLUE)
    sure = surest().log_softmax(-1)
    line(sums, grid, torch.stack([targets.power_sum(sure, gamma=each)[0] for each in grid]), "the surest image", PINK)
    mark(sums, gamma, float(power_sum), BLUE)
    first, second = p_gamma.topk(2).values.tolist()
    reading = (
        f"p_gamma gives the five {first:.2f}, the nine {second:.2f} and the others {1 - first - second:.2f} together. "
        f"U_gamma(p) is {power_sum:.2f}; it could be {classes ** (1 - gamma):.2f} at most."
    )
    return Position(of_gamma(gamma), reading, (bars, sums))


def gradient_position(temperature: float) -> Position:
    grid = [round(0.025 * step, 3) for step in range(61)]
    found, gamma = matching(temperature, grid), 1 / temperature
    ends = (0.0, grid[-1])
    loss = panel("The matching term", "student's logits, as a multiple of the teacher's", "nats", ends, (-0.05, 3))
    slope = panel("Its slope", "student's logits, as a multiple of the teacher's", "nats per multiple", ends, (-6, 6))
    for figure, kind in ((loss, ""), (slope, " slope")):
        line(figure, grid, found[f"kd{kind}"], "KD at T, at TTM's scale", RED)
        line(figure, grid, found[f"ttm{kind}"], "TTM at gamma = 1/T", BLUE)
        mark(figure, 1.0, 0.0, RED)
        mark(figure, gamma, 0.0, BLUE)
    line(slope, grid, found["renyi slope"], "the difference: the Rényi term", GREEN)
    at_teacher = float(matching(temperature, [1.0])["ttm slope"])
    reading = (
        f"KD comes to rest at 1 times the teacher's logits, TTM at {gamma:.2f} times. At the teacher's own logits KD "
        f"has a slope of 0, TTM one of {at_teacher:.2f}: that is the Rényi term, and it asks for a less sure student."
    )
    if temperature == 1:
        reading = (
            "At T = 1 both terms are KL(p || q), and the Rényi term has a weight of T - 1 = 0: there is no difference."
        )
    return Position(f"T = {temperature:.2f} (gamma = {gamma:.2f})", reading, (loss, slope))


def identity_position(sharpness: float) -> Position:
    parts = {name: float(value) for name, value in identity([sharpness]).items()}
    sums = panel("The parts, one upon the other", "part", "nats", (-0.6, 3.6), (-0.5, 11))
    upper = parts["kd"] + parts["constant"]
    block(sums, 0, 0, parts["kd"], "T KL(p_gamma || q_gamma): KD", RED)
    block(sums, 1, parts["kd"], upper, "+ (T - 1) H(p_gamma): constant", PINK)
    block(sums, 2, parts["ttm"], upper, "- (T - 1) H_1/T(q): Rényi term", GREEN)
    block(sums, 3, 0, parts["ttm"], "= KL(p_gamma || q): TTM", BLUE)
    sums.update_layout(xaxis={"tickvals": [0, 1, 2, 3], "ticktext": ["KD", "+ H(p)", "- H(q)", "= TTM"]})
    curves = panel(
        "The same along the student's sharpness",
        "student's logits, as a multiple of the teacher's",
        "nats",
        (0, 2),
        (-7.5, 7.5),
    )
    along = identity(SHARPNESS)
    for name, label, look in (
        ("kd", "KD", RED), ("constant", "constant", PINK), ("renyi", "Rényi term", GREEN), ("ttm", "TTM", BLUE)
    ):  # fmt: skip
        line(curves, SHARPNESS, along[name], label, look)
        mark(curves, sharpness, parts[name], look)
    reading = (
        f"{parts['kd']:.3f} + {parts['constant']:.3f} - {-parts['renyi']:.3f} = {parts['ttm']:.3f} nats: KD's part, "
        f"the constant, the student's Rényi entropy of order 1/4 times 3, and TTM's term."
    )
    return Position(f"{sharpness:.2f} times the teacher's logits", reading, (sums, curves))


def weights_position(gamma: float) -> Position:
    drawn, said = [], []
    for name, title in (("digits", "Digits, 10 classes"), ("cifar100", "CIFAR-100, 100 classes")):
        sums, classes = weights(name, gamma), teacher(name).shape[1]
        share = [100 * at / (len(sums) - 1) for at in range(len(sums))]
        ends = torch.tensor([1.0, 1.0], dtype=torch.float64)
        figure = panel(
            title, "test images, the surest first (%)", "weight U_gamma(p)", (0, 100), (0, 1.05 * classes**0.95)
        )
        line(figure, share, sums, "an image's weight", BLUE)
        line(figure, [0, 100], ends * sums.mean(), "mean of all", PINK)
        line(figure, [0, 100], ends * classes ** (1 - gamma), "a teacher that knows nothing", GREEN)
        drawn.append(figure)
        said.append(
            f"{title}: from {sums.min():.2f} to {sums.max():.2f}, {sums.mean():.2f} on average, "
            f"{classes ** (1 - gamma):.1f} if the teacher knew nothing."
        )
    return Position(of_gamma(gamma), " ".join(said), tuple(drawn))


def picture(
    title: str, slider: str, draw: Callable[[float], Position], values: Sequence[float], start: float
) -> Callable[[], Picture]:
    return lambda: Picture(title, slider, [draw(value) for value in values], list(values).index(start))


PICTURES = {
    "power": picture(
        "A teacher's answer and its power transform", "gamma, from 1 to 0.05", power_position, GAMMAS, 0.25
    ),
    "gradient": picture("What KD and TTM ask of the student", "temperature T", gradient_position, TEMPERATURES, 4.0),
    "identity": picture(
        "TTM as KD and a Rényi entropy, at T = 4", "sharpness of the student", identity_position, SHARPNESS, 0.5
    ),
    "weights": picture(
        "WTTM's weights of sure and unsure images", "gamma, from 1 to 0.05", weights_position, GAMMAS, 0.25
    ),
}


def significant(value: object) -> object:
    """Round numbers to five digits, in lists too: what a page holds."""
    if isinstance(value, (list, tuple)):
        return [significant(each) for each in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None
