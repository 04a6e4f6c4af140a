"""The record of a run, ``run.json``: its settings and hashes of its inputs, by which it can be resumed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igd_core.datasets.sources import Source
from igd_core.engines.embedded.adapters import WEIGHTS_FILE
from igd_core.engines.identity import FolderDigests
from igd_core.errors import DataError, InputError, TuningError
from igd_core.locked_folders import LOCK_FILE, locked_folder
from igd_core.search.identity import FINGERPRINT_LENGTH
from igd_core.tuning.settings import TuningSettings

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Mapping

    from igd_core.artifact import Artifact
    from igd_core.checked_settings import CheckedSettings
    from igd_core.tuning.inputs import RunInputs, TuningData

RECORD = "run.json"
RECORD_FORMAT = "igd-run"
BASE = "model_sha256"
"""Name in the record of the hash of the checkpoint that a run starts from. Earlier releases do not record it."""
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy")


def content_of(model: str | Path) -> str:
    """sha256 over a checkpoint's configuration, tokenizer and weights; reads its files.

    Raises:
        ModelError: no such checkpoint, or it cannot be read.
    """
    from igd_core.engines.embedded.checkpoint import resolve_checkpoint

    with FolderDigests(resolve_checkpoint(model)) as digests:
        return digests.together()


def new_record(inputs: RunInputs, settings: CheckedSettings, artifact: Artifact) -> dict[str, Any]:
    """The record before the rows are read.

    Raises:
        DataError: a file that cannot be read.
        ModelError: no such checkpoint.
    """
    sources = {"train": Source.of(inputs.train), "valid": Source.of(inputs.valid)}
    record = {
        "format": RECORD_FORMAT,
        "status": "running",
        "settings": settings.to_json(),
        "artifact": {
            "version": artifact.version,
            "name": artifact.manifest.name,
            "template": artifact.manifest.template.to_json(),
        },
        "data": {
            part: {"file": Path(source.name).name, "sha256": source.sha256(inputs.reading)}
            for part, source in sources.items()
        },
        "on_unknown": inputs.on_unknown,
        "model": inputs.model,
        BASE: None if inputs.model is None else content_of(inputs.model),
        "adapter": None if inputs.adapter is None else _sha256(inputs.adapter / WEIGHTS_FILE),
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
    }
    made: dict[str, Any] = json.loads(json.dumps(record))  # lists for tuples: as it will be read again
    return made


def rows_record(data: TuningData) -> dict[str, Any]:
    """Numbers of rows and tokens."""
    return {
        "dropped": data.dropped,
        "bad_rows": data.bad_rows,
        "untrained": data.untrained,
        **{
            part: {
                "rows": examples.rows,
                "packs": len(examples.packs),
                "tokens_alone": examples.row_tokens,
                "tokens_computed": examples.tokens,
                "response_tokens": examples.targets,
                "zero_ig_share": round(examples.zero_ig_share, 4),
                "shortened": examples.shortened,
            }
            for part, examples in (("train", data.train), ("valid", data.valid))
        },
    }


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a run's record; None if there is none.

    Raises:
        TuningError: it cannot be read, or is not a record.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TuningError(f"{path}: cannot be read ({error})") from None
    if not isinstance(record, dict) or record.get("format") != RECORD_FORMAT:
        raise TuningError(f"{path}: is no run record")
    return record


def require_base(record: Mapping[str, Any], sha256: str | None, *, at: str | None, what: str) -> None:
    """Check that a checkpoint is the one in a record, wherever it is now. Earlier releases' records do not tell.

    Args:
        record: of the run.
        sha256: the checkpoint's `content_of`.
        at: where the checkpoint is.
        what: what needs the recorded checkpoint, for the message.

    Raises:
        InputError: it is another checkpoint; names both.
    """
    recorded = record.get(BASE)
    if recorded is not None and recorded != sha256:
        raise InputError(
            f"model: {what} was tuned on {record.get('model')} with the content {_short(recorded)}; "
            f"{at} holds {_short(sha256)}"
        )


def require_base_of_adapter(adapter: Path, now: Mapping[str, Any]) -> None:
    """Check that an adapter continues from the weights that it was made on, if it is in its run's folder.

    Raises:
        InputError: it was made on other weights.
    """
    path = adapter.parent / RECORD
    try:
        record = read_record(path)
    except TuningError:  # the folder around the adapter is not a run
        return
    if record is not None:
        require_base(record, now[BASE], at=now["model"], what=f"adapter {adapter}")


def begun_before(out: Path, *, resume: bool) -> dict[str, Any] | None:
    """The record of the run in a folder, to resume; None where one may begin.

    Raises:
        TuningError: there is no run to resume, or a run or something else in the way of a new one.
    """
    before = read_record(out / RECORD)
    if before is None and resume:
        raise TuningError(f"{out / RECORD}: not found, so there is no run to resume")
    if before is not None and not resume:
        raise TuningError(f"{out}: holds a run already; resume it, or choose another folder")
    if before is None and out.exists() and (not out.is_dir() or any(path.name != LOCK_FILE for path in out.iterdir())):
        raise TuningError(f"{out}: exists and holds no run")
    return before


def hold_folder(out: Path, before: Mapping[str, Any] | None, held: contextlib.ExitStack, *, resume: bool) -> None:
    """Let no other process tune into the folder until ``held`` ends; ``before``: what `begun_before` found in it.

    Called when everything has been read, so that a refused call leaves no folder.

    Raises:
        DataError: another process is tuning into it, or it cannot be made.
        TuningError: another process has, since `begun_before`.
    """
    held.enter_context(locked_folder(out))
    if begun_before(out, resume=resume) != before:
        raise TuningError(f"{out}: another process has gone on with the run; resume it again")


_OF_OLDER_RUNS = {"valid_targets": "all", "normalise": "vocabulary"}
"""Settings that older records lack: what those runs did, where commands now ask for something else."""


def going_on(run: Path) -> list[str]:
    """Flags with which `igd tune` goes on with the run in a folder as it began; none where there is no run.

    Raises:
        TuningError: its record cannot be read.
    """
    before = read_record(run / RECORD)
    if before is None:
        return []
    began = {**_OF_OLDER_RUNS, **before.get("settings", {})}
    flags = [(f"--{name.replace('_', '-')}", str(began[name])) for name in _OF_OLDER_RUNS]
    return ["--resume", *chain.from_iterable(flags)]


def require_same(
    before: Mapping[str, Any], now: Mapping[str, Any], kind: type[CheckedSettings] = TuningSettings
) -> None:
    """Check that a resumed run is the same run: else its record would describe a run that never was.

    ``kind``: what this run's settings are.

    Raises:
        InputError: names what differs.
    """
    if (by_lists := "group" in before.get("settings", {})) != ("group" in now["settings"]):
        ours, theirs = ("igd tune", "igd tune lists") if by_lists else ("igd tune lists", "igd tune")
        raise InputError(f"out: the run to resume is one of {theirs}, not of {ours}")
    parts = ["settings", "data", "artifact", "model", "adapter", "on_unknown"]
    if before.get(BASE) is not None and now[BASE] is not None:
        require_base(before, now[BASE], at=now["model"], what="the run to resume")
        parts.remove("model")  # it may have moved
    of_then = _OF_OLDER_RUNS if kind is TuningSettings else {}
    recorded = kind.read({**of_then, **before.get("settings", {})}, where="settings of the run to resume")
    before = {**before, "settings": recorded.to_json()}  # adds defaults of settings that are newer than the run
    for part in parts:
        if before.get(part) == now[part]:
            continue
        old, new = before.get(part), now[part]
        if isinstance(old, dict):
            name = next(key for key in new if old.get(key) != new[key])
            flag = (
                f" (--{name.replace('_', '-')} {old.get(name)} goes on as it began)" if name in _OF_OLDER_RUNS else ""
            )
            raise InputError(f"{part}: {name} was {old.get(name)!r} in the run to resume, now {new[name]!r}{flag}")
        raise InputError(f"{part}: was {old!r} in the run to resume, now {new!r}")


def _short(sha256: str | None) -> str:
    return "none" if sha256 is None else sha256[:FINGERPRINT_LENGTH]


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
