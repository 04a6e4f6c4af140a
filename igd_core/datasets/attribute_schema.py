"""How the columns of an items file become attributes: a small JSON file beside it, which people can edit.

    {
      "format": "igd-attributes",
      "format_version": 1,
      "attributes": {
        "release_year": {"type": "integer"},
        "genres": {"type": "list-of-text", "separator": "|"},
        "price": {"type": "number", "missing": ["n/a"], "decimal": "comma"},
        "description": {"type": "ignore"}
      }
    }

`igd data prepare` writes ``items.schema.json`` beside its ``items.csv``. Every command that reads ``X.csv`` looks for
``X.schema.json``. Columns that the schema does not name get the type that their cells show.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from igd_core.catalogue.attribute_types import IGNORE, AttributeType
from igd_core.datasets.decimals import DECIMALS, NAMES, Decimal
from igd_core.errors import DataError
from igd_core.regular_files import read_regular

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

FORMAT = "igd-attributes"
FORMAT_VERSION = 1
LIST_SEPARATOR = "|"
_SUFFIX = ".schema.json"
_PACKED = frozenset({".gz", ".bz2", ".xz", ".zst"})
_KEYS = frozenset({"type", "separator", "missing", "decimal"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnRule:
    """How to read a column's cells.

    Attributes:
        type: the attribute's type; None for the type that the cells show.
        ignored: the column does not become an attribute.
        separator: between the values of a list in one cell; None where cells are lists already, or hold one value.
        missing: texts that mean no value, besides the empty text.
        decimal: the character before the fraction, in numbers written as text; None for numbers as programs write them:
            a point, nothing between thousands, no currency (`igd_core.datasets.decimals`).
    """

    type: AttributeType | None = None
    ignored: bool = False
    separator: str | None = None
    missing: frozenset[str] = frozenset()
    decimal: Decimal | None = None


SHOWN = ColumnRule()
"""The rule of a column for which none is given."""


def schema_path(items: Path) -> Path:
    """Path of an items file's schema: ``items.schema.json`` for ``items.csv`` or ``items.csv.gz``."""
    plain = items.with_suffix("") if items.suffix in _PACKED else items
    return plain.with_name(plain.stem + _SUFFIX)


def read_schema(path: Path) -> dict[str, ColumnRule]:
    """Read the rules of a schema file, by column.

    Raises:
        DataError: names the file, the attribute and the key.
    """
    try:
        raw = read_regular(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise DataError(f'{path}: no schema of attributes: "format" is not "{FORMAT}"')
    if body.get("format_version") != FORMAT_VERSION:
        raise DataError(f"{path}: format_version {body.get('format_version')!r}; this release reads {FORMAT_VERSION}")
    attributes = body.get("attributes")
    if not isinstance(attributes, dict):
        raise DataError(f"{path}: attributes is no object of columns")
    return {name: rule_of(f"{path}: attribute {name!r}", written) for name, written in attributes.items()}


def rules_beside(items: Path) -> dict[str, ColumnRule]:
    """Read the rules of the schema beside an items file; none if there is no schema.

    Raises:
        DataError: the schema is wrong.
    """
    if not items.name:  # "." and "/" are no files; the reader of the items says so
        return {}
    path = schema_path(items)
    return read_schema(path) if path.is_file() else {}


def schema_text(types: Mapping[str, AttributeType], separators: Mapping[str, str]) -> str:
    """The schema file of columns that were written with these types and these separators of lists."""
    attributes = {
        name: {"type": kind.name} | ({"separator": separators[name]} if kind.is_list else {})
        for name, kind in types.items()
    }
    body = {"format": FORMAT, "format_version": FORMAT_VERSION, "attributes": attributes}
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def rule_json(rule: ColumnRule) -> dict[str, Any]:
    """A rule as a schema file writes it; inverse of `rule_of`."""
    written: dict[str, Any] = {}
    if rule.ignored or rule.type is not None:
        written["type"] = IGNORE if rule.type is None else rule.type.name
    if rule.separator is not None:
        written["separator"] = rule.separator
    if rule.missing:
        written["missing"] = sorted(rule.missing)
    if rule.decimal is not None:
        written["decimal"] = NAMES[rule.decimal]
    return written


def with_flags(
    rules: Mapping[str, ColumnRule],
    *,
    types: Iterable[tuple[str, str]] = (),
    separators: Iterable[tuple[str, str]] = (),
    missing: Iterable[tuple[str, str]] = (),
) -> dict[str, ColumnRule]:
    """Rules changed by a command's flags ``--type``, ``--multi`` and ``--missing``, given as (column, value).

    Raises:
        DataError: no such type; or a separator for a column whose type is not a list.
    """
    changed = dict(rules)
    typed = dict(types)
    for name, written in typed.items():
        changed[name] = _typed(changed.get(name, SHOWN), f"--type {name}={written}", written)
    for name, separator in separators:
        if not separator:
            raise DataError(f"column {name!r}: the separator of its values is empty")
        rule = changed.get(name, SHOWN)
        kind = rule.type or AttributeType(base="text")
        if name in typed and not kind.is_list:
            raise DataError(f"--multi {name}={separator}: --type says that it is {kind.name}, which is no list")
        changed[name] = replace(rule, type=replace(kind, is_list=True), separator=separator)
    for name, text in missing:
        rule = changed.get(name, SHOWN)
        changed[name] = replace(rule, missing=rule.missing | {text.strip()})
    return changed


def rule_of(where: str, written: Any) -> ColumnRule:  # noqa: ANN401 - a part of a JSON file
    """The rule of one column, as a schema file writes it; ``where`` begins the messages.

    Raises:
        DataError: an unknown key, or a value that does not fit.
    """
    if not isinstance(written, dict):
        raise DataError(f'{where}: {written!r} is no object such as {{"type": "number"}}')
    unknown = sorted(set(written) - _KEYS)
    if unknown:
        raise DataError(f"{where}: no key {unknown[0]!r}; there are {', '.join(sorted(_KEYS))}")
    rule = SHOWN
    if "type" in written:
        rule = _typed(rule, where, written["type"])
    separator, missing = written.get("separator"), written.get("missing", [])
    if separator is not None:
        if not isinstance(separator, str) or not separator:
            raise DataError(f"{where}: separator {separator!r} is no text")
        if rule.type is None or not rule.type.is_list:
            raise DataError(f"{where}: has a separator, and its type is no list")
    if not isinstance(missing, list) or not all(isinstance(text, str) for text in missing):
        raise DataError(f"{where}: missing {missing!r} is no list of texts")
    decimal = written.get("decimal")
    if decimal is not None and decimal not in DECIMALS:
        raise DataError(f"{where}: decimal {decimal!r} is none of {', '.join(DECIMALS)}")
    return replace(
        rule,
        separator=separator,
        missing=frozenset(text.strip() for text in missing),
        decimal=None if decimal is None else DECIMALS[decimal],
    )


def _typed(rule: ColumnRule, where: str, name: Any) -> ColumnRule:  # noqa: ANN401 - perhaps of a JSON file
    if name == IGNORE:
        return replace(rule, ignored=True, type=None)
    if not isinstance(name, str):
        raise DataError(f"{where}: type {name!r} is no text")
    try:
        return replace(rule, type=AttributeType.of(name), ignored=False)
    except ValueError as error:
        raise DataError(f"{where}: {error}; {IGNORE} leaves the column out") from None
