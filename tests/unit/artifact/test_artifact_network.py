"""A network as the scorer of an artifact: on disk and back, named by its content, and refused where it lies."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.numpy
from bundles import assert_same_artifact, at, contents, reseal, reseal_arrays
from factories import make_catalogue

from igd_core.artifact import Artifact, BuildOptions, Manifest, build_artifact, load_artifact, save_artifact
from igd_core.artifact.counts import PartRecord
from igd_core.errors import ArtifactError
from igd_core.ids import ItemIndex
from igd_core.scorers.network import NetworkPart, NetworkRecord
from igd_core.scorers.options import ScorerOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from igd_core.catalogue.items import Catalogue
    from igd_core.catalogue.tokenization import TitleTokenizer

NUM_ITEMS = 24
NETWORK = NetworkRecord(width=4, layers=2, heads=2, length=3, temperature=1.5, background=0.25)
HISTORY = [ItemIndex(3), ItemIndex(1)]


def random_network(catalogue: Catalogue, sequences: Sequence[NDArray[np.int32]]) -> NetworkPart:
    """Trained on nothing; its seed is how much there was to train on."""
    rng = np.random.default_rng(len(sequences))
    shapes = NETWORK.shapes(len(catalogue))
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return NetworkPart(network=NETWORK, tensors=tensors)


def built(tokenizer: TitleTokenizer, *, people: int = 2, **options: Any) -> Artifact:
    made = BuildOptions(name="small", scorer=ScorerOptions(kind="sasrec", makers={"sasrec": random_network}, **options))
    sequences = [np.array([0, 1], np.int32)] * people
    return build_artifact(make_catalogue(NUM_ITEMS), tokenizer, made, sequences=sequences)


@pytest.fixture(scope="module")
def scored(tokenizer: TitleTokenizer) -> Artifact:
    return built(tokenizer, gamma=0.25)


@pytest.fixture(scope="module")
def pristine(scored: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("network") / "bundle"
    save_artifact(scored, directory)
    return directory


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "bundle")


def test_what_is_loaded_is_what_was_saved(scored: Artifact, pristine: Path, tmp_path: Path) -> None:
    loaded = load_artifact(pristine)
    assert_same_artifact(loaded, scored)
    assert loaded.scorer is not None
    assert scored.scorer is not None
    assert loaded.scorer.fingerprint == scored.scorer.fingerprint
    assert np.array_equal(loaded.scorer.mass(HISTORY).mass, scored.scorer.mass(HISTORY).mass)
    record = json.loads((pristine / "manifest.json").read_bytes())["scorer"]
    assert sorted(record) == ["gamma", "kind", "mixture", "network"]
    save_artifact(loaded, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(pristine)


def test_every_choice_is_in_the_version(tokenizer: TitleTokenizer, scored: Artifact) -> None:
    others = [built(tokenizer), built(tokenizer, gamma=0.25, mixture="linear"), built(tokenizer, people=3, gamma=0.25)]
    assert len({scored.version, *(each.version for each in others)}) == 4


@pytest.mark.parametrize("tensor", sorted(NETWORK.shapes(NUM_ITEMS)))
def test_a_tensor_that_is_damaged_is_refused_by_name(bundle: Path, tensor: str) -> None:
    def last(value: float) -> Callable[[Any], Any]:
        return lambda values: at(-1, value)(values.reshape(-1)).reshape(values.shape)

    reseal_arrays(bundle, "scorer.safetensors", **{tensor: last(float("nan"))})
    with pytest.raises(ArtifactError, match=rf"scorer.safetensors: {tensor} is not a scorer's of 24 items"):
        load_artifact(bundle)
    reseal_arrays(bundle, "scorer.safetensors", **{tensor: lambda values: values[..., :-1].copy()})
    with pytest.raises(ArtifactError, match=rf"scorer.safetensors: {tensor} is \[[\d, ]+\], expected \[[\d, ]+\]"):
        load_artifact(bundle, verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("item"), r"scorer.safetensors: holds \["),
        (lambda arrays: arrays.update(more=np.zeros(1, np.float32)), r"scorer.safetensors: holds \["),
        (
            lambda arrays: arrays.update(norm_bias=arrays["norm_bias"].astype(np.float16)),
            r"scorer.safetensors: norm_bias is F16 x 4, expected F32",
        ),
    ],
)
def test_other_tensors_are_refused(bundle: Path, change: Callable[[Any], Any], message: str) -> None:
    arrays = safetensors.numpy.load_file(bundle / "scorer.safetensors")
    change(arrays)
    reseal(bundle, "scorer.safetensors", safetensors.numpy.save(arrays))
    with pytest.raises(ArtifactError, match=message):
        load_artifact(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": None}, "scorer.network is None"),
        ({"network": [1]}, r"scorer.network is \[1\]"),
        ({"network": {"width": 4}}, "missing 5 required"),
        ({"entries": 3}, "scorer.entries is 3; sasrec has none"),
        ({"decay": 0.5}, "scorer.decay is 0.5; sasrec has none"),
        ({"kind": "ease"}, r"scorer.network is \{.*; ease has none"),
    ],
)
def test_a_record_that_cannot_be_is_refused(scored: Artifact, changes: dict[str, Any], message: str) -> None:
    body = json.loads(scored.manifest.to_bytes())
    body["scorer"] |= changes
    with pytest.raises(ArtifactError, match=rf"manifest.json: .*{message}"):
        Manifest.from_bytes(json.dumps(body).encode())


def test_a_file_larger_than_its_network_is_refused_unread(scored: Artifact) -> None:
    record = PartRecord(sha256="0" * 64, bytes=1 << 20)
    lying = replace(scored.manifest, parts={**scored.manifest.parts, "scorer.safetensors": record})
    with pytest.raises(ArtifactError, match=r"scorer.safetensors is 1048576 bytes"):
        Manifest.from_bytes(lying.to_bytes())


def test_a_network_of_more_items_than_can_be_served_is_refused(scored: Artifact) -> None:
    lying = replace(scored.manifest, counts=replace(scored.manifest.counts, items=100_001))
    with pytest.raises(ArtifactError, match=r"counts\.items is 100001; a scorer's network knows 100000 at most"):
        Manifest.from_bytes(lying.to_bytes())


def test_a_mean_of_kinds_is_loaded_as_it_was_saved_and_its_share_is_in_the_version(
    tokenizer: TitleTokenizer, scored: Artifact, tmp_path: Path
) -> None:
    made = [built(tokenizer, gamma=0.25, also=("transitions", "ease"), share=share) for share in (0.5, 0.25)]
    assert len({scored.version, *(each.version for each in made)}) == 3
    save_artifact(made[0], tmp_path / "bundle")
    loaded = load_artifact(tmp_path / "bundle")
    assert_same_artifact(loaded, made[0])
    assert loaded.scorer is not None
    assert made[0].scorer is not None
    assert loaded.scorer.fingerprint == made[0].scorer.fingerprint
    assert np.array_equal(loaded.scorer.mass(HISTORY).mass, made[0].scorer.mass(HISTORY).mass)
    save_artifact(loaded, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("array", "change", "message"),
    [
        ("also1.scorer_item", at(0, NUM_ITEMS), "also1.scorer_item is not a scorer's of 24 items"),
        ("also1.scorer_start", lambda values: values[:-1].copy(), r"also1.scorer_start is \[24\], expected \[25\]"),
        ("item", lambda values: values * np.float32("nan"), "item is not a scorer's of 24 items"),
    ],
)
def test_of_a_mean_each_array_is_checked(
    tokenizer: TitleTokenizer, tmp_path: Path, array: str, change: Callable[[Any], Any], message: str
) -> None:
    save_artifact(built(tokenizer, also=("transitions",)), tmp_path / "bundle")
    reseal_arrays(tmp_path / "bundle", "scorer.safetensors", **{array: change})
    with pytest.raises(ArtifactError, match=rf"scorer.safetensors: {message}"):
        load_artifact(tmp_path / "bundle")
