"""Knowledge distillation for PyTorch, built on transformed teacher matching (arXiv:2402.11148)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import forward
from .version import __version__ as __version__

if TYPE_CHECKING:
    from . import data as data
    from . import errors as errors
    from . import kernels as kernels
    from . import losses as losses
    from . import models as models
    from . import objectives as objectives
    from . import taps as taps
    from . import targets as targets
    from .adapters import Adapter as Adapter
    from .adapters import as_batch as as_batch
    from .api import compare as compare
    from .api import distill as distill
    from .api import evaluate as evaluate
    from .api import export as export
    from .api import predict as predict
    from .api import train as train
    from .api import tune as tune
    from .errors import TutelageError as TutelageError
    from .modules import Distiller as Distiller
    from .modules import FrozenTeacher as FrozenTeacher
    from .modules import network_context as network_context
    from .runs.reporter import Reporter as Reporter
    from .runs.run import Run as Run
    from .runs.run import load as load
    from .types import Batch as Batch
    from .types import Outputs as Outputs
    from .types import Progress as Progress

# Lazy, because `import tutelage` stands before every command, and `--help` shall not wait for torch.
_MODULE_OF = {
    **{name: f".{name}" for name in ("data", "errors", "kernels", "losses", "models", "objectives", "taps", "targets")},
    **dict.fromkeys(("Batch", "Outputs", "Progress"), ".types"),
    **dict.fromkeys(("Adapter", "as_batch"), ".adapters"),
    **dict.fromkeys(("Distiller", "FrozenTeacher", "network_context"), ".modules"),
    **dict.fromkeys(("Run", "load"), ".runs.run"),
    "Reporter": ".runs.reporter",
    **dict.fromkeys(("compare", "distill", "evaluate", "export", "predict", "train", "tune"), ".api"),
    "TutelageError": ".errors",
    "__version__": ".version",
}
__all__ = list(_MODULE_OF)

if not TYPE_CHECKING:  # where a type checker saw it, a misspelt name would be one of any type
    __getattr__, __dir__ = forward(__name__, _MODULE_OF)
