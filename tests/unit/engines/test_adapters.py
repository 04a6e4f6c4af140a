"""Adapters by name: how they are given, what is refused, and that the embedded engine merges them as peft runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from adapters import save_adapter
from factories import EOS
from subjects import prompt_of, search

from igd_core.engines.embedded.adapters import parse_adapters, read_adapter_config
from igd_core.engines.embedded.checkpoint import Checkpoint, load_checkpoint
from igd_core.engines.embedded.engine import TreeEngine
from igd_core.engines.vllm.options import VLLMOptions
from igd_core.errors import EngineError, InputError, ModelError
from igd_core.search.session import Scoring

if TYPE_CHECKING:
    from collections.abc import Callable

    from igd_core.artifact import Artifact


@pytest.fixture(scope="module")
def checkpoint_dir(
    checkpoint_of: Callable[[str], Checkpoint], definition: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory: Path = tmp_path_factory.mktemp("base") / "tiny"
    checkpoint_of("llama-fp32").model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def adapter_dir(checkpoint_dir: Path) -> Path:
    return save_adapter(checkpoint_dir.parent / "lora", checkpoint_dir, seed=5)


@pytest.fixture
def damaged(adapter_dir: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(adapter_dir, tmp_path / "damaged")


def test_names_and_directories_are_read_from_one_text() -> None:
    assert parse_adapters("") == {}
    assert parse_adapters(" tuned = /a/b ,other=c=d,") == {"tuned": Path("/a/b"), "other": Path("c=d")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tuned", "adapters: 'tuned' is not NAME=DIR"),
        ("=dir", "adapters: '=dir' is not NAME=DIR"),
        ("tuned=", "adapters: 'tuned=' is not NAME=DIR"),
        ("a=b,a=c", "adapters: 'a' is named twice"),
    ],
)
def test_texts_of_another_form_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_adapters(text)


def test_what_an_adapter_says_of_itself_is_read(adapter_dir: Path, checkpoint_dir: Path) -> None:
    config = read_adapter_config(adapter_dir)
    assert (config.rank, config.base, config.plain) == (4, str(checkpoint_dir), True)
    assert config.modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def change(directory: Path, **fields: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "adapter_config.json").unlink(), "no adapter_config.json there"),
        (lambda root: (root / "adapter_config.json").write_text("{"), "not an adapter's configuration"),
        (lambda root: (root / "adapter_config.json").write_text("[]"), "not an adapter's configuration"),
        (lambda root: change(root, r="many"), "not an adapter's configuration"),
        (lambda root: change(root, peft_type="PREFIX_TUNING"), "peft_type 'PREFIX_TUNING'; only LORA"),
        (lambda root: (root / "adapter_model.safetensors").rename(root / "adapter_model.bin"), "in a pickle are not"),
        (lambda root: (root / "adapter_model.safetensors").write_bytes(b"x"), "adapter_model.safetensors: "),
    ],
)
def test_a_directory_that_is_no_lora_adapter_is_refused_by_name(
    damaged: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(damaged)
    with pytest.raises(ModelError, match=message):
        read_adapter_config(damaged)


def test_an_adapter_given_as_the_model_is_an_error_that_says_what_to_do(adapter_dir: Path) -> None:
    with pytest.raises(
        ModelError, match=r"is a LoRA adapter, not a checkpoint: .*--adapter DIR, .*--adapters NAME=DIR"
    ):
        load_checkpoint(adapter_dir)


def test_merged_weights_give_the_logits_that_peft_gives(checkpoint_dir: Path, adapter_dir: Path) -> None:
    from peft import PeftModel

    plain = load_checkpoint(checkpoint_dir, device="cpu", packed=False)
    checkpoint = load_checkpoint(checkpoint_dir, device="cpu", adapters={"tuned": adapter_dir})
    ids = torch.tensor([[5, 9, 40, 7, 3]])
    with torch.inference_mode():
        base = plain.model(input_ids=ids).logits
        torch.testing.assert_close(checkpoint.model_of(None)(input_ids=ids).logits, base)
        tuned = checkpoint.model_of("tuned")(input_ids=ids).logits
        assert (tuned - base).abs().max() > 0.1
        reference = PeftModel.from_pretrained(plain.model, str(adapter_dir))(input_ids=ids).logits
    torch.testing.assert_close(tuned, reference, atol=1e-4, rtol=1e-4)


async def test_sessions_of_one_engine_run_with_the_adapter_they_name_and_share_no_cached_prompt(
    checkpoint_dir: Path, adapter_dir: Path, artifact: Artifact
) -> None:
    adapters = {"tuned": adapter_dir}
    prompt = prompt_of(artifact, 1, 2, 3)
    alone = {}
    for adapter in (None, "tuned"):
        engine = TreeEngine(load_checkpoint(checkpoint_dir, device="cpu", adapters=adapters), cache_bytes=0)
        await engine.load(artifact)
        alone[adapter] = await search(subject_of(engine), artifact, prompt, adapter=adapter)
        await engine.close()
    engine = TreeEngine(load_checkpoint(checkpoint_dir, device="cpu", adapters=adapters))
    await engine.load(artifact)
    for adapter in (None, "tuned", None, "tuned"):
        found = await search(subject_of(engine), artifact, prompt, adapter=adapter)
        assert [one.leaf for one in found] == [one.leaf for one in alone[adapter]]
        for one, other in zip(found, alone[adapter], strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-4)
    assert alone[None][0].score != pytest.approx(alone["tuned"][0].score, abs=0.1)
    with pytest.raises(EngineError, match="adapter 'wide': this engine has tuned"):
        await engine.open(artifact.version, prompt, Scoring(adapter="wide"))
    await engine.close()


def subject_of(engine: TreeEngine) -> Any:
    from subjects import Subject

    return Subject(kind="tree", engine=engine, tolerance=1e-4)


def test_an_adapter_of_another_model_does_not_fit(adapter_dir: Path, damaged: Path, checkpoint_dir: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(adapter_dir / "adapter_model.safetensors")
    save_file(
        {name: tensor[..., :1].contiguous() for name, tensor in weights.items()}, damaged / "adapter_model.safetensors"
    )
    with pytest.raises(ModelError, match=r"adapter 'odd' \(.*\) does not fit the model"):
        load_checkpoint(checkpoint_dir, device="cpu", adapters={"odd": damaged})
    renamed = {name.replace("layers.1.", "layers.7."): tensor for name, tensor in weights.items()}
    save_file(renamed, damaged / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"adapter 'odd' \(.*\) does not fit the model"):
        load_checkpoint(checkpoint_dir, device="cpu", adapters={"odd": damaged})


def test_vllm_gets_room_for_the_widest_adapter_and_one_place_more_on_a_cpu(adapter_dir: Path, tmp_path: Path) -> None:
    options = VLLMOptions(model=tmp_path, adapters={"one": adapter_dir, "two": adapter_dir})
    on_cpu, on_gpu = options.engine_args(tmp_path, on_cpu=True), options.engine_args(tmp_path, on_cpu=False)
    assert (on_cpu["max_loras"], on_gpu["max_loras"]) == (3, 2)
    assert on_cpu["enable_lora"] is True
    assert on_cpu["max_lora_rank"] == 8
    assert "lm_head" not in on_cpu["lora_target_modules"]
    assert "enable_lora" not in VLLMOptions(model=tmp_path).engine_args(tmp_path, on_cpu=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, "adapter 'one': it trains more than LoRA matrices"),
        ({"use_dora": True}, "adapter 'one': it trains more than LoRA matrices"),
        ({"r": 1000}, "a rank of 1000; vLLM runs up to 512"),
    ],
)
def test_adapters_that_vllm_cannot_run_are_refused_before_it_starts(
    damaged: Path, fields: dict[str, Any], message: str
) -> None:
    change(damaged, **fields)
    with pytest.raises(ModelError, match=message):
        VLLMOptions(model=damaged, adapters={"one": damaged}).engine_args(damaged, on_cpu=True)


def test_an_adapter_of_the_output_layer_is_refused_for_vllm(damaged: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(damaged / "adapter_model.safetensors")
    weights["base_model.model.lm_head.lora_A.weight"] = torch.zeros(4, 8)
    save_file(weights, damaged / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="adapter 'one': it changes lm_head, which vLLM cannot run"):
        VLLMOptions(model=damaged, adapters={"one": damaged}).engine_args(damaged, on_cpu=True)


def test_matrices_for_layers_that_the_model_does_not_have_are_refused_by_name(
    checkpoint_dir: Path, adapter_dir: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    damaged = shutil.copytree(adapter_dir, tmp_path / "adapter")
    tensors = load_file(damaged / "adapter_model.safetensors")
    name = next(name for name in sorted(tensors) if ".layers.0." in name)
    tensors[name.replace(".layers.0.", ".layers.7.")] = tensors[name].clone()
    save_file(tensors, damaged / "adapter_model.safetensors")
    with pytest.raises(
        ModelError, match=r"does not fit the model: the model has no place for \S*\.layers\.7\.\S*lora_"
    ):
        load_checkpoint(checkpoint_dir, device="cpu", adapters={"odd": damaged})
