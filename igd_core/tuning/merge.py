"""An adapter added into the weights it was trained on: a checkpoint like any other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from igd_core.errors import InputError
from igd_core.tuned_prompt import read_tuned_prompt
from igd_core.tuning.run import RECORD
from igd_core.whole_files import replaced_folder

if TYPE_CHECKING:
    from pathlib import Path


def merge_run(run: Path, out: Path, *, model: str | None = None) -> None:
    """Write the best adapter of ``run``, merged in fp32, to ``out``.

    Args:
        run: a run's folder.
        out: new folder.
        model: the checkpoint that was adapted, where it is no longer where the record says.

    Raises:
        InputError: ``out`` exists, or the run has no adapter.
        ModelError: the checkpoint or the adapter does not load, or they do not fit.
    """
    from igd_core.tuning.backbone import ADAPTER, MODEL, copy_tokenizer

    if out.exists():
        raise InputError(f"{out}: exists already")
    adapter = run / ADAPTER
    if not (adapter / "adapter_config.json").is_file():
        tuned = " (all its weights were tuned: take its model folder)" if (run / MODEL).is_dir() else ""
        raise InputError(f"{adapter}: holds no adapter{tuned}")
    if model is None:
        try:
            model = json.loads((run / RECORD).read_text("utf-8"))["model"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{run / RECORD}: names no checkpoint ({error}); give it") from None
    from igd_core.engines.checkpoint import load_checkpoint, resolve_checkpoint, with_adapter_merged

    directory = resolve_checkpoint(str(model))
    base = load_checkpoint(directory, device="cpu", dtype="float32", packed=False)
    merged = with_adapter_merged(base.model, ADAPTER, adapter)
    with replaced_folder(out) as new:
        merged.save_pretrained(new)
        copy_tokenizer(directory, new)
        prompt = read_tuned_prompt(adapter)
        if prompt is not None:
            prompt.write(new)
