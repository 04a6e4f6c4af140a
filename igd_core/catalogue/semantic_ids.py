"""Semantic IDs: items spelled by codes such as ``<a_12><b_7>``, each one token of the tokenizer."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from igd_core.catalogue.tokenization import TitleTokenizer, read_json
from igd_core.errors import CatalogueError, ModelError
from igd_core.whole_files import replaced_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_CODE = r"[<\[]\|?[A-Za-z][A-Za-z0-9_-]*?[0-9]+\|?[>\]]"
_CODES = re.compile(_CODE)
_NOTHING_ELSE = re.compile(rf"(?:{_CODE}\s*)+")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_BESIDE = ("special_tokens_map.json", "chat_template.jinja")


def codes_of(texts: Iterable[str]) -> list[str]:
    """The distinct codes in ``texts``, sorted by level and number."""
    found = {code for text in texts for code in _CODES.findall(text)}
    return sorted(found, key=lambda code: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", code)])


def are_semantic_ids(texts: Iterable[str]) -> bool:
    """Whether every text consists of codes alone."""
    return all(map(_NOTHING_ELSE.fullmatch, texts))


def require_codes(tokenizer: TitleTokenizer, texts: Sequence[str], item_ids: Sequence[str]) -> None:
    """Refuse codes that the tokenizer lacks as tokens and would spell by their characters.

    Raises:
        CatalogueError: names the first such code, its item, and how many there are.
    """
    codes = codes_of(texts)
    lacking = {code for code in codes if tokenizer.id_of(code) is None}
    if not lacking:
        return
    places = [at for at, text in enumerate(texts) if not lacking.isdisjoint(_CODES.findall(text))]
    first = next(code for code in _CODES.findall(texts[places[0]]) if code in lacking)
    raise CatalogueError(
        f"item {item_ids[places[0]]!r}: the tokenizer does not hold the semantic ID {first!r} as a token; it lacks "
        f"{len(lacking):,} of {len(codes):,}, which stand in {len(places):,} of {len(texts):,} items "
        "(--extend-tokenizer DIR writes a tokenizer that has them)"
    )


def extend_tokenizer(tokenizer: TitleTokenizer, directory: Path, out: Path, *, codes: Sequence[str]) -> TitleTokenizer:
    """Add ``codes`` to ``tokenizer``, read from ``directory``, after its highest id, and write the result to ``out``.

    Raises:
        ModelError: ``out`` holds something else, or ids would change.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out}: exists; give a new folder for the tokenizer with the semantic IDs")
    definition, config = (read_json(directory / name) for name in _TOKENIZER)
    extended = _extended(definition, codes)
    with replaced_folder(out) as new:
        (new / _TOKENIZER[0]).write_text(json.dumps(extended, ensure_ascii=False), "utf-8")
        (new / _TOKENIZER[1]).write_text(json.dumps(config, ensure_ascii=False), "utf-8")
        for name in _BESIDE:
            if (directory / name).is_file():
                shutil.copyfile(directory / name, new / name)
    after = TitleTokenizer.from_directory(out)
    if not after.extends(tokenizer):
        raise ModelError(
            f"{directory}: adding tokens to this tokenizer changes ids that it has; add them to the checkpoint"
        )
    return after


def _extended(definition: dict[str, Any], codes: Sequence[str]) -> dict[str, Any]:
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    tokenizer.add_tokens([AddedToken(code, normalized=False, special=False) for code in codes])
    extended: dict[str, Any] = json.loads(tokenizer.to_str())
    return extended
