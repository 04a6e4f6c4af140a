"""Texts that a tokenizer cannot spell, items that share a path, and semantic IDs: what a build makes of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from factories import EOS
from tokenizer_kinds import tokenizer_of, write_tokenizer

from igd_core.artifact import BuildOptions, Built, build_artifact, build_reported, load_artifact, save_artifact
from igd_core.artifact.shared_paths import shared_paths
from igd_core.artifact.spelling import UnspellableError
from igd_core.catalogue.items import Catalogue
from igd_core.catalogue.semantic_ids import are_semantic_ids, codes_of, extend_tokenizer
from igd_core.catalogue.tokenization import TitleTokenizer
from igd_core.catalogue.transliteration import written_otherwise
from igd_core.errors import CatalogueError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

FOX = "The Quiet \U0001f98a"
TITLES = ["The Quiet River", FOX, "Return of the Dragon", "Pok\u00e9mon: The \u6771 Garden"]


def catalogue_of(titles: list[str], **more: Any) -> Catalogue:
    return Catalogue.build(
        item_ids=[f"i-{row}" for row in range(len(titles))],
        titles=titles,
        frequency=np.arange(1, len(titles) + 1),
        metadata={"year": list(range(len(titles)))},
        **more,
    )


def built(kind: str, titles: list[str], **options: Any) -> Built:
    return build_reported(catalogue_of(titles), tokenizer_of(kind), BuildOptions(**options))


def test_by_default_what_cannot_be_spelled_is_refused_by_item() -> None:
    with pytest.raises(UnspellableError, match="item 'i-1': the tokenizer has no piece for '\U0001f98a'; item 'i-3'"):
        built("unigram", TITLES)
    with pytest.raises(UnspellableError, match=r"'i-4': .*; and 3 more"):
        built("unigram", [f"{FOX} {number}" for number in "12345678"])


def test_items_that_cannot_be_spelled_are_left_out_with_all_that_is_theirs() -> None:
    made = built("unigram", TITLES, on_unspellable="skip")
    catalogue = made.artifact.catalogue
    assert list(catalogue.item_ids) == ["i-0", "i-2"]
    assert list(catalogue.titles) == [TITLES[0], TITLES[2]]
    assert catalogue.frequency.tolist() == [1, 3]
    assert list(catalogue.metadata["year"]) == [0, 2]
    assert catalogue.texts is catalogue.titles
    assert [fault.item for fault in made.spelled.faults] == [1, 3]
    assert made.spelled.written == {}
    alone = Catalogue.build(
        item_ids=["i-0", "i-2"],
        titles=[TITLES[0], TITLES[2]],
        frequency=np.array([1, 3]),
        metadata={"year": [0, 2]},
    )
    assert build_artifact(alone, tokenizer_of("unigram"), BuildOptions()).version == made.artifact.version
    with pytest.raises(UnspellableError, match="i-0"):
        built("unigram", [FOX], on_unspellable="skip")


@pytest.mark.parametrize("kind", ["unigram", "partial-bytes", "wordpiece"])
def test_other_characters_are_written_for_those_without_a_piece(kind: str, tmp_path: Path) -> None:
    made = built(kind, [*TITLES, "The \u201cLast\u201d River \u2013 \u00f8n"], on_unspellable="spell")
    catalogue = made.artifact.catalogue
    assert list(catalogue.titles[:4]) == TITLES  # people are shown what was given
    assert catalogue.texts[0] == TITLES[0]
    assert catalogue.texts[4].startswith("The ")
    written = made.spelled.written
    assert {1, 3} <= set(written)
    assert [catalogue.texts[row] for row in written] == list(written.values())
    assert written[1].startswith("The Quiet ")
    assert len(set(catalogue.texts)) == 5
    assert not tokenizer_of(kind).encode_paths(list(catalogue.texts), tolerant=True).faults
    save_artifact(made.artifact, tmp_path / "made")
    assert list(load_artifact(tmp_path / "made").catalogue.texts) == list(catalogue.texts)


def test_a_token_that_a_title_spells_is_taken_apart() -> None:
    made = built("unigram-bytes", ["The <0x0A> River", "The River"], on_unspellable="spell")
    assert made.spelled.written == {0: "The < 0x0A> River"}


def test_a_title_of_which_nothing_is_left_is_spelled_by_names() -> None:
    titles = ["\u0301", "The River"]
    assert built("wordpiece", titles, on_unspellable="spell").spelled.written == {0: "combining acute accent"}
    with pytest.raises(UnspellableError, match="item 'i-0': the tokenizer leaves nothing of its text"):
        built("wordpiece", titles)


def test_what_nothing_can_be_written_for_is_refused_even_then() -> None:
    words = {"a": 0, "River": 1, "\n": 2, "[UNK]": 3, "</s>": 4}
    definition: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }
    tokenizer = TitleTokenizer(definition, "</s>")
    with pytest.raises(UnspellableError, match="item 'i-1': the tokenizer has no piece for 'Dragon'"):
        build_artifact(catalogue_of(["River", "Dragon"]), tokenizer, BuildOptions(on_unspellable="spell"))
    with pytest.raises(UnspellableError, match="item 'i-1': its text would hold the control token '</s>'"):
        build_artifact(catalogue_of(["River", "</s>"]), tokenizer, BuildOptions())


def test_what_stands_for_a_character_is_what_people_would_write() -> None:
    assert [next(written_otherwise(char)) for char in "\u00e9\u00c9\ufb01\u2167\u00d8\u00e6\u2019\u2026\u0436"] == [
        "e", "E", "fi", "VIII", "O", "ae", "'", "...", "zhe",
    ]  # fmt: skip
    assert list(written_otherwise("\ue000")) == [" U+E000 ", " E000 "]  # has no name


def test_items_that_share_a_path_are_counted_with_the_reason(tokenizer: TitleTokenizer) -> None:
    same = ["Red River", "Red River", "Red River", "The Dam"]
    found = shared_paths(build_artifact(catalogue_of(same), tokenizer, BuildOptions()))
    assert (found.paths, found.items) == (1, 3)
    (example,) = found.examples
    assert example.why == "the same text"
    assert example.item_ids == ("i-2", "i-1", "i-0")  # the most popular first
    assert example.titles == ("Red River",) * 3
    long = [f"{'River ' * 40}{end}" for end in "ab"]
    cut = shared_paths(build_artifact(catalogue_of([*long, "Short"]), tokenizer, BuildOptions()))
    assert [each.why for each in cut.examples] == ["cut to the same beginning"]
    folded = shared_paths(
        build_artifact(catalogue_of(["Red River", "RED RIVER", "Dam"]), tokenizer_of("wordpiece"), BuildOptions())
    )
    assert [each.why for each in folded.examples] == ["the same to the tokenizer"]
    many = shared_paths(build_artifact(catalogue_of([f"No {at // 2}" for at in range(16)]), tokenizer, BuildOptions()))
    assert (many.paths, many.items, len(many.examples)) == (8, 16, 5)
    assert shared_paths(build_artifact(catalogue_of(["A", "B"]), tokenizer, BuildOptions())).examples == ()


CODES = ["<a_0><b_1>", "<a_0><b_99>", "<a_12><b_2>"]


@pytest.mark.parametrize("allowed", [True, False])
def test_semantic_ids_that_are_no_tokens_are_refused(tokenizer: TitleTokenizer, *, allowed: bool) -> None:
    catalogue = catalogue_of(["A", "B", "C"], texts=CODES)
    message = r"item 'i-1': .* the semantic ID '<b_99>' as a token; it lacks 2 of 5, which stand in 2 of 3 items"
    with pytest.raises(CatalogueError, match=message):
        build_artifact(catalogue, tokenizer, BuildOptions(allow_added_tokens=allowed))


def test_a_title_that_looks_like_a_code_is_a_title(tokenizer: TitleTokenizer) -> None:
    assert build_artifact(catalogue_of(["<x_99>", "The River"]), tokenizer, BuildOptions()).manifest.counts.leaves == 2


def test_a_token_with_a_role_cannot_stand_in_a_semantic_id(tokenizer: TitleTokenizer) -> None:
    catalogue = catalogue_of(["A", "B"], texts=["<a_0>", f"<a_1>{EOS}"])
    with pytest.raises(UnspellableError, match=r"item 'i-1': .*<\|im_end\|>"):
        build_artifact(catalogue, tokenizer, BuildOptions(allow_added_tokens=True))


def test_codes_are_told_from_words() -> None:
    assert codes_of(["<a_10><b_2>", "<a_9> and [c7]", "<b> [REC] 2 <|sid_0_3|>"]) == [
        "<a_9>", "<a_10>", "<b_2>", "<|sid_0_3|>", "[c7]",
    ]  # fmt: skip
    assert are_semantic_ids(["<a_1><b_2>", "<a_1> <b_3>"])
    assert not are_semantic_ids(["<a_1><b_2>", "The <a_1>"])


@pytest.mark.parametrize("kind", ["byte-level", "llama", "unigram"])
def test_semantic_ids_are_added_behind_the_tokens_that_are_there(kind: str, tmp_path: Path) -> None:
    directory = write_tokenizer(kind, tmp_path / "before")
    (directory / "chat_template.jinja").write_text("{{ messages }}", "utf-8")
    before = TitleTokenizer.from_directory(directory)
    codes = [code for code in codes_of(CODES) if before.id_of(code) is None]
    after = extend_tokenizer(before, directory, tmp_path / "after", codes=codes)
    assert [after.id_of(code) for code in codes] == list(range(before.vocab_size, before.vocab_size + len(codes)))
    assert after.extends(before)
    assert not before.extends(after)
    assert after.encode_plain("The River") == before.encode_plain("The River")
    assert (tmp_path / "after" / "chat_template.jinja").is_file()
    catalogue = catalogue_of(["A", "B", "C"], texts=CODES)
    made = build_artifact(catalogue, after, BuildOptions(allow_added_tokens=True))
    path = made.trie.path(made.leaf_of_item[1])
    assert path[:2] == [after.id_of("<a_0>"), after.id_of("<b_99>")]
    texts = after.token_texts(CODES[1], path)
    assert "".join(texts).startswith(CODES[1])
    with pytest.raises(ModelError, match="exists; give a new folder"):
        extend_tokenizer(before, directory, tmp_path / "after", codes=codes)


def test_a_tokenizer_whose_ids_would_change_is_refused(tmp_path: Path) -> None:
    directory = write_tokenizer("llama", tmp_path / "before")
    other = tokenizer_of("gemma")
    with pytest.raises(ModelError, match="changes ids that it has"):
        extend_tokenizer(other, directory, tmp_path / "after", codes=["<a_1>"])
