from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import oracles
import pytest
from factories import EOS, make_catalogue

from igd_core.artifact import BuildOptions, build_artifact
from igd_core.catalogue.items import Catalogue
from igd_core.errors import CatalogueError, InputError
from igd_core.ids import LeafIndex

if TYPE_CHECKING:
    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer


def build(tokenizer: TitleTokenizer, catalogue: Catalogue | None = None, **options: Any) -> Artifact:
    return build_artifact(catalogue or make_catalogue(30), tokenizer, BuildOptions(**options))


def test_the_same_inputs_give_the_same_version_and_bytes(tokenizer: TitleTokenizer) -> None:
    first, second = build(tokenizer), build(tokenizer)
    assert first.version == second.version
    assert first.manifest.to_bytes() == second.manifest.to_bytes()
    assert len(first.version) == 16


@pytest.mark.parametrize(
    "options",
    [
        {"name": "other"},
        {"model_id": "some/model"},
        {"alpha": 0.1},
        {"beams": 40},
        {"smoothing": 1.0},
        {"max_path_tokens": 8},
        {"path_column": "text"},
        {"instruction": "Other:\n"},
        {"bullet": ""},
        {"suffix": "Next:"},
        {"max_history": 4},
        {"drop_block": 1},
    ],
)
def test_every_choice_is_part_of_the_version(tokenizer: TitleTokenizer, options: dict[str, Any]) -> None:
    assert build(tokenizer, **options).version != build(tokenizer).version


@pytest.mark.parametrize("part", ["item_ids", "titles", "texts", "frequency", "metadata"])
def test_everything_in_the_catalogue_is_part_of_the_version(tokenizer: TitleTokenizer, part: str) -> None:
    catalogue = make_catalogue(30)
    changes = {
        "item_ids": ["other", *catalogue.item_ids[1:]],
        "titles": ["Other", *catalogue.titles[1:]],
        "texts": ["Other", *catalogue.texts[1:]],
        "frequency": catalogue.frequency + 1,
        "metadata": {**catalogue.metadata, "year": [1900] * 30},
    }
    changed: Catalogue = replace(catalogue, **{part: changes[part]})  # type: ignore[arg-type]
    assert build(tokenizer, changed).version != build(tokenizer, catalogue).version


def test_the_manifest_counts_what_was_built(tokenizer: TitleTokenizer) -> None:
    catalogue = make_catalogue(60)
    built = build(tokenizer, catalogue, max_path_tokens=9)
    paths = [tuple(built.trie.path(LeafIndex(leaf))) for leaf in built.leaf_of_item.tolist()]
    counts = built.manifest.counts
    assert counts.items == 60
    assert counts.leaves == len(set(paths))
    assert counts.nodes == counts.edges + 1 == len({path[:at] for path in paths for at in range(len(path) + 1)})
    assert counts.depth == max(map(len, paths)) == 9
    assert counts.cold == np.count_nonzero(catalogue.frequency == 0)
    assert counts.truncated == sum(len(tokenizer.encode_plain(text + "\n")) > 8 for text in catalogue.texts)
    prior = (catalogue.frequency / catalogue.frequency.sum()).tolist()
    assert built.manifest.entropy_nats == pytest.approx(oracles.entropy(paths, prior, ()))
    assert (built.manifest.eos_id, built.manifest.vocab_size) == (tokenizer.eos_id, tokenizer.vocab_size)
    assert built.manifest.tokenizer_sha256 == tokenizer.fingerprint


def test_popular_leaves_fall_by_prior_with_ties_in_catalogue_order(tokenizer: TitleTokenizer) -> None:
    names = [f"Film {row}" for row in range(6)]
    titles = [*names[:5], names[0]]
    catalogue = Catalogue.build(item_ids=names, titles=titles, frequency=np.array([1, 3, 3, 0, 4, 3]))
    built = build(tokenizer, catalogue)
    ranked = [titles[built.trie.items_of(LeafIndex(leaf))[0]] for leaf in built.popular_leaves().tolist()]
    assert ranked == ["Film 0", "Film 4", "Film 1", "Film 2", "Film 3"]
    assert built.leaf_prior[built.popular_leaves()] == pytest.approx(np.array([4, 4, 3, 3, 0]) / 14)


def test_smoothing_tells_cold_items_apart(tokenizer: TitleTokenizer) -> None:
    catalogue = replace(make_catalogue(30), frequency=np.zeros(30, dtype=np.int64))
    with pytest.raises(CatalogueError, match="no item was ever interacted with"):
        build(tokenizer, catalogue)
    even = build(tokenizer, catalogue, smoothing=1.0)
    assert even.leaf_prior.sum() == pytest.approx(1.0)
    assert even.manifest.entropy_nats <= math.log(30)


def test_semantic_ids_are_an_explicit_choice(tokenizer: TitleTokenizer) -> None:
    catalogue = replace(make_catalogue(2), texts=["<a_0><b_1>", "<a_0><b_2>"])
    assert build(tokenizer, catalogue, allow_added_tokens=True).manifest.counts.edges == 7
    assert build(tokenizer, catalogue).manifest.counts.edges > 7
    with pytest.raises(CatalogueError, match=r"item 'item-1': .*<\|im_end\|>"):
        build(tokenizer, replace(catalogue, texts=["<a_0>", f"<a_1>{EOS}"]), allow_added_tokens=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"^alpha: 1\.5 is not in 0\.\.1$"),
        ({"alpha": math.nan}, "^alpha: nan is not in"),
        ({"max_path_tokens": 2}, r"^max_path_tokens: 2 is not in 3\.\.512$"),
        ({"max_path_tokens": 513}, "^max_path_tokens: 513 is not in"),
        ({"smoothing": -1.0}, r"^smoothing: -1\.0 is not in"),
        ({"max_history": 0}, "^max_history: 0 is not in"),
        ({"drop_block": 11}, r"drop_block is 11; it must lie in 1\.\.10"),
        ({"instruction": "", "bullet": ""}, "prompt template is empty"),
    ],
)
def test_options_out_of_range_are_refused_with_the_value(
    tokenizer: TitleTokenizer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_artifact(make_catalogue(30), tokenizer, BuildOptions.read(options))


@pytest.mark.parametrize("column", [[1, "a"], [True, 2], [("a",), "b"], [2**70, 1], ["\ud800", "x"]])
def test_a_metadata_column_of_mixed_kinds_is_refused_by_name(tokenizer: TitleTokenizer, column: list[Any]) -> None:
    def made() -> None:
        names = ["a", "b"]
        frequency = np.array([1, 1])
        build(
            tokenizer,
            Catalogue.build(item_ids=names, titles=names, frequency=frequency, metadata={"colour": column}),
        )

    with pytest.raises(CatalogueError, match=r"'colour': its values are not of one kind|colour .* the column is"):
        made()
