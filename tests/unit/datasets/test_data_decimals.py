"""Decimal commas, signs between thousands and currencies: told with the flag that decides, or read right."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igd_core.catalogue.items import Catalogue
from igd_core.cli.main import main
from igd_core.datasets.decimals import Decimal, plain_numbers, read_by
from igd_core.datasets.interactions import Interactions
from igd_core.datasets.interactions_file import read_interactions
from igd_core.datasets.items_file import read_items
from igd_core.datasets.sources import DEFAULT_READING, Reading
from igd_core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

COMMA, POINT = (Reading(decimal=sign, hints=True) for sign in (",", "."))
NOBODY = Reading(hints=True)


def _prices(folder: Path, *cells: str) -> Path:
    path = folder / "items.csv"
    rows = [f'{row};Title {row};"{cell}"\n' for row, cell in enumerate(cells)]
    path.write_text("item_id;title;price\n" + "".join(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("reading", "cells", "values"),
    [
        (COMMA, ["12,99", "1.299,00", "7"], (12.99, 1299.0, 7.0)),
        (COMMA, ["1.299", "12", "-1.234.567"], (1299, 12, -1234567)),
        (COMMA, ["€ 12,99", "1 299,50 €", "-€5", "12,-", ""], (12.99, 1299.5, -5.0, 12.0, None)),
        (COMMA, ["1'299,50 CHF", "12,05CHF", "\N{MINUS SIGN}3,0"], (1299.5, 12.05, -3.0)),
        (COMMA, ["12\N{NO-BREAK SPACE}345,6", "1\N{NARROW NO-BREAK SPACE}000"], (12345.6, 1000.0)),
        (POINT, ["1,299.00", "$12.99", "7"], (1299.0, 12.99, 7.0)),
        (POINT, ["1,299", "12"], (1299, 12)),
        (NOBODY, ["12.99", "1.299", "1e3"], (12.99, 1.299, 1000.0)),
        (COMMA, ["2001-05-17", "2002-06-18"], ("2001-05-17", "2002-06-18")),
        (COMMA, ["rock, pop", "12, 13 and more"], ("rock, pop", "12, 13 and more")),
        (COMMA, ["007,5", "7,5"], ("007,5", "7,5")),  # codes, as 007.5 and 7.5 are without the flag
    ],
)
def test_a_column_is_read_by_the_convention_that_is_named(
    tmp_path: Path, reading: Reading, cells: list[str], values: tuple[object, ...]
) -> None:
    assert read_items(_prices(tmp_path, *cells), reading=reading).catalogue.metadata["price"] == values


@pytest.mark.parametrize(
    ("reading", "cells", "told"),
    [
        (NOBODY, ["12,99", "3", "5"], ["row 2: price '12,99' is no integer, as 2 values are", "--decimal comma reads"]),
        (NOBODY, ["12,99", "3,50", "5"], ["row 2 '12,99', row 3 '3,50'", "--decimal comma reads", "--type price=text"]),
        (NOBODY, ["1.299,00", "2.000,50"], ["row 2 '1.299,00', row 3 '2.000,50'", "--decimal comma reads"]),
        (NOBODY, ["1,299", "2,000"], ["--decimal comma or point reads such cells"]),
        (NOBODY, ["1,299.00", "2,000.50"], ["--decimal point reads such cells"]),
        (NOBODY, ["$12.99", "$3.00"], ["row 2 '$12.99'", "--decimal point reads"]),
        (NOBODY, ["10 000", "20 000"], ["--decimal comma or point reads"]),
        (COMMA, ["12.99", "3.50", "x"], ["row 2 '12.99', row 3 '3.50'", "--decimal point reads"]),
        (POINT, ["12,99", "3,50"], ["row 2 '12,99'", "--decimal comma reads"]),
        (COMMA, ["€ 1,50", "€ 2", "$ 3"], ["row 4: price '$ 3' is no number, as 2 values are"]),
        (COMMA, ["1,50", "2,50", "1.2,3"], ["row 4: price '1.2,3' is no number"]),
    ],
)
def test_what_nobody_said_is_told_with_rows_and_the_flag_and_never_taken_for_text(
    tmp_path: Path, reading: Reading, cells: list[str], told: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        read_items(_prices(tmp_path, *cells), reading=reading)
    for words in told:
        assert words in str(caught.value)


def test_a_rule_decides_for_a_column_before_the_flag(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id;title;price;north;sizes;note\n1;A;12,99;52.5;38,5|40;1,5\n2;B;1.299,00;53.25;41;2,5\n")
    columns = {
        "price": {"type": "number", "decimal": "comma"},
        "sizes": {"type": "list-of-number", "separator": "|", "decimal": "comma"},
        "note": {"type": "text"},
    }
    schema = {"format": "igd-attributes", "format_version": 1, "attributes": columns}
    (tmp_path / "items.schema.json").write_text(json.dumps(schema))
    metadata = read_items(path).catalogue.metadata
    assert metadata["price"] == (12.99, 1299.0)
    assert metadata["north"] == (52.5, 53.25)
    assert metadata["sizes"] == ((38.5, 40.0), (41.0,))
    assert metadata["note"] == ("1,5", "2,5")
    columns["price"]["decimal"] = "dot"
    (tmp_path / "items.schema.json").write_text(json.dumps(schema))
    with pytest.raises(DataError, match="attribute 'price': decimal 'dot' is none of comma, point"):
        read_items(path)


def test_texts_of_parquet_and_json_lines_are_cells_like_others_and_their_numbers_are_numbers(tmp_path: Path) -> None:
    columns = {"item_id": ["1", "2"], "title": ["A", "B"], "price": ["12,99", "1.299,00"], "weight": [1.299, 2.5]}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "items.parquet")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("items.parquet", "items.jsonl"):
        metadata = read_items(tmp_path / name, reading=COMMA).catalogue.metadata
        assert metadata == {"price": (12.99, 1299.0), "weight": (1.299, 2.5)}


def test_ratings_are_read_by_it_and_refused_without(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    times = [f"2024-01-0{day}T00:00:00Z" for day in (1, 2, 3)]
    rows = zip(times, ["4,5", "3", ""], strict=True)
    path.write_text("user_id;item_id;timestamp;rating\n" + "".join(f"ann;1;{at};{rating}\n" for at, rating in rows))
    catalogue = Catalogue.build(item_ids=["1"], titles=["One"])
    read = read_interactions(path, catalogue, reading=COMMA).data
    assert isinstance(read, Interactions)
    assert read.rating is not None
    np.testing.assert_array_equal(read.rating, [4.5, 3.0, np.nan])
    with pytest.raises(DataError, match=r"row 2: rating '4,5' is no number \(--decimal comma reads such cells"):
        read_interactions(path, catalogue, reading=NOBODY)


def test_the_flag_reaches_the_readers_and_what_is_prepared_needs_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items, events, out = tmp_path / "items.csv", tmp_path / "events.csv", tmp_path / "out"
    items.write_text("item_id;title;price\n1;A;12,99\n2;B;1.299,00\n")
    events.write_text(
        "user_id;item_id;timestamp;rating\n"
        + "".join(f"u{n % 3};{1 + n % 2};2024-01-{n:02}T00:00:00Z;4,5\n" for n in range(1, 29))
    )
    prepare = ["data", "prepare", "csv", "--items", str(items), "--interactions", str(events), "--out", str(out)]
    assert main(prepare) == 2
    assert "--decimal comma" in capsys.readouterr().err
    assert main([*prepare, "--decimal", "comma"]) == 0
    assert read_items(out / "items.csv").catalogue.metadata["price"] == (12.99, 1299.0)


@settings(max_examples=50)
@given(
    st.decimals(min_value=-(10**9), max_value=10**9, places=2).map(lambda value: value + 0),
    st.sampled_from([",", "."]),
    st.sampled_from(["", " ", "'", "other"]),
    st.sampled_from(["{}", "€ {}", "{} EUR", "${}"]),
)
def test_whatever_a_convention_writes_it_reads(value: object, sign: Decimal, between: str, around: str) -> None:
    between = {",": ".", ".": ","}[sign] if between == "other" else between
    written = f"{value:,.2f}".replace(",", "_").replace(".", sign).replace("_", between)
    cells = pa.array([around.format(written)], pa.string())
    assert float(plain_numbers(cells, sign)[0].as_py()) == float(f"{value:.2f}")


def test_columns_of_words_cost_no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = pa.array(["A long walk", "Room 12 and the other side of the harbour", "SKU 12", "12 x", None], pa.string())
    monkeypatch.setattr("igd_core.datasets.decimals.plain_numbers", lambda *_: pytest.fail("looked again"))
    assert read_by(cells, None) == {}


def test_a_convention_tells_rows_apart_in_what_is_kept_and_none_keeps_the_fingerprint_there_was() -> None:
    assert DEFAULT_READING.fingerprint() == ""
    assert Reading(delimiter=";").fingerprint() == "[[], ';', 'auto', None, 'None', 'error']"
    assert len({each.fingerprint() for each in (DEFAULT_READING, COMMA, POINT)}) == 3
