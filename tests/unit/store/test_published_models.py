from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from publishing import model_folder

from igd_core.artifact.counts import PartRecord
from igd_core.errors import ArtifactError
from igd_core.store.bundles import Bundle
from igd_core.store.published_models import MAX_MODEL_BYTES, MAX_TEXT_BYTES, ModelManifest, staged

if TYPE_CHECKING:
    from pathlib import Path

    from igd_core.store.publishing import ModelFolder

FINGERPRINT = "ab" * 32


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return model_folder(tmp_path / "tuned", "weights", tokenizer_sha256=FINGERPRINT)


def test_a_manifest_is_read_as_it_was_written_and_its_version_is_of_all_it_says(folder: ModelFolder) -> None:
    manifest = folder.manifest
    assert ModelManifest.from_bytes(manifest.to_bytes()) == manifest
    others = [
        replace(manifest, name="other"),
        replace(manifest, tokenizer_sha256="cd" * 32),
        replace(manifest, kind="adapter", base=FINGERPRINT, tokenizer_sha256=""),
        replace(manifest, parts={**manifest.parts, "more.json": PartRecord(sha256=FINGERPRINT, bytes=1)}),
    ]
    assert len({each.version for each in (manifest, *others)}) == 5
    for other in others:
        assert ModelManifest.from_bytes(other.to_bytes()) == other
    assert manifest.size_bytes == len("{}") + len("weights")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../up"}, "name is '../up'"),
        ({"kind": "pickle"}, "kind is 'pickle'"),
        ({"base": FINGERPRINT}, "base is 'abab"),
        ({"kind": "adapter"}, "base is ''"),
        ({"parts": {}}, "0 files"),
        ({"parts": {f"{i}.json": PartRecord(sha256=FINGERPRINT, bytes=1) for i in range(513)}}, "513 files"),
        ({"parts": {"a.bin": PartRecord(sha256=FINGERPRINT, bytes=1)}}, "'a.bin' is no file of a model"),
        ({"parts": {"../a.json": PartRecord(sha256=FINGERPRINT, bytes=1)}}, "'../a.json' is no file of a model"),
        ({"parts": {"manifest.json": PartRecord(sha256=FINGERPRINT, bytes=1)}}, "'manifest.json' is no file"),
        ({"parts": {"a.json": PartRecord(sha256="ab", bytes=1)}}, "a.json: PartRecord"),
        ({"parts": {"a.json": PartRecord(sha256=FINGERPRINT, bytes=0)}}, "a.json: PartRecord"),
        ({"parts": {"a.json": PartRecord(sha256=FINGERPRINT, bytes=MAX_TEXT_BYTES + 1)}}, "at most 268435456 are read"),
        ({"parts": {"a.safetensors": PartRecord(sha256=FINGERPRINT, bytes=MAX_MODEL_BYTES + 1)}}, "are stored"),
    ],
)
def test_a_manifest_out_of_bounds_is_refused(folder: ModelFolder, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=f"^manifest.json: ValueError: .*{message}"):
        ModelManifest.from_bytes(replace(folder.manifest, **changes).to_bytes())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body.update(format="igd-artifact"), "not an igd-model"),
        (lambda body: body.update(format_version=2), "format version 2 of a model; this release reads 1"),
        (lambda body: body.update(version="0123456789abcdef"), "altered; not as model"),
        (lambda body: body.update(more=1), "TypeError: .*more"),
        (lambda body: body.pop("parts"), "KeyError: 'parts'"),
        (lambda body: body.update(parts=[]), "AttributeError"),
    ],
)
def test_an_altered_manifest_is_refused(folder: ModelFolder, change: Any, message: str) -> None:
    body = json.loads(folder.manifest.to_bytes())
    change(body)
    with pytest.raises(ArtifactError, match=f"^manifest.json: {message}"):
        ModelManifest.from_bytes(json.dumps(body, indent=2, sort_keys=True).encode() + b"\n")


def test_a_folder_with_an_altered_file_is_not_stored(folder: ModelFolder) -> None:
    with staged(folder.directory, list(folder.manifest.parts), folder.manifest.to_bytes()) as stage:
        assert Bundle.open(stage).manifest == folder.manifest
        (folder.directory / "model.safetensors").write_bytes(b"WEIGHTS")
        with pytest.raises(ArtifactError, match=r"a file of model [0-9a-f]{16} is missing or altered"):
            Bundle.open(stage)
