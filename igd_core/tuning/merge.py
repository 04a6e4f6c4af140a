"""Merge an adapter into the weights it was trained on: the result is an ordinary checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from igd_core.engines.tuned_prompt import read_tuned_prompt
from igd_core.errors import InputError, TuningError
from igd_core.tuning.record import RECORD, content_of, read_record, require_base
from igd_core.whole_files import replaced_folder

if TYPE_CHECKING:
    from pathlib import Path


def merge_run(run: Path, out: Path, *, model: str | None = None) -> None:
    """Write the best adapter of ``run``, merged in fp32, to ``out``.

    Args:
        run: a run's folder.
        out: new folder.
        model: the checkpoint that was adapted, if it has moved since the record was written.

    Raises:
        InputError: ``out`` exists, the run has no adapter, or it was tuned on another checkpoint than this.
        ModelError: the checkpoint or the adapter does not load, or they do not fit.
    """
    from igd_core.tuning.backbone import ADAPTER, MODEL, copy_tokenizer

    if out.exists():
        raise InputError(f"{out}: exists already")
    adapter = run / ADAPTER
    if not (adapter / "adapter_config.json").is_file():
        tuned = " (all its weights were tuned: take its model folder)" if (run / MODEL).is_dir() else ""
        raise InputError(f"{adapter}: holds no adapter{tuned}")
    record = _record_of(run)
    if model is None:
        model = None if record is None else record.get("model")
        if model is None:
            raise InputError(f"{run / RECORD}: names no checkpoint; give it (--model DIR)")
    from igd_core.engines.embedded.checkpoint import load_checkpoint, resolve_checkpoint, with_adapter_merged

    directory = resolve_checkpoint(str(model))
    if record is not None:
        require_base(record, content_of(directory), at=str(directory), what=f"the adapter of {run}")
    base = load_checkpoint(directory, device="cpu", dtype="float32", packed=False)
    merged = with_adapter_merged(base.model, ADAPTER, adapter)
    with replaced_folder(out) as new:
        merged.save_pretrained(new)
        copy_tokenizer(directory, new)
        prompt = read_tuned_prompt(adapter)
        if prompt is not None:
            prompt.write(new)


def _record_of(run: Path) -> dict[str, Any] | None:
    """The run's record; None if it is missing or cannot be read: merging works without."""
    try:
        return read_record(run / RECORD)
    except TuningError:
        return None
