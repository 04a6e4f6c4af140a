"""A folder as a model to publish: what it is, and whether an engine can use it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import TYPE_CHECKING

from igd_core.artifact.counts import PartRecord
from igd_core.catalogue.tokenization import TitleTokenizer
from igd_core.engines.embedded.adapters import CONFIG_FILE, read_adapter_config
from igd_core.engines.identity import FolderDigests
from igd_core.engines.open import checkpoint_sha256
from igd_core.errors import InputError, ModelError
from igd_core.store.published_models import ModelManifest, check_files, is_model_name

if TYPE_CHECKING:
    from pathlib import Path

_RUN = "run.json"
_CONTENT_OF_BASE = "model_sha256"


def describe_model(directory: Path, *, name: str | None = None, base: Path | None = None) -> ModelManifest:
    """The manifest of a folder that holds a checkpoint or a LoRA adapter; reads all of its files.

    Args:
        directory: safetensors and JSON; whatever else lies there is not published.
        name: for people; by default the folder's, or its parent's where it is called ``model`` or ``adapter``.
        base: the checkpoint that an adapter was tuned on; by default what the record of its run says, or the folder
            that its configuration names.

    Raises:
        InputError: no such folder, a name that cannot be one, or a base that is unknown or of no use.
        ModelError: no checkpoint or adapter that an engine could load.
    """
    if not directory.is_dir():
        raise InputError(f"model: {directory} is no folder")
    if (is_adapter := (directory / CONFIG_FILE).is_file()) is False and base is not None:
        raise InputError(f"base: {directory} is a checkpoint, which has none")
    if is_adapter:
        read_adapter_config(directory)
    else:
        _check_checkpoint(directory)
    with FolderDigests(directory) as digests:
        parts = {file: PartRecord(sha256=sha256, bytes=size) for file, (size, sha256) in digests.files().items()}
    try:
        check_files(parts)
    except ValueError as error:
        raise ModelError(f"{directory}: {error}") from None
    return ModelManifest(
        name=_named(directory, name),
        kind="adapter" if is_adapter else "checkpoint",
        base=_content_of_base(directory, base) if is_adapter else "",
        tokenizer_sha256="" if is_adapter else TitleTokenizer.from_directory(directory).fingerprint,
        parts=parts,
    )


def _check_checkpoint(directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise ModelError(f"{directory}: neither config.json nor {CONFIG_FILE}; no checkpoint and no adapter")
    if not any(directory.glob("*.safetensors")):
        raise ModelError(f"{directory}: no safetensors there (weights in a pickle are not read)")
    if find_spec("torch") is None or find_spec("transformers") is None:  # servers check it before they use it
        return
    from igd_core.engines.embedded.integrity import check_folder

    check_folder(directory)


def _named(directory: Path, name: str | None) -> str:
    if name is None:
        folder = directory.resolve()
        name = folder.parent.name if folder.name in ("model", "adapter") else folder.name
    if not is_model_name(name):
        raise InputError(f"name: {name!r} is not 1 to 64 letters, digits, '.', '_' or '-'; give --name")
    return name


def _content_of_base(directory: Path, base: Path | None) -> str:
    """The content of the checkpoint that an adapter is of, by which servers know theirs."""
    if base is None:
        recorded = _recorded_base(directory)
        if recorded is not None:
            return recorded
        from pathlib import Path

        named = read_adapter_config(directory).base
        if not named or not Path(named).is_dir():
            raise InputError(
                f"base: {directory} says it was tuned on {named or 'nothing'!r}, which is no folder here; give --base"
            )
        base = Path(named)
    return checkpoint_sha256(base)


def _recorded_base(directory: Path) -> str | None:
    """What the record of the run says that made the adapter, if it lies beside it."""
    try:
        record = json.loads((directory.resolve().parent / _RUN).read_text(encoding="utf-8"))
        found = record[_CONTENT_OF_BASE]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
