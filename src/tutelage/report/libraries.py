"""Whether the libraries of the extra ``report`` are installed, which write the HTML report and draw figures."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path

from tutelage.errors import require_extra

LIBRARIES = "jinja2", "plotly"


def require(what: str) -> None:
    """Refuse what needs the report or its figures where one of the libraries is missing.

    Raises:
        ImportError: if so.
    """
    for library in LIBRARIES:
        require_extra(what, f"{library} for the report", "report", library)


def installed() -> bool:
    """Whether they are all there; where they are not, runs finish without a report."""
    return not _missing()


def why_not_written(folder: Path) -> str:
    """Say why a folder gets no report, and what to type for one."""
    missing = _missing()
    command = shlex.join(["tutelage", "report", str(folder)])
    lack = f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed"
    return f"report: not written, as {lack}; type pip install 'tutelage[report]', then {command}"


def _missing() -> list[str]:
    return [library for library in LIBRARIES if find_spec(library) is None]
