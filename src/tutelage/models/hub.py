"""Classifiers as folders that are handed on, and repositories of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage import records
from tutelage.errors import InvalidTypeError, InvalidValueError, NotFoundError, require_extra
from tutelage.hub_files import folder_of
from tutelage.models import io
from tutelage.models.classifier import Classifier
from tutelage.models.ensembles import Ensemble
from tutelage.models.names import is_exported, is_own_module, saved_student
from tutelage.models.registry import create, restored

_FILES = (
    *(records.STUDENT, records.CARD, records.NETWORK, records.README),
    *("*.safetensors.index.json", "tokenizer*", "special_tokens_map.json", "chat_template.jinja"),
)
"""What of a repository is fetched."""
_FOR_CARD = "huggingface_hub for the model card"


def save_pretrained(classifier: Classifier, save_directory: str | Path, **arguments: Any) -> str | None:
    """Write a folder that `from_pretrained` and `create` read, with a model card, ``README.md``.

    It holds the files of `save`, of the whole network: adapters are merged into its weights, and parts that are frozen
    are there too. The card is made of a run's records if the classifier has the weights of the run that it was loaded
    from. A ``README.md`` that is there stays.

    Args:
        classifier: classifier; it is not changed.
        save_directory: folder to write to; created if it does not exist.
        arguments: ``model_card_kwargs``, keys of the card's front matter, such as ``{"license": "apache-2.0"}``; and
            with ``push_to_hub=True`` also ``repo_id``, by default the folder's name, and those of `push_to_hub`.

    Returns:
        ``None``, or with ``push_to_hub=True`` the URL of the commit.

    Raises:
        ValueError: if it is no single network with weights of its own, or the folder is a run's.
        ImportError: if ``huggingface_hub`` is missing.
        StorageError: if the system refuses.
    """
    _require_one(classifier)
    folder = Path(save_directory)
    front, repo_id = arguments.pop("model_card_kwargs", None), arguments.pop("repo_id", None)
    upload = arguments.pop("push_to_hub", False)
    if arguments and not upload:
        instead = "type model_card_kwargs={...}, or push_to_hub=True with them"
        raise InvalidTypeError("save_pretrained", "arguments that it has", ", ".join(arguments), instead)
    if (folder / records.MANIFEST).exists() or (folder / records.CHECKPOINTS).exists():
        instead = "type another, such as 'published'"
        raise InvalidValueError("save_directory", "a folder of its own", f"{str(folder)!r}, a run's", instead)
    require_extra("save_pretrained", _FOR_CARD, "hf", "huggingface_hub")
    from tutelage.models.published import Published

    with records.writing(folder / records.STUDENT):
        Published(classifier, repo_id).save_pretrained(folder, model_card_kwargs=front)
    return push_to_hub(classifier, repo_id or folder.name, model_card_kwargs=front, **arguments) if upload else None


def push_to_hub(classifier: Classifier, repo_id: str, **arguments: Any) -> str:
    """Upload what `save_pretrained` writes to a repository of the Hugging Face Hub, in one commit.

    Args:
        classifier: classifier; it is not changed.
        repo_id: ``user/name``; created if it does not exist. Its card is replaced, unless ``ignore_patterns`` names it.
        arguments: others of `huggingface_hub.ModelHubMixin.push_to_hub`: ``private``, ``token``, ``branch``,
            ``commit_message``, ``create_pr``, ``ignore_patterns``, ``model_card_kwargs``.

    Returns:
        The URL of the commit.

    Raises:
        FileNotFoundError: if it is no name, or there is no such user.
        ConnectionError: if the Hub cannot be reached, or takes nothing of this user.
        ValueError: as of `save_pretrained`.
    """
    _require_one(classifier)
    if not isinstance(repo_id, str):
        raise InvalidTypeError("repo_id", "a name such as 'user/name'", type(repo_id).__name__, "type that")
    require_extra("push_to_hub", _FOR_CARD, "hf", "huggingface_hub")
    from tutelage.models.published import Published

    return Published(classifier).push_to_hub(repo_id, **arguments)


def _require_one(classifier: Classifier) -> None:
    name, expected = classifier.card.name, "one network with weights of its own"
    if isinstance(classifier, Ensemble):
        instead = "save each of its members, model.members"
        raise InvalidValueError("model", expected, f"{name}, several", instead)
    if is_exported(name):
        raise InvalidValueError("model", expected, f"{name}, a file", "upload that file")


def from_pretrained(
    name: str | Path,
    *,
    network: nn.Module | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    trust_code: bool | frozenset[str] = False,
) -> Classifier:
    """Load a saved classifier from a folder or the Hub, in the dtype of its weights; no code in it is run.

    Args:
        name: path of a folder that `save_pretrained` or a run wrote, or ``user/name`` on the Hub, whose files are
            fetched and kept. A folder of that name comes first.
        network: for a module of the caller's own, which no name rebuilds: one like it, which gets the weights.
        revision: branch, tag or commit on the Hub.
        token: token for the Hub, by default that of ``hf auth login``.
        cache_dir: folder that keeps what is fetched.
        local_files_only: whether to take what was kept, without asking the Hub.
        force_download: whether to fetch again what was kept.
        trust_code: whether a ``file:`` network, which runs a file that is here, is allowed.

    Returns:
        The classifier, on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such folder, repository or revision, or no access to it.
        ConnectionError: if the Hub cannot be reached and nothing of the name was kept.
        ValueError: if nothing of this package is in it, it is damaged, or ``network`` is missing or does not fit.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     create("mlp:16", classes=10, image_size=(8, 8)).save_pretrained(folder)
        ...     from_pretrained(folder)(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """
    if not isinstance(name, str | Path):
        instead = "type from_pretrained('user/name')"
        raise InvalidTypeError("model", "the path of a folder, or a name on the Hub", type(name).__name__, instead)
    options: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
    options |= {"local_files_only": local_files_only, "force_download": force_download}
    folder = folder_of(str(name), _FILES, what="model", **options)
    if not (folder / records.CARD).is_file() and not Path(name).is_dir():
        instead = f"type tutelage.models.create('hf:{name}') for one of transformers"
        got = f"{name}, without {records.CARD}"
        raise InvalidValueError("model", "a repository that tutelage wrote", got, instead)
    path = saved_student(str(folder)) / records.STUDENT
    card = io.read_card(folder)
    own, of_file = is_own_module(card.name), card.name.startswith("file:")
    if network is not None and not (own or of_file):
        instead = "leave network out"
        raise InvalidValueError("network", f"none, as its name {card.name} rebuilds {name}", "one", instead)
    if network is not None:
        classifier = restored(folder, network)
    elif own:
        expected = f"a module like that of {name}, {card.name.removeprefix('object:')} of the user's own"
        instead = f"build it and type tutelage.models.from_pretrained({str(name)!r}, network=module)"
        raise InvalidValueError("network", expected, "none", instead)
    else:
        try:
            classifier = create(str(folder), trust_code=trust_code)
        except NotFoundError as error:
            if not of_file:
                raise
            instead = "work in its folder, or build the network and type network=module"
            raise NotFoundError("model", error.expected, error.got, instead) from error
    state = io.read(path)
    if any(value.dtype == torch.float64 for value in state.values()) and not classifier.is_double:
        classifier = classifier.double()
        io.load(classifier, state, name=card.name, path=path)
    return classifier.eval()
