"""`igd build` on titles that tokenizers stumble over: what it says, what it writes, and its exit code."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import pytest
from tokenizer_kinds import write_tokenizer

from igd_core.artifact import load_artifact
from igd_core.catalogue.tokenization import TitleTokenizer
from igd_core.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TITLES = ["The Quiet River", "The \U0001f98a Garden", "The Quiet River", "Return of the Dragon"]


def write_data(directory: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ("item_id", "title")) -> None:
    with (directory / "items.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    with (directory / "events.csv").open("w", newline="", encoding="utf-8") as file:
        events = [["u", row[0], 1_700_000_000 + at] for at, row in enumerate(rows)]
        csv.writer(file).writerows([["user_id", "item_id", "timestamp"], *events])


def build(directory: Path, tokenizer: Path, *more: str) -> int:
    files = ["--items", str(directory / "items.csv"), "--interactions", str(directory / "events.csv")]
    return main(["build", *files, "--tokenizer", str(tokenizer), "--out", str(directory / "out"), *more])


@pytest.fixture
def films(tmp_path: Path) -> Path:
    write_data(tmp_path, [[f"A-{at}", title] for at, title in enumerate(TITLES)])
    return tmp_path


def report_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    return made


def test_a_character_without_a_piece_refuses_the_file_with_its_row_and_the_flag(
    films: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = write_tokenizer("unigram", films / "tok")
    assert build(films, tokenizer) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "items.csv: row 3: title of item 'A-1' ('\U0001f98a') holds characters that the tokenizer has no piece" in line
    )
    assert "--on-unspellable skip" in line
    assert not (films / "out").exists()


def test_where_nobody_chose_two_items_that_are_left_no_scorer_is_made(
    films: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty scorer would have gamma 0.7 in every search."""
    tokenizer = write_tokenizer("unigram", films / "tok")
    pairs = [(user, item) for user in "abc" for item in ("A-1", "A-3")]  # one of each is left out
    rows = [f"{user},{item},{1_700_000_000 + at}" for at, (user, item) in enumerate(pairs)]
    (films / "events.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    assert build(films, tokenizer, "--on-unspellable", "skip", "--json") == 0
    out, err = capsys.readouterr()
    assert "scorer" not in json.loads(out)
    assert "events.csv: no item scorer is made of it, and lists are the model's alone: nobody chose two items" in err
    assert load_artifact(films / "out").manifest.scorer is None
    assert build(films, tokenizer, "--on-unspellable", "skip", "--gamma", "0.5", "--force") == 2
    assert "igd: gamma: no item scorer can be made of" in capsys.readouterr().err
    assert build(films, tokenizer, "--on-unspellable", "spell", "--json", "--force") == 0
    assert report_of(capsys)["scorer"] == "transitions+ease", "spelled, both are there"


def test_it_is_left_out_or_spelled_by_choice_and_the_report_says_so(
    films: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = write_tokenizer("unigram", films / "tok")
    assert build(films, tokenizer, "--on-unspellable", "skip", "--json") == 0
    skipped = report_of(capsys)
    assert (skipped["items"], skipped["unspellable_skipped"], skipped["unspellable_interactions"]) == (3, 1, 1)
    (example,) = skipped["unspellable_examples"]
    assert (example["row"], example["item_id"], example["spelled"]) == (3, "A-1", None)
    assert build(films, tokenizer, "--on-unspellable", "spell", "--force") == 0
    told = capsys.readouterr().out
    assert "row 3: item 'A-1': the tokenizer has no piece for '\U0001f98a': spelled 'The fox face Garden'" in told
    catalogue = load_artifact(films / "out").catalogue
    assert (catalogue.titles[1], catalogue.texts[1]) == (TITLES[1], "The fox face Garden")


@pytest.mark.parametrize("kind", ["gemma", "llama", "byte-level"])
def test_a_checkpoint_that_has_bytes_for_everything_builds(
    kind: str, films: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(films, write_tokenizer(kind, films / "tok"), "--json") == 0
    report = report_of(capsys)
    assert report["items"] == 4
    assert (report["items_sharing_paths"], report["shared_paths"]) == (2, 1)
    (example,) = report["shared_path_examples"]
    assert example == {
        "why": "the same text", "item_ids": ["A-0", "A-2"], "titles": [TITLES[0]] * 2, "items": 2,
    }  # fmt: skip


def test_people_read_which_items_share_a_path(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(films, [[str(at), "The Quiet River" if at % 2 else f"No {at}"] for at in range(12)])
    assert build(films, write_tokenizer("byte-level", films / "tok")) == 0
    told = capsys.readouterr().out
    assert "6 items of the same text: 1 'The Quiet River', 3 'The Quiet River', 5 " in told
    assert "7 'The Quiet River', ...\n" in told


def test_semantic_ids_are_added_when_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path, [["1", "A", "<x_1><y_10>"], ["2", "B", "<x_1><y_9>"]], ("item_id", "title", "sid"))
    tokenizer = write_tokenizer("byte-level", tmp_path / "tok")
    for flags in ((), ("--allow-special-tokens",)):
        assert build(tmp_path, tokenizer, "--path-column", "sid", *flags) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "item '1': the tokenizer does not hold the semantic ID '<x_1>' as a token; it lacks 3 of 3" in line
        assert "--extend-tokenizer DIR" in line
    extended = tmp_path / "extended"
    assert build(tmp_path, tokenizer, "--path-column", "sid", "--extend-tokenizer", str(extended), "--json") == 0
    assert report_of(capsys)["added_tokens"] == 3
    made, before = TitleTokenizer.from_directory(extended), TitleTokenizer.from_directory(tokenizer)
    artifact = load_artifact(tmp_path / "out")
    assert artifact.manifest.tokenizer_sha256 == made.fingerprint
    assert artifact.trie.path(artifact.leaf_of_item[1])[:2] == [before.vocab_size, before.vocab_size + 1]
    assert build(tmp_path, extended, "--path-column", "sid", "--allow-special-tokens", "--force") == 0
    assert "note: " not in capsys.readouterr().out
    again = tmp_path / "again"
    assert build(tmp_path, tokenizer, "--path-column", "sid", "--extend-tokenizer", str(again), "--force") == 0
    assert f"note: 3 tokens were added: the model's embedding needs {made.vocab_size} rows" in capsys.readouterr().out
