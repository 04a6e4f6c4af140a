"""Cells to values: what no one says, the cells show; what does not fit is told by its row."""

from __future__ import annotations

import datetime
import decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from igd_core.catalogue.attribute_columns import ColumnValues
from igd_core.catalogue.attribute_types import AttributeType
from igd_core.datasets.attribute_cells import UnusableColumn, read_cells
from igd_core.datasets.attribute_schema import (
    SHOWN,
    ColumnRule,
    read_schema,
    rules_beside,
    schema_path,
    schema_text,
    with_flags,
)
from igd_core.datasets.items_file import read_items
from igd_core.datasets.sources import Reading
from igd_core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

UTC = datetime.UTC


def rule(type_name: str | None = None, **how: Any) -> ColumnRule:
    return ColumnRule(type=None if type_name is None else AttributeType.of(type_name), **how)


@pytest.mark.parametrize(
    ("cells", "how", "kind", "values"),
    [
        (["1.0", "2.5", "0", "1", "1e2"], SHOWN, "number", [1.0, 2.5, 0.0, 1.0, 100.0]),
        (["1", "", " -5 "], SHOWN, "integer", [1, None, -5]),
        (["007", "8", "9"], SHOWN, "text", ["007", "8", "9"]),
        (["0", "1", "1"], SHOWN, "integer", [0, 1, 1]),
        (["true", "False", "TRUE", ""], SHOWN, "boolean", [True, False, True, None]),
        (["2001-05-17", "", "1954-01-01"], SHOWN, "date", ["2001-05-17", None, "1954-01-01"]),
        (["2001-05-17T12:00:00+02:00"], SHOWN, "datetime", ["2001-05-17T10:00:00Z"]),
        (["2001-05-17T12:00:00"], SHOWN, "text", ["2001-05-17T12:00:00"]),  # of no zone, so no instant
        (["x", "1", "2001"][:2], SHOWN, "text", ["x", "1"]),
        (["12345678901234567890", "22345678901234567890"], SHOWN, "text", ["12345678901234567890"]),
        (["", "  "], SHOWN, "text", [None, None]),
        (["0", "1", "yes", "NO"], rule("boolean"), "boolean", [False, True, True, False]),
        (["007", "8"], rule("integer"), "integer", [7, 8]),
        (["1995.0", "1996.00"], rule("integer"), "integer", [1995, 1996]),
        (["1", "2"], rule("text"), "text", ["1", "2"]),
        (["n/a", "2", "N/A"], rule(missing=frozenset({"n/a", "N/A"})), "integer", [None, 2, None]),
        (["rock | pop||", "", "jazz"], rule("list-of-text"), "list-of-text", [("rock", "pop"), (), ("jazz",)]),
        (["38;39", "40"], rule("list-of-integer", separator=";"), "list-of-integer", [(38, 39), (40,)]),
        (["2001-05-17|n/a"], rule("list-of-date", missing=frozenset({"n/a"})), "list-of-date", [("2001-05-17",)]),
        ([1.5, float("nan"), None], SHOWN, "number", [1.5, None, None]),
        ([1.5, float("inf")], rule(missing=frozenset({"inf"})), "number", [1.5, None]),
        ([1.0, 2.0], rule("integer"), "integer", [1, 2]),
        ([1, 2], rule("text"), "text", ["1", "2"]),
        ([1, None], rule("list-of-integer"), "list-of-integer", [(1,), ()]),
        ([[1, None], None, []], SHOWN, "list-of-integer", [(1,), (), ()]),
        ([["a"]], SHOWN, "list-of-text", [("a",)]),
        ([decimal.Decimal("1.50"), None], SHOWN, "number", [1.5, None]),
        ([datetime.date(1, 1, 1), datetime.date(9999, 12, 31)], SHOWN, "date", ["0001-01-01", "9999-12-31"]),
        ([datetime.datetime(2001, 5, 17, 3)], SHOWN, "datetime", ["2001-05-17T03:00:00Z"]),  # noqa: DTZ001
        (
            pa.array([datetime.datetime(2001, 5, 17, tzinfo=UTC)], pa.timestamp("ns", "America/New_York")),
            SHOWN,
            "datetime",
            ["2001-05-17T00:00:00Z"],
        ),
        (pa.array(["1", "2"], pa.large_string()), SHOWN, "integer", [1, 2]),
        (pa.array([None]), SHOWN, "text", [None]),
    ],
)
def test_a_column_is_read_by_its_rule_or_as_it_shows_itself(
    cells: Any, how: ColumnRule, kind: str, values: list[Any]
) -> None:
    column = cells if isinstance(cells, pa.Array) else pa.array(cells)
    read = read_cells(column, how)
    assert (read.type.name, list(ColumnValues(read.values))[: len(values)], read.misfits) == (kind, values, ())


@pytest.mark.parametrize(
    ("cells", "how", "kind", "misfits"),
    [
        (["9.5"] * 4987 + ["n/a"], SHOWN, "number", {4987: "n/a"}),
        (["5"] * 60 + ["05"], SHOWN, "integer", {60: "05"}),
        (["true", "true", "1"], SHOWN, "boolean", {2: "1"}),
        (["1.5", "2.5", "1e999"], SHOWN, "number", {2: "1e999"}),
        (["1.5", "2.5", "nan", "", "inf", "1,5", "3.5", "4.5"], SHOWN, "number", {2: "nan", 4: "inf", 5: "1,5"}),
        (["1", "2", "9223372036854775808"], SHOWN, "integer", {2: "9223372036854775808"}),
        (["1.5", "2.5", "9007199254740993"], SHOWN, "number", {2: "9007199254740993"}),
        (["2001-05-17", "2001-02-30", "2002-01-01"], SHOWN, "date", {1: "2001-02-30"}),
        (["x"], rule("integer"), "integer", {0: "x"}),
        (["1|x", "y|2"], rule("list-of-integer"), "list-of-integer", {0: "x", 1: "y"}),
        ([1.5, float("-inf")], SHOWN, "number", {1: "-inf"}),
        ([1.0, 2.5], rule("integer"), "integer", {1: "2.5"}),
        (pa.array([1, 2**64 - 1], pa.uint64()), SHOWN, "integer", {1: "18446744073709551615"}),
        ([[1.0], [float("inf")]], SHOWN, "list-of-number", {1: "inf"}),
    ],
)
def test_a_cell_of_another_type_is_told_by_its_row_and_never_changes_the_type_of_the_others(
    cells: Any, how: ColumnRule, kind: str, misfits: dict[int, str]
) -> None:
    read = read_cells(cells if isinstance(cells, pa.Array) else pa.array(cells), how)
    assert read.type.name == kind
    assert dict(zip(read.misfits, read.misfit, strict=True)) == misfits


def test_a_time_outside_the_calendar_is_told() -> None:
    far = pa.array([0, 10**12], pa.int64()).cast(pa.timestamp("s"))
    assert read_cells(far, SHOWN).misfits == (1,)


@pytest.mark.parametrize("cells", [[b"x"], [{"a": 1}], [datetime.time(1)], [[b"x"]]])
def test_a_column_that_no_attribute_can_hold_is_named(cells: list[Any]) -> None:
    with pytest.raises(UnusableColumn):
        read_cells(pa.array(cells), SHOWN)


def test_lists_are_not_read_as_single_values() -> None:
    with pytest.raises(UnusableColumn, match="text is none"):
        read_cells(pa.array([["a"]]), rule("text"))


PRICES = "item_id,title,price,size\n" + "".join(f"{row},Title {row},{row}.5,{row}\n" for row in range(1, 99))


def test_one_bad_price_among_many_is_refused_with_its_row_and_the_flags_that_decide(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(PRICES + "99,Title 99,n/a,XL\n")
    with pytest.raises(DataError) as caught:
        read_items(path, reading=Reading(hints=True))
    _, price, size = str(caught.value).splitlines()
    assert "price is no number, as 98 values are: 1 row: row 100 'n/a'" in price
    assert "--missing price=n/a takes" in price
    assert "--type price=text takes" in price
    assert "size is no integer, as 98 values are: 1 row: row 100 'XL'" in size
    lenient = Reading(on_bad_row="skip")
    assert len(read_items(path, reading=lenient).catalogue) == 98
    rules = with_flags({}, types=[("size", "text")], missing=[("price", "n/a")])
    read = read_items(path, reading=Reading(attributes=rules)).catalogue
    assert {name: kind.name for name, kind in read.types.items()} == {"price": "number", "size": "text"}
    assert (read.metadata["price"][98], read.metadata["size"][98]) == (None, "XL")
    assert (
        read_items(
            path, reading=Reading(attributes=with_flags({}, types=[("price", "ignore"), ("size", "ignore")]))
        ).catalogue.types
        == {}
    )


def test_of_many_bad_cells_five_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(PRICES + "".join(f"{row},T,?,{row}\n" for row in range(100, 107)))
    with pytest.raises(DataError, match=r"price is no number, as 98 values are: 7 rows: .*row 104 '\?', \.\.\. "):
        read_items(path, reading=Reading(hints=True))


def test_the_schema_beside_a_file_says_what_its_columns_are(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,title,genres,code,note\n1,One,rock|pop,7,x\n2,Two,,8,y\n")
    assert rules_beside(path) == {}
    assert read_items(path).catalogue.types["genres"] == AttributeType(base="text")
    beside = tmp_path / "items.schema.json"
    assert schema_path(path) == schema_path(tmp_path / "items.csv.gz") == beside
    beside.write_text(
        '{"format": "igd-attributes", "format_version": 1, "attributes": {'
        '"genres": {"type": "list-of-text", "separator": "|"}, "code": {"type": "text"}, "note": {"type": "ignore"}}}'
    )
    read = read_items(path).catalogue
    assert read.metadata == {"genres": (("rock", "pop"), ()), "code": ("7", "8")}
    assert read_items(path, reading=Reading(attributes={})).catalogue.metadata["code"] == (7, 8)


def test_a_schema_that_was_written_is_read_back(tmp_path: Path) -> None:
    types = {"a": AttributeType(base="date"), "é": AttributeType(base="integer", is_list=True)}
    path = tmp_path / "items.schema.json"
    path.write_text(schema_text(types, {"é": ";"}), "utf-8")
    assert read_schema(path) == {"a": rule("date"), "é": rule("list-of-integer", separator=";")}


HEAD = '"format": "igd-attributes", "format_version": 1, '


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no schema of attributes"),
        ('{"format": "igd-attributes", "format_version": 2}', "format_version 2; this release reads 1"),
        (f'{{{HEAD}"attributes": []}}', "attributes is no object"),
        (f'{{{HEAD}"attributes": {{"x": 1}}}}', "attribute 'x': 1 is no object"),
        (
            f'{{{HEAD}"attributes": {{"x": {{"kind": "text"}}}}}}',
            "attribute 'x': no key 'kind'; there are decimal, missing",
        ),
        (f'{{{HEAD}"attributes": {{"x": {{"type": "float"}}}}}}', "'float' is no type; there are text, integer"),
        (f'{{{HEAD}"attributes": {{"x": {{"type": 1}}}}}}', "type 1 is no text"),
        (f'{{{HEAD}"attributes": {{"x": {{"type": "text", "separator": "|"}}}}}}', "its type is no list"),
        (f'{{{HEAD}"attributes": {{"x": {{"type": "list-of-text", "separator": ""}}}}}}', "separator '' is no text"),
        (f'{{{HEAD}"attributes": {{"x": {{"missing": "n/a"}}}}}}', "missing 'n/a' is no list of texts"),
        (" " * (1 << 20) + "{}", "longer than 1,048,576 bytes"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_by_file_and_attribute(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "items.schema.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_schema(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_schema_that_is_absent_or_names_another_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_schema(tmp_path / "none.json")
    path = tmp_path / "items.csv"
    path.write_text("item_id,title,year\n1,One,1\n")
    with pytest.raises(DataError, match="no column 'yaer'; it has item_id, title, year"):
        read_items(path, reading=Reading(attributes={"yaer": SHOWN}))


def test_flags_change_the_rules_of_a_schema_and_not_each_other() -> None:
    rules = {"genres": rule("text"), "sizes": rule("list-of-integer", separator=";", missing=frozenset({"-"}))}
    changed = with_flags(rules, separators=[("genres", "|"), ("sizes", ",")], missing=[("sizes", "?")])
    assert changed["genres"] == rule("list-of-text", separator="|")
    assert changed["sizes"] == rule("list-of-integer", separator=",", missing=frozenset({"-", "?"}))
    with pytest.raises(DataError, match=r"--multi genres=\|: --type says that it is text"):
        with_flags({}, types=[("genres", "text")], separators=[("genres", "|")])
    with pytest.raises(DataError, match="--type x=float: 'float' is no type"):
        with_flags({}, types=[("x", "float")])
