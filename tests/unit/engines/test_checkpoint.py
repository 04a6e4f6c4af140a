from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from factories import EOS
from transformers import Gemma3TextConfig, MistralConfig, Qwen2Config, T5Config

from igd_core.engines.embedded.checkpoint import load_checkpoint
from igd_core.engines.open import EngineOptions, open_engine
from igd_core.errors import InputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from igd_core.engines.embedded.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def saved(
    checkpoint_of: Callable[[str], Checkpoint], definition: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny-llama"
    checkpoint_of("llama-fp32").model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}), encoding="utf-8")
    return directory


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "tiny-llama")


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_a_saved_model_loads_in_evaluation_mode_with_its_tokenizer(
    saved: Path, checkpoint_of: Callable[[str], Checkpoint], name: str, dtype: torch.dtype
) -> None:
    loaded, original = load_checkpoint(saved, device="cpu", dtype=name), checkpoint_of("llama-fp32")
    assert loaded.model_id == "tiny-llama"
    assert loaded.model.dtype == dtype
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer.fingerprint == original.tokenizer.fingerprint
    if dtype == torch.float32:
        ids = torch.tensor([[5, 6, 7]])
        torch.testing.assert_close(loaded.model(input_ids=ids).logits, original.model(input_ids=ids).logits)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"", lambda _: b"no safetensors"])
def test_damaged_weights_are_refused(directory: Path, damage: Callable[[bytes], bytes]) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(ModelError, match="tiny-llama: "):
        load_checkpoint(directory, device="cpu")


def test_weights_in_a_pickle_are_not_read(directory: Path, checkpoint_of: Callable[[str], Checkpoint]) -> None:
    (directory / "model.safetensors").unlink()
    torch.save(checkpoint_of("llama-fp32").model.state_dict(), directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no file named model\.safetensors"):
        load_checkpoint(directory, device="cpu")


def test_missing_tensors_are_refused_not_filled_with_noise(directory: Path) -> None:
    edit_config(directory, num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"9 tensors .* are missing, model\.layers\.2\.input_layernorm\.weight first"):
        load_checkpoint(directory, device="cpu")


def test_tensors_of_another_shape_are_refused_by_name(directory: Path) -> None:
    edit_config(directory, intermediate_size=64)
    with pytest.raises(ModelError, match=r"6 tensors have another shape .*, model\.layers\.0\.mlp\.down_proj\.weight"):
        load_checkpoint(directory, device="cpu")


def test_code_that_comes_with_a_checkpoint_never_runs(directory: Path) -> None:
    edit_config(directory, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"})
    (directory / "own.py").write_text(f"open({str(directory / 'ran')!r}, 'w')", encoding="utf-8")
    with pytest.raises(ModelError, match="custom code"):
        load_checkpoint(directory, device="cpu")
    assert not (directory / "ran").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MistralConfig(sliding_window=16), r"'mistral': sliding-window attention \(16\)"),
        (Gemma3TextConfig(num_hidden_layers=6), "'gemma3_text': layers of type sliding_attention"),
        (
            Qwen2Config(use_sliding_window=True, sliding_window=8, max_window_layers=0, num_hidden_layers=2),
            "'qwen2': layers of type sliding_attention",
        ),
        (T5Config(), "'t5': encoder-decoder models"),
    ],
)
def test_an_architecture_whose_mask_is_not_plain_causal_is_refused(directory: Path, config: Any, message: str) -> None:
    (directory / "config.json").write_text(config.to_json_string(), encoding="utf-8")
    with pytest.raises(ModelError, match=f"architecture {message}.* not supported"):
        load_checkpoint(directory, device="cpu")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not a valid JSON file"), ("{}", "model_type"), ('{"model_type": "nonesuch"}', "nonesuch")],
)
def test_a_config_of_no_known_model_is_refused(directory: Path, content: str, message: str) -> None:
    (directory / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        load_checkpoint(directory, device="cpu")


def test_names_that_lead_nowhere_are_refused_with_the_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model '.*/no such': no such directory, and not fetched from a hub"):
        load_checkpoint(tmp_path / "no such")
    with pytest.raises(ModelError, match=r"tokenizer\.json: not found"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"dtype": "int4"}, "dtype 'int4': one of auto, float32, bfloat16, float16"),
        ({"device": "abacus"}, "device 'abacus': "),
        ({"device": "cuda:99"}, "device 'cuda:99': "),
    ],
)
def test_a_device_or_dtype_that_is_not_here_is_refused_by_name(
    saved: Path, choice: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load_checkpoint(saved, **choice)


async def test_an_engine_is_opened_by_name_on_a_checkpoint_with_its_tokenizer(saved: Path) -> None:
    opened = open_engine(EngineOptions(model=saved, device="cpu", cache_bytes=0))
    assert opened.engine.model_id == "tiny-llama"
    assert opened.tokenizer.eos_id == 2
    assert opened.engine.stats().healthy
    await opened.engine.close()


def test_an_engine_of_no_known_name_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="engine 'abacus': one of tree"):
        open_engine(EngineOptions(model=tmp_path, engine="abacus"))
