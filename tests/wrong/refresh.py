"""Write the messages of the corpus anew, where the code says something else by now: ``python -m tests.wrong.refresh``.

Read the diff: it is what users will see. A case that is not refused is named and left as it is.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import yaml
from tests.wrong import corpus


def invoke(*typed: str) -> tuple[int, str, str]:
    """Type a command in this process."""
    from tutelage.cli import app

    out, err = io.StringIO(), io.StringIO()
    sys.argv, code = ["tutelage", *typed], 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        try:
            app.main()
        except SystemExit as left:
            code = int(left.code or 0)
    return code, out.getvalue(), err.getvalue()


class _Text(yaml.SafeDumper):
    """Writes the text of several lines as lines."""


_Text.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def write(path: Path, case: dict[str, Any]) -> None:
    """Write a case."""
    path.write_text(yaml.dump(case, Dumper=_Text, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")


def main() -> None:
    before, changed = Path.cwd(), 0
    for path in corpus.cases():
        case = corpus.read(path)
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                code, said = corpus.do(case, invoke, Path(folder))
            finally:
                os.chdir(before)
        if code != (0 if "warns" in case else 2) or re.search(r"Traceback|bug in tutelage", said):
            print(f"{path.name}: exit code {code}: {said}", end="")
        elif case.get("says") != said:
            write(path, {**case, "says": said})
            changed += 1
    print(f"{changed} messages written")


if __name__ == "__main__":
    main()
