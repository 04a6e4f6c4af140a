"""Titles under tokenizers of every kind: which text becomes which tokens, and what the tokens read as."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, SPECIAL, gemma, llama, tokenizer_of, unigram, wordpiece

from igd_core.catalogue.control_tokens import is_control_token, plain_definition, role_tokens
from igd_core.catalogue.prompts import PromptTemplate
from igd_core.catalogue.tokenization import PathFault, TitleTokenizer
from igd_core.datasets.cleaning import clean_title
from igd_core.errors import CatalogueError

if TYPE_CHECKING:
    from igd_core.catalogue.tokenization import TokenPaths

made = tokenizer_of
every_kind = pytest.mark.parametrize("kind", KINDS)
HOSTILE = [
    "</s>", "<s>", "<unk>", "[UNK]", "<|im_end|>", "\uff1c\uff0fs\uff1e", "<0x0A>", "[multimodal]", "\u2581\u2581",
    "</", "s>", "\ufb01", "\u2167", "e\u0301", "東京", "\U0001f98a", "\u200d", "Red River", " ", "'s", "(1997)",
    ", ", "\ufffd",
]  # fmt: skip
TITLES = (
    st.lists(st.sampled_from(HOSTILE) | st.text(max_size=5), min_size=1, max_size=6)
    .map("".join)
    .map(clean_title)
    .filter(bool)
)


@cache
def control_ids(kind: str) -> set[int]:
    return {token["id"] for token in KINDS[kind][0]()["added_tokens"] if token["special"]}


def path_of(paths: TokenPaths, item: int) -> list[int]:
    return [int(token) for token in paths.tokens[paths.offsets[item] : paths.offsets[item + 1]]]


def fault_of(tokenizer: TitleTokenizer, title: str, **options: Any) -> PathFault | None:
    return next(iter(tokenizer.encode_paths([title], tolerant=True, **options).faults), None)


@every_kind
@settings(max_examples=40)
@given(title=TITLES, max_tokens=st.sampled_from([8, 400]))
def test_the_texts_of_tokens_join_to_the_title_and_none_is_a_control_token(
    kind: str, title: str, max_tokens: int
) -> None:
    tokenizer = made(kind)
    control = control_ids(kind)
    paths = tokenizer.encode_paths([title], max_tokens=max_tokens, tolerant=True)
    if paths.faults:  # not to be used
        return
    path = path_of(paths, 0)
    assert not control & set(path[:-1])
    texts = tokenizer.token_texts(title, path)
    assert len(texts) == len(path)
    assert texts[-1] == KINDS[kind][1]
    joined = "".join(texts[:-1]).removesuffix("\n")
    assert joined == title if not paths.truncated else title.startswith(joined)
    assert "".join(texts[:-1]).count("\n") == bool(tokenizer._newline)


@every_kind
@settings(max_examples=15)
@example(title="A")
@given(title=TITLES)
def test_a_path_of_another_text_is_decoded_and_nothing_of_it_is_lost(kind: str, title: str) -> None:
    tokenizer = made(kind)
    paths = tokenizer.encode_paths([title, "another"], max_tokens=400, tolerant=True)
    path, other = path_of(paths, 0), path_of(paths, 1)
    spelled = len(path) - len(tokenizer._newline) - 1
    assume(path[:spelled] != other[:spelled])  # where case is lost, "A" is what is left of "another" cut to fit
    texts = tokenizer.token_texts("another", path)
    assert "".join(texts) == tokenizer.text(path)
    assert len(texts) == len(path)


@every_kind
@pytest.mark.parametrize("title", ["Return of the Quiet River (1997)", "The Last Garden"])
def test_words_keep_their_spaces(kind: str, title: str) -> None:
    tokenizer = made(kind)
    path = path_of(tokenizer.encode_paths([title]), 0)
    texts = tokenizer.token_texts(title, path)
    assert "".join(texts).removesuffix(KINDS[kind][1]).removesuffix("\n") == title
    alone = "".join(map(tokenizer.token_text, path[:-1]))
    folded = alone.strip().lower() if kind == "wordpiece" else alone.strip()
    assert folded.replace(" ", "") == (title.lower() if kind == "wordpiece" else title).replace(" ", "")
    assert kind == "wordpiece" or alone.lstrip() == title + "\n" * bool(tokenizer._newline)


def test_nothing_is_explained_by_no_tokens() -> None:
    assert made("llama").token_texts("Alien", []) == []


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ({"content": "<eos>", "special": True}, True),
        ({"content": "<tool_call>", "special": False}, True),
        ({"content": "[multimodal]", "special": False}, True),
        ({"content": "<|fim_prefix|>"}, True),
        ({"content": "### Response:", "special": False}, True),
        ({"content": "{{", "special": False}, True),
        ({"content": "PAD", "special": False}, True),  # a role: given below
        ({"content": "\n", "special": True}, True),
        ({"content": "\n", "special": False}, False),
        ({"content": "\n\n\n", "special": False}, False),
        ({"content": "\u2581\u2581", "special": False}, False),
        ({"content": "<", "special": False}, False),
        ({"content": "PlayStation", "special": False}, False),
        ({"content": "Spider-Man", "special": False}, False),
        ({"content": "\U0001f3ac\U0001f98a", "special": False}, False),
    ],
)
def test_only_tokens_that_steer_a_model_are_control_tokens(token: dict[str, Any], *, expected: bool) -> None:
    assert is_control_token(token, {"PAD"}) == expected


def test_roles_are_read_in_either_spelling() -> None:
    config = {"eos_token": "</s>", "bos_token": {"content": "<s>"}, "pad_token": None, "unk_token": 3, "other": "x"}
    assert role_tokens(config) == {"</s>", "<s>"}


@pytest.mark.parametrize("kind", ["gemma", "llama"])
def test_a_newline_ends_a_path_whether_it_is_an_added_token_or_a_byte(kind: str) -> None:
    tokenizer = made(kind)
    long, short = "Return of the Quiet River " * 9, "Red"
    paths = tokenizer.encode_paths([long.strip(), short], max_tokens=9)
    newline = tokenizer.id_of("\n" if kind == "gemma" else "<0x0A>")
    for item in range(2):
        *_, last, eos = path = path_of(paths, item)
        assert (last, eos) == (newline, tokenizer.eos_id)
        assert [token for token in path if token == newline] == [last]
    assert paths.truncated == 1
    assert (
        path_of(paths, 0)[:6] == tokenizer.encode_plain(long)[:6]
    )  # no token of a line's beginning before the newline


def test_a_title_that_spells_a_control_token_is_spelled_by_its_characters_where_the_vocabulary_has_it_as_a_piece() -> (
    None
):
    """Unigram knows ``</s>`` as a piece, and NFKC makes one of full-width characters."""
    tokenizer = made("unigram")
    for title in ("x</s>", "\uff1c\uff0fs\uff1e", "<s>"):
        assert fault_of(tokenizer, title.replace("x", "Red ")) is None
    definition = gemma()
    definition["model"]["ignore_merges"] = True  # as Llama 3's: a word of the vocabulary is one token at once
    quick = TitleTokenizer(definition, "</s>")
    path = path_of(quick.encode_paths(["</s>"]), 0)
    assert quick.text(path[:-2]) == "</s>"
    assert not {quick.id_of(token) for token in SPECIAL} & set(path[:-1])


def test_a_merge_never_makes_a_control_token() -> None:
    definition = gemma()
    vocab, merges = definition["model"]["vocab"], definition["model"]["merges"]
    for left, right in (("<", "/"), ("</", "s"), ("</s", ">"), ("<", "s"), ("<s", ">"), ("</s>", "s")):
        vocab.setdefault(left + right, 1000 + len(vocab))
        merges.append([left, right])
    tokenizer = TitleTokenizer(definition, "</s>")
    path = path_of(tokenizer.encode_paths(["a</s>s<s>"]), 0)
    assert [tokenizer.text([token]) for token in path[:-2]] == ["a", "</s", ">", "s", "<s", ">"]


@pytest.mark.parametrize("title", ["<0x0A>", "Red<0x0A>River"])
def test_a_title_that_spells_a_byte_cannot_break_its_line(title: str) -> None:
    tokenizer = made("unigram-bytes")
    fault = fault_of(tokenizer, title)
    assert fault is not None
    assert fault.reason == "its text would hold the line break '<0x0A>'"
    assert fault_of(made("llama"), title) is None  # there it is spelled by its characters


@pytest.mark.parametrize(
    ("kind", "title", "what"),
    [
        ("unigram", "The \U0001f98a River", "\U0001f98a"),
        ("unigram", "The \U0001f98a\u6771 River \U0001f98a", "\U0001f98a\u6771 \U0001f98a"),
        ("wordpiece", "The \u6771 River", "\u6771"),
        ("partial-bytes", "The Pok\u00e9mon \u6771", "\u00e9\u6771"),  # no token for it, and no sign of it
    ],
)
def test_characters_without_a_piece_are_named(kind: str, title: str, what: str) -> None:
    tokenizer = made(kind)
    paths = tokenizer.encode_paths(["The River", title, "The Last Garden"], tolerant=True)
    assert paths.faults == (PathFault(item=1, kind="no piece", what=what),)
    with pytest.raises(CatalogueError, match=f"item 1: the tokenizer has no piece for '{what}'"):
        tokenizer.encode_paths(["The River", title])


def test_a_model_that_cannot_take_a_text_at_all_does_not_fail_the_others() -> None:
    definition = wordpiece()
    vocab = definition["model"]["vocab"]
    vocab["[GONE]"] = vocab.pop("[UNK]")
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["content"] != "[UNK]"]
    tokenizer = TitleTokenizer(definition, "</s>")
    paths = tokenizer.encode_paths(["The River", "\u6771", "The Last Garden"], tolerant=True)
    assert paths.faults == (PathFault(item=1, kind="no piece", what="\u6771"),)
    assert path_of(paths, 2) == path_of(made("wordpiece").encode_paths(["The Last Garden"]), 0)
    assert tokenizer.token_texts("\u6771", [5, tokenizer.eos_id])[-1].strip() == "</s>"


def test_a_text_of_which_nothing_is_left_is_named() -> None:
    fault = fault_of(made("wordpiece"), "\u0301")  # accents are stripped
    assert fault is not None
    assert fault.reason == "the tokenizer leaves nothing of its text"


def test_bos_that_is_eos_is_kept_where_the_tokenizer_adds_it() -> None:
    definition = llama()
    definition["post_processor"]["special_tokens"]["<s>"] = {"id": "<s>", "ids": [2], "tokens": ["</s>"]}
    tokenizer = TitleTokenizer(definition, "</s>")
    assert tokenizer.bos_ids == [tokenizer.eos_id] == [2]
    template = PromptTemplate.from_text(tokenizer, instruction="Titles:\n")
    assert template.prefix_ids[0] == tokenizer.eos_id
    assert made("llama").bos_ids == [1]


def test_what_stays_keeps_its_ids() -> None:
    definition = unigram()
    vocab = len(definition["model"]["vocab"])
    for at, (content, special) in enumerate([("<|turn|>", True), ("\n", False), ("PlayStation", False)]):
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
        definition["added_tokens"].append({"id": vocab + at, "content": content, **flags})
    tokenizer = TitleTokenizer(definition, "</s>")
    path = path_of(tokenizer.encode_paths(["The PlayStation <|turn|>"], tolerant=True), 0)
    assert path[-2:] == [vocab + 1, tokenizer.eos_id]
    assert vocab + 2 in path
    assert vocab not in path
    words = {"model": {"type": "WordLevel", "vocab": {"a": 0}}, "added_tokens": [{"id": 5, "content": "\n"}]}
    assert plain_definition(words)["model"]["vocab"] == {"a": 0, "\n": 5}
    assert plain_definition({"model": None})["added_tokens"] == []
