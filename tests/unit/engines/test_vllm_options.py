"""How vLLM is started: what operators may set, and what is refused, in one line, before anything starts."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import pytest

from igd_core.cli.engine import EngineFlags
from igd_core.cli.flags import add_flags, read
from igd_core.engines.embedded.adapters import AdapterConfig
from igd_core.engines.open import EngineOptions, open_engine
from igd_core.engines.vllm.options import VLLMOptions, parse_tuning
from igd_core.errors import InputError, ModelError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_json_object_becomes_options() -> None:
    text = '{"max_model_len": 2048, "gpu_memory": 0.5, "compiled": true, "runner": "v1", "cpu_cores": "0-7"}'
    options = VLLMOptions(model="m", **parse_tuning(text))
    assert (options.max_model_len, options.gpu_memory, options.compiled) == (2048, 0.5, True)
    assert parse_tuning("{}") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "vllm: not JSON"),
        ("[1]", r"vllm: '\[1\]' is no JSON object"),
        ('{"max_len": 1}', "vllm: 'max_len' is no option; there are max_model_len,"),
        ('{"model": "other"}', "vllm: 'model' is no option"),
        ('{"max_num_seqs": "64"}', 'vllm.max_num_seqs: "64" is not of type int'),
        ('{"max_num_seqs": true}', "vllm.max_num_seqs: true is not of type int"),
        ('{"compiled": 1}', "vllm.compiled: 1 is not of type bool"),
        ('{"max_model_len": 0}', "max_model_len 0: at least 1 is needed"),
        ('{"published_adapters": -1}', "published_adapters -1: 0 to 64 are possible"),
        ('{"max_lora_rank": 0}', "max_lora_rank 0: at least 1 is needed"),
        ('{"max_lora_rank": 513}', "max_lora_rank 513: vLLM runs up to 512"),
        ('{"gpu_memory": 1.5}', r"gpu_memory 1.5: a share in \(0, 1\] is needed"),
        ('{"gpu_memory": NaN}', "gpu_memory nan"),
        ('{"runner": "v3"}', "runner 'v3': one of v1, v2"),
        ('{"attention_backend": "flash attn"}', "attention_backend 'flash attn': a name such as FLASH_ATTN is needed"),
    ],
)
def test_what_is_no_option_is_refused_with_its_name_and_value(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_tuning(text)


def test_defaults_differ_by_machine_and_given_values_hold_on_both(tmp_path: Path) -> None:
    cpu, gpu = (VLLMOptions(model="m").engine_args(tmp_path, on_cpu=on_cpu) for on_cpu in (True, False))
    assert (cpu["dtype"], cpu["block_size"], cpu["enforce_eager"]) == ("float32", 32, True)
    assert (gpu["dtype"], gpu["block_size"], gpu["enforce_eager"]) == ("bfloat16", 16, False)
    assert cpu["kv_cache_memory_bytes"] == 1 << 30
    assert "kv_cache_memory_bytes" not in gpu
    given = VLLMOptions(model="m", dtype="float16", block_size=64, compiled=False, kv_cache_bytes=5)
    for on_cpu in (True, False):
        args = given.engine_args(tmp_path, on_cpu=on_cpu)
        assert (args["dtype"], args["block_size"], args["enforce_eager"]) == ("float16", 64, True)
        assert args["kv_cache_memory_bytes"] == 5


def test_the_environment_is_set_while_vllm_starts_and_what_was_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    before = dict(os.environ)
    with VLLMOptions(model="m", cpu_cores="0-3").environment(on_cpu=True):
        assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"
        assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0"
        assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "0-3"
        assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert dict(os.environ) == before


def test_fp32_attention_on_a_gpu_is_told_to_be_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_F32_DEFAULT", raising=False)
    for dtype, on_cpu, expected in (("float32", False, "ieee"), ("float32", True, None), ("auto", False, None)):
        with VLLMOptions(model="m", dtype=dtype).environment(on_cpu=on_cpu):
            assert os.environ.get("TRITON_F32_DEFAULT") == expected


def test_an_attention_backend_is_vllms_to_choose_unless_given(tmp_path: Path) -> None:
    assert "attention_backend" not in VLLMOptions(model="m").engine_args(tmp_path, on_cpu=False)
    given = VLLMOptions(model="m", **parse_tuning('{"attention_backend": "TRITON_ATTN"}'))
    assert given.engine_args(tmp_path, on_cpu=False)["attention_backend"] == "TRITON_ATTN"


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed here")
def test_without_vllm_the_error_says_how_to_install_it(bundle_with_tokenizer: Path) -> None:
    with pytest.raises(ModelError, match=r"pip install 'igd-recommender\[vllm\]' for CUDA, make setup-vllm for a CPU"):
        open_engine(EngineOptions(model=bundle_with_tokenizer, engine="vllm"))


@pytest.fixture
def bundle_with_tokenizer(tmp_path: Path, definition: dict[str, Any]) -> Path:
    import json

    (tmp_path / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}), encoding="utf-8")
    return tmp_path


def test_a_device_is_refused_and_so_are_vllms_options_with_another_engine() -> None:
    import argparse

    with pytest.raises(InputError, match="device 'cuda:1': vLLM runs on what it was installed for"):
        open_engine(EngineOptions(model="m", engine="vllm", device="cuda:1"))
    with pytest.raises(InputError, match="forward 'own': vLLM has its own"):
        open_engine(EngineOptions(model="m", engine="vllm", forward="own"))
    parser = argparse.ArgumentParser()
    add_flags(parser, EngineFlags)
    given = ["--model", "m", "--vllm", '{"max_num_seqs": 8}']
    assert read(parser.parse_args([*given, "--engine", "vllm"]), EngineFlags).engine_options().vllm == {
        "max_num_seqs": 8
    }
    with pytest.raises(InputError, match="vllm: given, with engine 'tree'"):
        read(parser.parse_args(given), EngineFlags).engine_options()


def _config(rank: int = 8, *, plain: bool = True, modules: tuple[str, ...] = ("q_proj",)) -> AdapterConfig:
    return AdapterConfig(rank=rank, alpha=8.0, base="", plain=plain, modules=frozenset(modules))


def test_places_for_published_adapters_are_reserved_at_the_start_with_one_that_stays_empty_on_a_cpu(
    tmp_path: Path,
) -> None:
    assert "enable_lora" not in VLLMOptions(model="m").engine_args(tmp_path, on_cpu=True)
    options = VLLMOptions(model="m", **parse_tuning('{"published_adapters": 2, "max_lora_rank": 20}'))
    cpu, gpu = (options.engine_args(tmp_path, on_cpu=on_cpu) for on_cpu in (True, False))
    assert (cpu["enable_lora"], cpu["max_loras"], gpu["max_loras"]) == (True, 3, 2)
    assert cpu["max_lora_rank"] == 32
    assert {"q_proj", "down_proj"} < set(cpu["lora_target_modules"])
    assert "lm_head" not in cpu["lora_target_modules"]
    assert VLLMOptions(model="m", published_adapters=1).engine_args(tmp_path, on_cpu=False)["max_lora_rank"] == 16


def test_what_the_room_does_not_hold_is_refused_with_a_reason() -> None:
    room = VLLMOptions(model="m", published_adapters=2).lora_room()
    room.check("fits", _config(16))
    for config, said in (
        (_config(17), "a rank of 17; vLLM was started with max_lora_rank 16"),
        (_config(plain=False), "trains more than LoRA matrices"),
        (_config(modules=("q_proj", "lm_head")), "it changes lm_head"),
        (_config(modules=("q_proj", "router")), "it changes router; vLLM was started for adapters of down_proj"),
    ):
        with pytest.raises(ModelError, match=f"adapter 'late': .*{said}"):
            room.check("late", config)
    with pytest.raises(
        ModelError, match=r'without places for published adapters; give --vllm .*"published_adapters": 2'
    ):
        VLLMOptions(model="m").lora_room().check("late", _config())
