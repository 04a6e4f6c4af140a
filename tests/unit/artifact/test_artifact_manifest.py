from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.artifact import Manifest
from igd_core.artifact.manifest import MAX_MANIFEST_BYTES
from igd_core.errors import ArtifactError

if TYPE_CHECKING:
    from igd_core.artifact import Artifact


def changed(artifact: Artifact, path: str, value: object) -> bytes:
    """The manifest with one value set by its dotted path, written as the product would, version left as it was."""
    body = json.loads(artifact.manifest.to_bytes())
    *outer, last = path.split(".")
    place = body
    for key in outer:
        place = place[key]
    place[last] = value
    return json.dumps(body, indent=2, sort_keys=True).encode() + b"\n"


def resealed(artifact: Artifact, **changes: Any) -> bytes:
    """A manifest whose version agrees with its content."""
    return replace(artifact.manifest, **changes).to_bytes()


def test_a_manifest_survives_its_bytes(artifact: Artifact) -> None:
    assert Manifest.from_bytes(artifact.manifest.to_bytes()) == artifact.manifest


@given(at=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_no_byte_can_change(artifact: Artifact, at: float, mask: int) -> None:
    data = bytearray(artifact.manifest.to_bytes())
    data[int(at * len(data))] ^= mask
    with pytest.raises(ArtifactError, match=r"^manifest.json: "):
        Manifest.from_bytes(bytes(data))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "other"),
        ("alpha", 0.9),
        ("counts.items", 149),
        ("template.prefix_ids", [1, 2]),
        ("parts.items.parquet", None),
        ("version", "0" * 16),
        ("extra", 1),
    ],
)
def test_no_value_can_change_without_the_version(artifact: Artifact, path: str, value: object) -> None:
    data = artifact.manifest.to_bytes()
    body = json.loads(data)
    if path == "parts.items.parquet":
        body["parts"]["items.parquet"]["bytes"] += 1
        data = json.dumps(body, indent=2, sort_keys=True).encode() + b"\n"
    else:
        data = changed(artifact, path, value)
    with pytest.raises(ArtifactError, match=r"^manifest.json: "):
        Manifest.from_bytes(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [("template.extra", 1), ("counts.items", 150.0), ("counts.items", "150"), ("template.max_history", 10.2)],
)
def test_spellings_that_parsing_would_forgive_are_refused(artifact: Artifact, path: str, value: object) -> None:
    version = artifact.version
    with pytest.raises(ArtifactError, match=f"manifest.json: altered; not as version '{version}' was written"):
        Manifest.from_bytes(changed(artifact, path, value))
    respaced = artifact.manifest.to_bytes().replace(b"\n", b"\r\n")
    with pytest.raises(ArtifactError, match="not as version"):
        Manifest.from_bytes(respaced)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"\xff{}", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "not an igd-artifact"),
        (b'{"format": "igd-artifact"}', "format version None; this release reads 1 to 3"),
        (b'{"format": "igd-artifact", "format_version": 4}', "format version 4; this release reads 1 to 3"),
        (b'{"format": "igd-artifact", "format_version": [1]}', r"format version \[1\]; this release reads 1 to 3"),
        (b'{"format": "igd-artifact", "format_version": 1}', "KeyError: 'name'"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "at most 1048576 are read"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=rf"manifest.json: .*{message}"):
        Manifest.from_bytes(data)


@pytest.mark.parametrize("key", ["name", "vocab_size", "alpha", "template", "counts", "parts"])
def test_a_missing_key_is_refused_by_name(artifact: Artifact, key: str) -> None:
    body = json.loads(artifact.manifest.to_bytes())
    del body[key]
    with pytest.raises(ArtifactError, match=f"manifest.json: KeyError: '{key}'"):
        Manifest.from_bytes(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 3}, "TypeError: name is 3"),
        ({"vocab_size": "364"}, "vocab_size is '364'"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"alpha": None}, "alpha is None"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"beams": 0}, "beams is 0"),
        ({"beams": 201}, "beams is 201"),
        ({"beams": True}, "beams is True"),
        ({"beams": 20.0}, "beams is 20.0"),
        ({"smoothing": -1.0}, "smoothing is -1.0"),
        ({"model": 3}, "model is 3"),
        ({"model": "latest"}, "model is 'latest'"),
        ({"vocab_size": 3}, "template: token id .* is outside the vocabulary of 3"),
        ({"parts": {}}, r"parts are \[\], expected"),
    ],
)
def test_a_consistent_manifest_with_a_wrong_value_is_refused(
    artifact: Artifact, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArtifactError, match=rf"manifest.json: .*{message}"):
        Manifest.from_bytes(resealed(artifact, **changes))


@pytest.mark.parametrize("part", ["prefix_ids", "bullet_ids", "suffix_ids"])
def test_no_part_of_a_prompt_leaves_the_vocabulary(artifact: Artifact, part: str) -> None:
    manifest = artifact.manifest
    for token in (-1, manifest.vocab_size):
        odd: dict[str, Any] = {part: (token,)}
        with pytest.raises(ArtifactError, match=f"template: token id {token} is outside the vocabulary"):
            Manifest.from_bytes(resealed(artifact, template=replace(manifest.template, **odd)))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "trie.pickle"])
def test_a_part_outside_the_bundle_is_refused(artifact: Artifact, name: str) -> None:
    parts = dict(artifact.manifest.parts)
    parts[name] = parts.pop("trie.safetensors")
    with pytest.raises(ArtifactError, match=r"manifest.json: parts are"):
        Manifest.from_bytes(resealed(artifact, parts=parts))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(artifact: Artifact, number: str) -> None:
    for key in ("alpha", "entropy_nats", "smoothing"):
        body = json.loads(artifact.manifest.to_bytes())
        body[key] = "HERE"
        data = json.dumps(body).replace('"HERE"', number).encode()
        with pytest.raises(ArtifactError, match=r"manifest.json: ValueError"):
            Manifest.from_bytes(data)
    body = json.loads(artifact.manifest.to_bytes())
    body["counts"]["items"] = "HERE"
    with pytest.raises(ArtifactError, match=r"manifest.json: (ValueError|OverflowError)"):
        Manifest.from_bytes(json.dumps(body).replace('"HERE"', number).encode())


@pytest.mark.parametrize("value", [None, 3, [], "x", {"prefix_ids": 1}, {"prefix_ids": ["a"], "suffix_ids": []}])
def test_a_template_of_another_shape_is_refused(artifact: Artifact, value: object) -> None:
    with pytest.raises(ArtifactError, match=r"manifest.json: (TypeError|KeyError)"):
        Manifest.from_bytes(changed(artifact, "template", value))


def test_a_manifest_that_names_a_model_is_another_version_which_earlier_releases_refuse(artifact: Artifact) -> None:
    bound = replace(artifact.manifest, model="0123456789abcdef")
    assert bound.version != artifact.version
    assert Manifest.from_bytes(bound.to_bytes()) == bound
    assert json.loads(bound.to_bytes())["format_version"] == 3
    assert b'"model"' not in artifact.manifest.to_bytes()
    assert replace(bound, model=None).version == artifact.version
