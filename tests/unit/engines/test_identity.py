from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from igd_core.engines.embedded.engine import TreeEngine
from igd_core.engines.fake import FakeEngine
from igd_core.engines.identity import FolderDigests, runtime_of
from igd_core.engines.open import checkpoint_sha256
from igd_core.errors import EngineError, ModelError
from igd_core.search.identity import ModelIdentity

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from igd_core.engines.embedded.checkpoint import Checkpoint

IDENTITY = ModelIdentity(
    name="m", engine="tree", runtime="float32 on cpu", checkpoint="c", adapters={"a": "1", "b": "2", "twin": "1"}
)


def files(folder: Path, **content: bytes) -> Path:
    folder.mkdir()
    for name, data in content.items():
        (folder / name.replace("_", ".")).write_bytes(data)
    return folder


def digest_of(*folders: Path) -> list[str]:
    with FolderDigests(*folders) as digests:
        return digests.result()


@pytest.mark.parametrize("change", [{"engine": "vllm"}, {"runtime": "bfloat16 on cpu"}, {"checkpoint": "d"}])
def test_whatever_computes_otherwise_has_other_fingerprints(change: dict[str, Any]) -> None:
    other = replace(IDENTITY, **change)
    assert not set(IDENTITY.fingerprints.values()) & set(other.fingerprints.values())


def test_a_name_is_no_part_of_a_fingerprint_and_content_is_all_of_it() -> None:
    assert replace(IDENTITY, name="n").fingerprints == IDENTITY.fingerprints
    assert IDENTITY.fingerprint("a") == IDENTITY.fingerprint("twin")
    assert len({IDENTITY.fingerprint(), IDENTITY.fingerprint("a"), IDENTITY.fingerprint("b")}) == 3
    with pytest.raises(EngineError, match="adapter 'none': this engine has a, b, twin"):
        IDENTITY.fingerprint("none")


def test_an_adapter_has_one_fingerprint_under_a_name_and_merged_into_the_model() -> None:
    alone = replace(IDENTITY, adapters={}, merged="1")
    assert alone.fingerprint() == IDENTITY.fingerprint("a")


def test_what_a_published_model_was_stored_with_is_no_part_of_its_content(tmp_path: Path) -> None:
    content = {"config_json": b"{}", "model_safetensors": b"w"}
    plain, stored = files(tmp_path / "a", **content), files(tmp_path / "b", **content, manifest_json=b"{}")
    assert digest_of(plain) == digest_of(stored)
    with FolderDigests(stored) as digests:
        assert digests.files() == {
            name.replace("_", "."): (len(data), hashlib.sha256(data).hexdigest()) for name, data in content.items()
        }


async def test_models_made_in_memory_are_like_no_others(checkpoint_of: Callable[[str], Checkpoint]) -> None:
    engines = [TreeEngine(checkpoint_of("llama-fp32")) for _ in range(2)]
    for engine in engines:
        await engine.close()
    assert engines[0].identity.fingerprint() != engines[1].identity.fingerprint()
    assert FakeEngine().identity == FakeEngine().identity != FakeEngine(weights="other").identity


def test_the_runtime_names_data_type_device_and_libraries() -> None:
    told = runtime_of("tree", dtype="float32", device="cpu")
    assert told.startswith("float32 on cpu, transformers ")
    assert "torch 2." in told
    assert runtime_of("vllm", dtype="float32", device="cpu") != told


def test_a_digest_is_of_names_and_contents_of_what_loading_reads(tmp_path: Path) -> None:
    one = files(tmp_path / "one", config_json=b"{}", model_safetensors=b"weights" * 1_000_000, pytorch_bin=b"x")
    parts = [b"config.json\0", hashlib.sha256(b"{}").digest()]
    parts += [b"model.safetensors\0", hashlib.sha256(b"weights" * 1_000_000).digest()]
    assert digest_of(one) == [hashlib.sha256(b"".join(parts)).hexdigest()] == [checkpoint_sha256(one)]
    same = files(tmp_path / "same", config_json=b"{}", model_safetensors=b"weights" * 1_000_000, notes_txt=b"y")
    renamed = files(tmp_path / "renamed", config_json=b"{}", models_safetensors=b"weights" * 1_000_000)
    assert digest_of(one, same, renamed)[:2] == digest_of(one) * 2
    assert digest_of(renamed) != digest_of(one)


@pytest.mark.parametrize("what", ["other content", "another file", "a file less", "a new inode"])
def test_a_folder_that_changes_meanwhile_is_refused(tmp_path: Path, what: str) -> None:
    folder = files(tmp_path / "model", config_json=b"{}", model_safetensors=b"1")
    with FolderDigests(folder) as digests:
        digests.together()
        if what == "other content":
            (folder / "model.safetensors").write_bytes(b"22")
        elif what == "another file":
            (folder / "adapter_config.json").write_bytes(b"{}")
        elif what == "a file less":
            (folder / "config.json").unlink()
        else:
            (tmp_path / "new").write_bytes(b"1")
            (tmp_path / "new").replace(folder / "model.safetensors")
        with pytest.raises(ModelError, match="model: changed while"):
            digests.result()


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    folder = files(tmp_path / "model", config_json=b"{}")
    (folder / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read: No such file"):
        FolderDigests(folder)


def test_a_pipe_is_named_and_not_waited_for(tmp_path: Path) -> None:
    folder = files(tmp_path / "model", config_json=b"{}")
    os.mkfifo(folder / "generation_config.json")
    with pytest.raises(ModelError, match=r"generation_config\.json: cannot be read: no regular file"):
        FolderDigests(folder)


def test_a_load_that_fails_does_not_wait_for_the_hashes(tmp_path: Path) -> None:
    folder = files(tmp_path / "model", config_json=b"{}")
    with (folder / "model.safetensors").open("wb") as sparse:
        sparse.truncate(1 << 40)  # a terabyte of nothing
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError), FolderDigests(folder):
        raise ZeroDivisionError
    assert time.monotonic() - started < 30
