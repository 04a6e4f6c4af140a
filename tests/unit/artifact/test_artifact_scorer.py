"""The optional scorer of an artifact: on disk and back, named by its content, and refused where it lies."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundles import assert_same_artifact, at, contents, reseal_arrays
from factories import make_catalogue
from tokenizer_kinds import tokenizer_of

from igd_core.artifact import Artifact, BuildOptions, Manifest, build_artifact, load_artifact, save_artifact
from igd_core.artifact.counts import PartRecord
from igd_core.catalogue.items import Catalogue
from igd_core.errors import ArtifactError, CatalogueError
from igd_core.ids import ItemIndex
from igd_core.scorers.options import ScorerOptions
from igd_core.scorers.record import ScorerRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from igd_core.catalogue.tokenization import TitleTokenizer

SEQUENCES = [np.array(each, np.int32) for each in ([0, 1, 2, 1, 3], [5, 1, 2], [23, 0, 1], [], [4])]


def built(tokenizer: TitleTokenizer, scorer: ScorerOptions | None, **options: Any) -> Artifact:
    made = BuildOptions(name="small", scorer=scorer, **options)
    return build_artifact(make_catalogue(24), tokenizer, made, sequences=SEQUENCES)


def items_after(artifact: Artifact, item: int) -> list[int]:
    assert artifact.scorer is not None
    items = artifact.scorer.mass([ItemIndex(item)]).items
    assert items is not None
    return [int(each) for each in items]


@pytest.fixture(scope="module")
def scored(tokenizer: TitleTokenizer) -> Artifact:
    return built(tokenizer, ScorerOptions(kind="transitions", gamma=0.25))


@pytest.fixture(scope="module")
def pristine(scored: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("scored") / "bundle"
    save_artifact(scored, directory)
    return directory


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "bundle")


def test_what_is_loaded_is_what_was_saved(scored: Artifact, pristine: Path) -> None:
    loaded = load_artifact(pristine)
    assert_same_artifact(loaded, scored)
    assert sorted(contents(pristine)) == [
        "infogain.safetensors",
        "items.parquet",
        "manifest.json",
        "scorer.safetensors",
        "trie.safetensors",
    ]
    assert loaded.scorer is not None
    assert scored.scorer is not None
    assert loaded.scorer.fingerprint == scored.scorer.fingerprint
    assert items_after(loaded, 0) == [1]
    assert loaded.scorer.mass([ItemIndex(0)]).mass.tolist() == pytest.approx([2 / 3])
    assert loaded.manifest.scorer == ScorerRecord(
        kind="transitions", decay=0.25, backoff=1.0, gamma=0.25, mixture="log-linear", entries=6
    )
    save_artifact(loaded, pristine)  # of the same version: left as it is


def test_a_gamma_for_each_length_of_history_comes_back_as_it_was(tokenizer: TitleTokenizer, tmp_path: Path) -> None:
    made = built(tokenizer, ScorerOptions(kind="transitions", gamma=((0, 1.0), (3, 0.25))))
    save_artifact(made, tmp_path / "bundle")
    loaded = load_artifact(tmp_path / "bundle")
    assert_same_artifact(loaded, made)
    assert loaded.manifest.scorer is not None
    assert loaded.manifest.scorer.gamma == ((0, 1.0), (3, 0.25))
    assert json.loads(loaded.manifest.to_bytes())["scorer"]["gamma"] == [[0, 1.0], [3, 0.25]]


def test_an_artifact_without_a_scorer_is_as_it_was_before_there_were_any(
    tokenizer: TitleTokenizer, small_artifact: Artifact
) -> None:
    plain = built(tokenizer, None)
    assert plain.version == small_artifact.version
    body = json.loads(plain.manifest.to_bytes())
    assert body["format_version"] == 1
    assert "scorer" not in body
    assert plain.scorer is None


def test_releases_that_know_no_scorer_are_told_by_the_format_version(scored: Artifact) -> None:
    assert json.loads(scored.manifest.to_bytes())["format_version"] == 2


@pytest.mark.parametrize(
    "other",
    [
        ScorerOptions(kind="neighbours"),
        ScorerOptions(kind="ease"),
        ScorerOptions(kind="transitions", decay=0.5),
        ScorerOptions(kind="transitions", backoff=2.0),
        ScorerOptions(kind="transitions", gamma=0.25),
        ScorerOptions(kind="transitions", gamma=((0, 0.0), (5, 0.5))),
        ScorerOptions(kind="transitions", mixture="linear"),
        ScorerOptions(kind="transitions", most=1),
    ],
)
def test_every_choice_of_a_scorer_is_in_the_version(tokenizer: TitleTokenizer, other: ScorerOptions) -> None:
    versions = {built(tokenizer, each).version for each in (None, ScorerOptions(kind="transitions"), other)}
    assert len(versions) == 3


def test_the_ridge_of_ease_is_in_the_version_and_other_kinds_are_as_they_were(tokenizer: TitleTokenizer) -> None:
    versions = {built(tokenizer, ScorerOptions(kind="ease", ridge=ridge)).version for ridge in (1.0, 2.0)}
    assert len(versions) == 2
    body = json.loads(built(tokenizer, ScorerOptions(kind="transitions")).manifest.to_bytes())
    assert sorted(body["scorer"]) == ["backoff", "decay", "entries", "gamma", "kind", "mixture"]


def test_what_was_chosen_is_in_the_version(tokenizer: TitleTokenizer) -> None:
    options = BuildOptions(scorer=ScorerOptions(kind="transitions"))
    one, other = (
        build_artifact(make_catalogue(24), tokenizer, options, sequences=sequences)
        for sequences in (SEQUENCES, SEQUENCES[:2])
    )
    assert one.version != other.version


def test_items_that_are_left_out_leave_the_scorer_too() -> None:
    catalogue = Catalogue.build(
        item_ids=["a", "b", "c"], titles=["Tin Kite", "Paper Moon \U0001f319", "Salt"], frequency=np.array([1, 1, 1])
    )
    options = BuildOptions(scorer=ScorerOptions(kind="transitions", decay=0.0), on_unspellable="skip")
    made = build_artifact(catalogue, tokenizer_of("unigram"), options, sequences=[np.array([0, 1, 2], np.int32)])
    assert list(made.catalogue.item_ids) == ["a", "c"]
    assert made.scorer is not None
    assert items_after(made, 0) == [1]  # a, b, c became a, c
    assert items_after(made, 1) == []


def test_a_setting_of_another_kind_is_refused_before_the_titles_are_read(tokenizer: TitleTokenizer) -> None:
    with pytest.raises(CatalogueError, match=r"scorer\.ridge is 2\.0; transitions has none"):
        built(tokenizer, ScorerOptions(kind="transitions", ridge=2.0))


@pytest.mark.parametrize(
    ("array", "change"),
    [
        ("scorer_start", at(0, 1)),
        ("scorer_start", at(3, 9)),
        ("scorer_start", at(-1, 5)),
        ("scorer_item", at(0, -1)),
        ("scorer_item", at(0, 24)),
        ("scorer_item", lambda items: items[::-1].copy()),
        ("scorer_weight", at(2, 0.0)),
        ("scorer_weight", at(2, float("nan"))),
        ("scorer_weight", at(2, float("inf"))),
    ],
)
def test_arrays_that_are_no_scorers_are_refused_by_name(bundle: Path, array: str, change: Callable[[Any], Any]) -> None:
    reseal_arrays(bundle, "scorer.safetensors", **{array: change})
    with pytest.raises(ArtifactError, match=rf"scorer.safetensors: {array} is not a scorer's of 24 items"):
        load_artifact(bundle)


@pytest.mark.parametrize("array", ["scorer_start", "scorer_item", "scorer_weight"])
def test_arrays_of_other_lengths_are_refused(bundle: Path, array: str) -> None:
    reseal_arrays(bundle, "scorer.safetensors", **{array: lambda values: values[:-1]})
    with pytest.raises(ArtifactError, match=rf"scorer.safetensors: {array} is \[\d+\], expected \[\d+\]"):
        load_artifact(bundle, verify=False)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_scorer_that_is_gone_or_cut_is_refused(bundle: Path, damage: Callable[[Path], Any]) -> None:
    damage(bundle / "scorer.safetensors")
    with pytest.raises(ArtifactError, match=r"scorer.safetensors: "):
        load_artifact(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "magic"}, "scorer.kind is 'magic'"),
        ({"ridge": 1.0}, "scorer.ridge is 1.0; transitions has none"),
        ({"gamma": "0.5"}, "scorer.gamma is '0.5'"),
        ({"gamma": True}, "scorer.gamma is True"),
        ({"gamma": [[0, 0.5], [5, 2]]}, "scorer.gamma is 2 from 5 interactions on"),
        ({"gamma": [[2, 0.5]]}, "scorer.gamma begins at 2 interactions"),
        ({"entries": 6.0}, "scorer.entries is 6.0"),
        ({"entries": -1}, "scorer.entries is -1; 0 to 240000 can be"),
        ({"entries": 240_001}, "scorer.entries is 240001; 0 to 240000 can be"),
        ({"more": 1}, "unexpected keyword"),
    ],
)
def test_a_record_that_cannot_be_is_refused(scored: Artifact, changes: dict[str, Any], message: str) -> None:
    body = json.loads(scored.manifest.to_bytes())
    body["scorer"] |= changes
    with pytest.raises(ArtifactError, match=rf"manifest.json: .*(altered|{message})") as refused:
        Manifest.from_bytes(json.dumps(body).encode())
    assert "altered" not in str(refused.value) or "entries" in changes


def test_a_null_where_a_kind_has_nothing_is_no_way_to_write_the_same_artifact(scored: Artifact) -> None:
    body = json.loads(scored.manifest.to_bytes())
    body["scorer"]["ridge"] = None
    with pytest.raises(ArtifactError, match=r"manifest.json: altered"):
        Manifest.from_bytes(json.dumps(body, indent=2, sort_keys=True).encode() + b"\n")


@pytest.mark.parametrize("size", [-1, 1 << 40])
def test_a_scorer_larger_than_what_is_counted_is_refused_unread(scored: Artifact, size: int) -> None:
    record = PartRecord(sha256="0" * 64, bytes=size)
    lying = replace(scored.manifest, parts={**scored.manifest.parts, "scorer.safetensors": record})
    with pytest.raises(ArtifactError, match=rf"scorer.safetensors is {size} bytes"):
        Manifest.from_bytes(lying.to_bytes())


def test_a_scorer_without_its_file_and_a_file_without_its_scorer_are_refused(
    scored: Artifact, small_artifact: Artifact
) -> None:
    for manifest in (
        replace(scored.manifest, parts=small_artifact.manifest.parts),
        replace(scored.manifest, scorer=None),
    ):
        with pytest.raises(ArtifactError, match=r"parts are \[.*\], expected"):
            Manifest.from_bytes(manifest.to_bytes())
