"""The settings of a run as keyword arguments: what `tutelage.distill` and the other calls take, by name and type."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

from tutelage.settings.fit import (
    EMA,
    Count,
    EarlyStopping,
    LossForm,
    OnPolicy,
    Optimizer,
    Positive,
    Precision,
    Schedule,
    Shard,
    Switch,
    Threads,
)
from tutelage.settings.outputs import OutputsForm

TOGETHER = 8
"""Students in one group by default. Each takes memory for its parameters, their gradients and the
optimizer's state; activations are there for one at a time."""


class RunSettings(TypedDict, total=False):
    """Every field of a recipe but its name, data, networks and objective; what is left out has the recipe's default."""

    start: str | PathLike[str] | None
    """A finished run, or its folder, whose last checkpoint the run begins with; none begins at the first step."""
    epochs: Count
    """Passes over the training set."""
    batch_size: Count
    """Samples per optimizer step, over all micro-batches and processes."""
    optimizer: Optimizer | Mapping[str, Any] | Literal["sgd", "adamw"]
    """A name, or a mapping such as ``{"name": "adamw", "lr": 1e-3}`` or ``{"name": "timm:muon"}``."""
    schedule: Schedule | Mapping[str, Any] | Literal["constant", "step", "multistep", "cosine"]
    """Of the learning rate: a name, or a mapping such as ``{"name": "cosine", "warmup": 5}``."""
    accumulate: Literal["auto"] | Count
    """Micro-batches that a batch is cut into, to the same losses and gradients; ``auto``: as many as memory needs."""
    clip: Positive | None
    """Largest L2 norm of the gradient; none for no clipping."""
    ema: EMA | Mapping[str, Any] | float | None
    """Average of the student's weights that is judged and kept in their place: a decay, or a mapping; none for none."""
    early_stopping: EarlyStopping | Mapping[str, Any] | int | None
    """End once so many epochs in a row did no better on the validation split: that number, or a mapping; none never."""
    stages: Sequence[Mapping[str, Any]]
    """Several fits in turn; each says what differs, such as ``[{"epochs": 5, "objective": "kd"}, {"epochs": 10}]``."""
    class_weights: Literal["balanced"] | Sequence[float] | Mapping[str, float] | None
    """Of each class in the cross-entropy with the labels: ``balanced``, a number for each, or some by name; none: 1."""
    on_policy: OnPolicy | Mapping[str, Any] | float | None
    """Samples whose completion the student writes: a share, or a mapping with ``new_tokens`` and ``temperature``."""
    seed: int
    """Of the initialisation and of dropout."""
    data_seed: int
    """Of order and augmentation."""
    precision: Literal["auto", Precision]
    """What networks are computed in; ``auto`` measures whether bfloat16 is faster."""
    device: Literal["auto", "cpu", "cuda"] | str
    """Where to compute; ``cuda:N`` is a GPU by its number, and ``cuda`` torch's current one."""
    threads: Threads | None
    """Of the CPU; none for torch's own choice. Exact resume needs the same number."""
    deterministic: bool
    """Ask torch for deterministic algorithms; exact resume on CUDA needs it."""
    channels_last: bool
    """Memory layout of convolutions, for speed."""
    nonfinite: Literal["stop", "skip"]
    """What a non-finite loss or gradient does: stop the run, or skip the step; it is never applied."""
    weak_teacher: bool
    """Continue though the teacher is no better than chance."""
    outputs: str | None
    """The folder of the teacher's recorded outputs, which are read instead of running it; none runs it."""
    outputs_limit_mb: Positive
    """Recording refuses to write more, MB of 10**6 bytes."""
    outputs_top: Count | None
    """Where all logits are above that, recording keeps so many per sample; none keeps all."""
    outputs_form: OutputsForm | Mapping[str, Any] | Literal["bucket", "sampled"] | None
    """What recording keeps of each answer: ``{"name": "bucket", "top": 16}`` or ``{"name": "sampled", "draws": 50}``;
    none keeps all logits, or the top."""
    outputs_max_error: Positive | None
    """Recording refuses the top classes where they are further off than this; none is 0.01, and 0.25 for tokens."""
    checkpoint_steps: Count | None
    """Steps between checkpoints within an epoch; none for none. One is written after every epoch."""
    checkpoint_seconds: Positive
    """Time between checkpoints within an epoch, seconds."""
    log_steps: Count
    """Steps between reads of what the device has counted."""
    compile_teacher: Switch
    """Compile the teacher's forward pass."""
    compile_student: Switch
    """Compile the student."""
    gradient_products: Switch
    """Compute the weight gradients of convolutions as matrix products, each shape for itself."""
    graphs: Switch
    """Capture a step as one CUDA graph, and replay it."""
    loss_form: Literal["auto"] | LossForm
    """How the losses are computed; ``auto`` measures on CUDA and where logits are many, and else is ``plain``."""
    checkpoint_activations: bool
    """Compute what is inside the student's blocks again in the backward pass, not keep it: less memory, more time."""
    sync_bn: Switch
    """Let batch norms of several processes take the statistics of all processes' samples."""
    shard: Shard
    """What several processes shard the parameters of, so that each has its share of them alone on its device."""
