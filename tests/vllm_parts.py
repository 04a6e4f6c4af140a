"""vLLM for tests: whether it is here, and a tiny checkpoint that its CPU attention can run."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from igd_core.catalogue.tokenization import TitleTokenizer


GIVEN: dict[str, Any] = json.loads(os.environ.get("TEST_VLLM_OPTIONS") or "{}")
"""Fields of `VLLMOptions` for every engine that a test starts and does not set itself: what a card is tried with."""

TOLERANCE = float(os.environ.get("TEST_VLLM_TOLERANCE") or 2e-3)
"""How far a score may be from transformers' in fp32, nats; bfloat16 needs more."""


def require_vllm() -> None:
    """Skip the calling module where vLLM is not installed; its own warnings at import are not ours to fail on."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed (deploy/locks/vllm.txt)", allow_module_level=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm.v1.engine.async_llm  # noqa: F401 - imported here, once, for all


def save_tiny_llama(directory: Path, definition: dict[str, Any], tokenizer: TitleTokenizer) -> Path:
    """A random two-layer Llama with its tokenizer; heads 32 wide, the narrowest that vLLM has on a CPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size + 5,  # padded, as real checkpoints are
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        LlamaForCausalLM(config).save_pretrained(directory)
    (directory / "tokenizer.json").write_text(json.dumps(definition))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return directory


def is_called(process: psutil.Process, name: str) -> bool:
    """Whether a process lives and has ``name`` in its command; one that has ended and waits to be reaped does not."""
    try:
        return name in " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
