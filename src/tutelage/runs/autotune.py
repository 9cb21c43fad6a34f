"""The precision of a run whose recipe leaves it open: measured once, with its own networks, and then kept."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from tutelage import config, records
from tutelage.config.schema import Recipe, TrainedTeacher
from tutelage.runs import timing
from tutelage.runs.setup import RunInputs
from tutelage.training.distributed import accelerator_on

GAIN = 1.2
"""How many times faster bfloat16 must be to be chosen. It rounds networks to 8 bits, so a near tie is float32's."""
FEW = 400
"""Steps below which nothing is timed: the sixteen that it takes are at most 4 % of more."""
CHOICES = ("fp32", "bf16")
PLAIN = {"compile_teacher": False, "compile_student": False, "gradient_products": False}
"""How the timed steps are computed: what else makes them faster is chosen later, in the precision that is taken."""

R = TypeVar("R", bound=Recipe)


def recorded_precision(recipe: R, folder: Path | None = None) -> R:
    """Return a recipe with the precision that was chosen before, where it leaves it open and one was.

    Args:
        recipe: of a run or a comparison.
        folder: its own; an unfinished run or comparison goes on as it was begun. Outputs that a recipe reads come
            first: they were recorded in one precision.
    """
    if recipe.precision != "auto":
        return recipe
    found = []
    # The outputs of a comparison have a folder for each data seed.
    for path in sorted(Path(recipe.outputs).glob(f"**/{records.OUTPUTS}")) if recipe.outputs else ():
        found.append(records.read_json(path).get("key") or {})
    if folder is not None and (folder / records.RECIPE).exists():
        found.append(config.read(folder / records.RECIPE))
    chosen = next((value["precision"] for value in found if value.get("precision") in CHOICES), None)
    return with_precision(recipe, chosen)


def with_precision(recipe: R, chosen: str | None) -> R:
    """Return a recipe with a precision that was chosen, where it leaves it open."""
    return recipe if recipe.precision != "auto" or chosen is None else recipe.model_copy(update={"precision": chosen})


def resolve_precision(recipe: R, run_inputs: RunInputs, run: Recipe | None = None) -> tuple[R, str | None]:
    """Choose a recipe's precision where it leaves it open.

    Some training steps are timed in float32 and in bfloat16, on copies of the networks; bfloat16 is taken where it is
    `GAIN` times faster. Fits of less than `FEW` steps, and several processes, take float32, and nothing is timed; so
    does a run of which no step can be taken.

    Args:
        recipe: of a run or a comparison.
        run_inputs: what ``run`` is made of; it stays as it is.
        run: the one that stands for a comparison's; by default the recipe itself. Its teacher may be a random one that
            stands for one that is still to be trained.

    Returns:
        The recipe with one of `CHOICES`, and a line that says what was measured; none where nothing was.
    """
    if recipe.precision != "auto":
        return recipe, None
    run = (run or recipe).model_copy(update=PLAIN)
    samples = len(run_inputs.splits.train)
    steps = sum(fit.steps(samples) for fit in run.fits())
    if steps < FEW or accelerator_on(recipe.device).num_processes > 1:
        return with_precision(recipe, "fp32"), None
    forms = [run.model_copy(update={"precision": choice}) for choice in CHOICES]
    # In turn and the least, as whatever else the machine does only adds.
    try:
        rounds = [[timing.step(form, run_inputs).seconds for form in forms] for _ in range(2)]
    except Exception as error:  # noqa: BLE001  whatever is wrong, the run finds it too, and says what to do
        return with_precision(recipe, "fp32"), f"precision fp32: no step could be timed ({type(error).__name__})"
    slow, fast = (min(taken) for taken in zip(*rounds, strict=True))
    chosen = "bf16" if slow >= GAIN * fast else "fp32"
    why = f"precision {chosen}: a step takes {slow * 1e3:.1f} ms in fp32, {fast * 1e3:.1f} ms in bf16"
    return with_precision(recipe, chosen), why


def with_untrained_teacher(recipe: Recipe) -> Recipe:
    """Return a run's recipe with the untrained network in the place of a teacher that is still to be trained."""
    if not isinstance(recipe.teacher, TrainedTeacher):
        return recipe
    return recipe.model_copy(update={"teacher": recipe.teacher.train.model})
