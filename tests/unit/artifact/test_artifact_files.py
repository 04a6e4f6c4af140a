from __future__ import annotations

import pickle
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from bundles import FILES, assert_same_artifact, contents
from hypothesis import given, settings
from hypothesis import strategies as st

from igd_core.artifact import Artifact, BuildOptions, build_artifact, load_artifact, save_artifact
from igd_core.artifact.files import encode_parts
from igd_core.catalogue.items import Catalogue, MetadataValue
from igd_core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from igd_core.catalogue.tokenization import TitleTokenizer


@pytest.mark.parametrize("verify", [True, False])
def test_what_is_loaded_is_what_was_saved(small_artifact: Artifact, pristine_bundle: Path, verify: bool) -> None:
    assert_same_artifact(load_artifact(pristine_bundle, verify=verify), small_artifact)
    assert sorted(contents(pristine_bundle)) == sorted(FILES)


@given(at=st.integers(-24, 23), start=st.integers(-30, 30), stop=st.integers(-30, 30), step=st.sampled_from([1, 3]))
def test_loaded_columns_are_read_like_lists(
    small_artifact: Artifact, pristine_bundle: Path, at: int, start: int, stop: int, step: int
) -> None:
    loaded = load_artifact(pristine_bundle, verify=False).catalogue
    for name in ("item_ids", "titles", "texts"):
        column, expected = getattr(loaded, name), list(getattr(small_artifact.catalogue, name))
        assert column[at] == expected[at]
        assert column[start:stop:step] == expected[start:stop:step]
        assert list(column) == expected
        assert len(column) == len(expected)
    with pytest.raises(IndexError):
        loaded.titles[24]


def test_a_bundle_holds_no_pickle(pristine_bundle: Path) -> None:
    for data in contents(pristine_bundle).values():
        with pytest.raises((pickle.UnpicklingError, ValueError, EOFError, UnicodeDecodeError)):
            pickle.loads(data)  # noqa: S301 - that it fails is the claim


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=6)
COLUMNS: tuple[st.SearchStrategy[MetadataValue], ...] = (
    st.none(),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.booleans(),
    st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.none() | st.lists(TEXT, max_size=3).map(tuple),
)


@given(data=st.data(), count=st.integers(1, 5))
def test_every_kind_of_metadata_comes_back_as_it_was(
    data: st.DataObject, count: int, tokenizer: TitleTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kinds = data.draw(st.lists(st.sampled_from(COLUMNS), max_size=3))
    metadata: dict[str, list[MetadataValue]] = {
        f"column {number}": data.draw(st.lists(kind, min_size=count, max_size=count))
        for number, kind in enumerate(kinds)
    }
    catalogue = Catalogue.build(
        item_ids=[f"é-{row}" for row in range(count)],
        titles=data.draw(st.lists(TEXT, min_size=count, max_size=count)),
        texts=data.draw(st.none() | st.lists(TEXT, min_size=count, max_size=count)),
        frequency=np.arange(1, count + 1),
        metadata=metadata,
    )
    built = build_artifact(catalogue, tokenizer, BuildOptions())
    directory = tmp_path_factory.mktemp("metadata") / "bundle"
    save_artifact(built, directory)
    loaded = load_artifact(directory)
    assert_same_artifact(loaded, built)
    for name, column in metadata.items():
        assert [type(value) for value in loaded.catalogue.metadata[name]] == [type(value) for value in column]
    shutil.rmtree(directory.parent)


@settings(max_examples=150)
@given(name=st.sampled_from(FILES), at=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_any_byte_altered_in_any_file_is_refused_naming_the_part(
    pristine_bundle: Path, name: str, at: float, mask: int
) -> None:
    path = pristine_bundle / name
    intact = path.read_bytes()
    damaged = bytearray(intact)
    damaged[int(at * len(damaged))] ^= mask
    path.write_bytes(damaged)
    try:
        with pytest.raises(ArtifactError, match=rf"^{name}: "):
            load_artifact(pristine_bundle)
    finally:
        path.write_bytes(intact)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda _: b"", lambda data: data + b"\0"])
def test_a_part_of_another_length_is_refused_even_unverified(
    bundle: Path, name: str, verify: bool, change: Callable[[bytes], bytes]
) -> None:
    (bundle / name).write_bytes(change((bundle / name).read_bytes()))
    with pytest.raises(ArtifactError, match=rf"^{name}: "):
        load_artifact(bundle, verify=verify)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name}: (not found|No such file)"):
        load_artifact(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_file_is_refused_by_name(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    (bundle / name).mkdir()
    with pytest.raises(ArtifactError, match=name):
        load_artifact(bundle)


def test_a_directory_that_holds_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"manifest.json: not found; is this an artifact's directory\?"):
        load_artifact(tmp_path)
    with pytest.raises(ArtifactError, match="not found"):
        load_artifact(tmp_path / "nowhere")


def test_the_manifest_of_another_bundle_is_refused(bundle: Path, artifact: Artifact) -> None:
    (bundle / "manifest.json").write_bytes(artifact.manifest.to_bytes())
    with pytest.raises(ArtifactError, match=r"^(trie|infogain).safetensors: .*the manifest says"):
        load_artifact(bundle)


def test_parts_exchanged_for_each_other_are_refused(bundle: Path) -> None:
    trie, gains = bundle / "trie.safetensors", bundle / "infogain.safetensors"
    trie.rename(bundle / "aside")
    gains.rename(trie)
    (bundle / "aside").rename(gains)
    with pytest.raises(ArtifactError, match=r"^(trie|infogain).safetensors: "):
        load_artifact(bundle)


def test_parts_are_the_same_bytes_each_time(small_artifact: Artifact) -> None:
    first, second = (
        encode_parts(small_artifact.catalogue, small_artifact.trie, small_artifact.gains) for _ in range(2)
    )
    assert first == second
    assert {name: part.record() for name, part in first.items()} == small_artifact.manifest.parts
