"""Files as shops export them, written here by hand and read back; and files that are damaged."""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import threading
import tracemalloc
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igd_core.catalogue.items import Catalogue
from igd_core.cli.main import main
from igd_core.cli.reading import add_reading_arguments, reading_of
from igd_core.datasets import tables
from igd_core.datasets.cleaning import clean_title
from igd_core.datasets.interactions_file import count_items, read_interactions
from igd_core.datasets.items_file import read_items
from igd_core.datasets.sources import Reading, opened
from igd_core.datasets.tables import open_table
from igd_core.errors import DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

UUIDS = [uuid.UUID(int=1), uuid.UUID(int=2)]
NOON = 1_769_860_800  # 2026-01-31T12:00:00Z
CATALOGUE = Catalogue.build(item_ids=["7", "007", "x"], titles=["Seven", "Bond", "X"])


def zstd(raw: bytes) -> bytes:
    packed: bytes = pa.compress(raw, "zstd", asbytes=True)
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda raw: raw,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}


def parquet(columns: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), sink)
    return sink.getvalue()


def write(path: Path, content: str | bytes | dict[str, Any]) -> Path:
    """Bytes or text as they are, columns as Parquet."""
    raw = parquet(content) if isinstance(content, dict) else content
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return path


def quoted(cell: str, delimiter: str, quoting: str) -> str:
    """One cell, written without any library."""
    cell = cell.replace("\\", "\\\\").replace('"', '\\"') if quoting == "backslash" else cell.replace('"', '""')
    return f'"{cell}"' if set(cell) & set('"\\\r\n' + delimiter) or cell != cell.strip() else cell


TITLE = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12) | st.text(
    'a",;\t|\\\n\r é', min_size=1, max_size=12
)
TITLES = st.lists(TITLE.filter(lambda text: bool(clean_title(text)) and text != "\\N"), min_size=1, max_size=6)


@settings(max_examples=150)
@given(
    titles=TITLES,
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from(["doubled", "backslash"]),
    codec=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    newline=st.sampled_from(["\n", "\r\n"]),
    packing=st.sampled_from(list(PACKERS)),
    told=st.booleans(),
)
def test_csv_of_every_kind_reads_back(  # noqa: PLR0917 - as hypothesis draws them
    tmp_path_factory: pytest.TempPathFactory,
    titles: list[str],
    delimiter: str,
    quoting: str,
    codec: str,
    newline: str,
    packing: str,
    told: bool,
) -> None:
    titles = ['5" disc', *titles]  # shows by which convention quotes are written
    rows = [["item_id", "title", "note"], *([f"0{at}", title, ""] for at, title in enumerate(titles))]
    text = "".join(delimiter.join(quoted(cell, delimiter, quoting) for cell in row) + newline for row in rows)
    path = tmp_path_factory.mktemp("csv") / "items"
    path.write_bytes(PACKERS[packing](text.encode(codec)))
    reading = Reading(delimiter=delimiter, quoting=quoting) if told else Reading()  # type: ignore[arg-type]
    read = read_items(path, reading=reading)
    assert read.catalogue.item_ids == tuple(row[0] for row in rows[1:])
    assert read.catalogue.titles == tuple(map(clean_title, titles))


@given(titles=TITLES, packing=st.sampled_from(list(PACKERS)), ascii_only=st.booleans())
def test_json_lines_read_back(
    tmp_path_factory: pytest.TempPathFactory, titles: list[str], packing: str, ascii_only: bool
) -> None:
    lines = [
        json.dumps({"title": title, "item_id": f"0{at}", "tags": ["a", title]}, ensure_ascii=ascii_only)
        for at, title in enumerate(titles)
    ]
    path = tmp_path_factory.mktemp("json") / "items"
    path.write_bytes(PACKERS[packing]("\n\n".join(lines).encode()))
    catalogue = read_items(path).catalogue
    assert catalogue.item_ids == tuple(f"0{at}" for at in range(len(titles)))
    assert catalogue.titles == tuple(map(clean_title, titles))
    assert catalogue.metadata["tags"] == tuple(("a", *filter(None, [title.strip()])) for title in titles)


def text_types() -> list[pa.Array]:
    texts = pa.array(["Ab", "Cd"])
    arrays = [texts.cast(kind) for kind in (pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary())]
    arrays += [texts, texts.dictionary_encode(), texts.cast(pa.large_string()).dictionary_encode()]
    return [*arrays, pa.array([b"Ab", b"Cd"], pa.binary(2)), pa.array([b"Ab", b"Cd"], pa.binary_view())]


@pytest.mark.parametrize("array", text_types(), ids=lambda array: str(array.type))
@pytest.mark.parametrize("with_schema", [True, False])
def test_every_type_of_text_in_parquet_is_text(tmp_path: Path, array: pa.Array, with_schema: bool) -> None:
    path = tmp_path / "items.parquet"
    pyarrow.parquet.write_table(pa.table({"item_id": array, "title": array}), path, store_schema=with_schema)
    catalogue = read_items(path).catalogue
    assert (catalogue.item_ids, catalogue.titles) == (("Ab", "Cd"), ("Ab", "Cd"))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([Decimal(1), Decimal(2)], pa.decimal128(38, 0)), ("1", "2")),
        (pa.array([Decimal(10**25), Decimal(2)], pa.decimal128(38, 0)), (str(10**25), "2")),
        (pa.array([2**64 - 1, 2], pa.uint64()), (str(2**64 - 1), "2")),
        (pa.array([1, 2], pa.int8()), ("1", "2")),
        (pa.array([UUIDS[0].bytes, UUIDS[1].bytes], pa.uuid()), (str(UUIDS[0]), str(UUIDS[1]))),
    ],
)  # fmt: skip
def test_whole_numbers_of_every_type_are_ids(tmp_path: Path, ids: pa.Array, expected: tuple[str, ...]) -> None:
    path = write(tmp_path / "items", {"item_id": ids, "title": ["A", "B"]})
    assert read_items(path).catalogue.item_ids == expected


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.string(), 2), pa.list_(pa.large_string()),
        pa.list_(pa.binary()), pa.list_(pa.string_view()), pa.list_(pa.dictionary(pa.int32(), pa.string())),
        pa.list_(pa.int64()),
    ],
    ids=str,
)  # fmt: skip
def test_histories_are_lists_of_any_layout(tmp_path: Path, kind: pa.DataType) -> None:
    values: Any = [[7, 7]] if pa.types.is_integer(kind.value_type) else [["7", "7"]]
    path = write(tmp_path / "rows", {"history_item_ids": pa.array(values, kind), "item_id": ["x"]})
    data = read_interactions(path, CATALOGUE, wanted="histories").data
    assert data.item.tolist() == [2]
    assert data.history_item.tolist() == [0, 0]  # type: ignore[union-attr]


# What is found out, and what is said


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        ("sep=;\nitem_id;title\n1;A, B\n2;C\n", []),
        ('"item_id"|"title"\n1|"A, B"\n2|C\n', []),
        ("item_id , title\n1,\"A, B\"\n2,C\n", []),
        ("a, b;item_id;title\n;1;A, B\n;2;C\n", []),
        ("item_id\ttitle\n1\tA, B\n\n2\tC\t\t\n  \n", []),
        (",item_id,title\n0,1,\"A, B\"\n1,2,C\n", ["column 1 of 3 has no name and is left out"]),
        ('item_id\ttitle\n1\tA, B\n2\tC\n3\t"5" disc"\n', ["read as not quoted"]),
        ('item_id,title\n1,"A, B"\n2,C\n3,"5\\" disc"\n', ["read as quoted with backslashes"]),
        (b"item_id,title\n1,\"A, B\"\n2,C\n3,Cr\xe8me br\xfbl\xe9e, \x80 5\n".replace(b", \x80", b" \x80"),
         ["read as Windows-1252, as line 4 is not UTF-8"]),
        ("item_id,title\n1,\"A, B\"\n2,C\n".encode("utf-16-be").join([b"\xfe\xff", b""]), []),
    ],
)  # fmt: skip
def test_how_a_file_is_written_is_found_out(tmp_path: Path, content: str | bytes, notes: list[str]) -> None:
    read = read_items(write(tmp_path / "items.csv", content))
    assert read.catalogue.item_ids[:2] == ["1", "2"]
    assert read.catalogue.titles[:2] == ["A, B", "C"]
    assert [note.split(": ", 1)[1].partition(" (")[0] for note in read.notes] == notes
    if notes and "Windows" in notes[0]:
        assert read.catalogue.titles[2] == "Crème brûlée € 5"


def test_what_is_said_goes_before_what_is_found_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a", "item_id,title\n1,Привет\n".encode("cp1251"))
    with pytest.raises(DataError, match="line 2: not UTF-8, and not likely Windows-1252"):
        read_items(path)
    assert read_items(path, reading=Reading(encoding="cp1251")).catalogue.titles == ("Привет",)
    with pytest.raises(DataError, match="line 2: not ascii"):
        read_items(path, reading=Reading(encoding="ascii"))
    path = write(tmp_path / "b", "item_id~title\n1~A\n")
    assert read_items(path, reading=Reading(delimiter="~")).catalogue.titles == ("A",)
    path = write(tmp_path / "c", 'item_id\ttitle\n1\t"A"\n')
    assert read_items(path, reading=Reading(quoting="none")).catalogue.titles == ('"A"',)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"delimiter": "ab"}, "delimiter 'ab'"),
        ({"delimiter": '"'}, "delimiter"),
        ({"encoding": "klingon"}, "encoding 'klingon': no such encoding"),
        ({"encoding": "hex"}, "encoding 'hex': no such encoding"),
        ({"columns": {"item_id": "a", "title": "a"}}, "'a' is given two names"),
    ],
)
def test_a_way_of_reading_that_is_none_is_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Reading(**how)


def test_columns_take_the_names_that_are_given_to_them(tmp_path: Path) -> None:
    reading = Reading(columns={"item_id": "sku", "title": "name"}, hints=True)
    path = write(tmp_path / "items.csv", "item_id,sku,name,year\n,a,A,1\n,b,B,2\n")
    catalogue = read_items(path, reading=reading).catalogue
    assert (catalogue.item_ids, catalogue.titles) == (("a", "b"), ("A", "B"))
    assert catalogue.metadata == {"year": (1, 2)}
    log = write(tmp_path / "log.csv", "item_id\na\nb\na\n")  # has no sku: keeps its own
    assert count_items(log, catalogue, reading=reading).frequency.tolist() == [2, 1]
    with pytest.raises(DataError, match=r"no column 'title' \('name' was asked for\); it has item_id"):
        read_items(log, reading=reading)
    with pytest.raises(DataError, match=r"no column 'item_id'; it has Item ID, t \(--columns item_id=Item ID says"):
        read_items(write(tmp_path / "x", "Item ID,t\n1,A\n"), reading=Reading(hints=True))


def test_a_null_of_a_database_is_an_empty_cell(tmp_path: Path) -> None:
    path = write(tmp_path / "items.tsv", "item_id\ttitle\tyear\n1\tA\t\\N\n2\tB\t1999\n")
    assert read_items(path).catalogue.metadata == {"year": (None, 1999)}
    with pytest.raises(DataError, match="row 2: title of item '1' is empty"):
        read_items(write(tmp_path / "b", "item_id,title\n1,\\N\n"))


# Faults


def test_all_faults_of_a_file_are_told_at_once_with_five_rows_each(tmp_path: Path) -> None:
    rows = [f"u,7,{NOON}"] * 3 + [f"u,gone{at},{NOON}" for at in range(1, 8)] + ["u,7,soon"] + ["u,7"] * 2
    rows += [f"u,7,{NOON}000", "u,7,2026-01-31T12:00:00", f",7,{NOON}", f"u,7,{NOON + 40 * 10**6}", "u,7,0"]
    path = write(tmp_path / "log.csv", "user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    reading = Reading(hints=True, unknown_hint="--on-unknown-item drop leaves them out")
    with pytest.raises(DataError) as caught:
        read_interactions(path, CATALOGUE, reading=reading)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: 15 faults of 8 kinds"
    assert "  item_id is not in the catalogue of 3 items: 7 rows: row 5 'gone1', row 6 'gone2', row 7 'gone3', " in (
        lines[2] + lines[1] + str(caught.value)
    )
    text = str(caught.value)
    assert "row 9 'gone5', ... (--on-unknown-item drop leaves them out)" in text
    assert "where the header has 3 columns: 2 rows: row 13 has 2 cells, row 14 has 2 cells (--on-bad-row skip" in text
    assert "timestamp is no time: expected ISO 8601 with a zone such as" in text
    assert "timestamp has no time zone: 1 row: row 16 '2026-01-31T12:00:00' (--timezone NAME says which" in text
    assert "timestamp is milliseconds since 1970, where 12 rows are seconds since 1970: 1 row: row 15 '17" in text
    assert "user_id is empty: 1 row: row 17 ''" in text
    assert "timestamp is more than a day ahead of this machine's clock: 1 row: row 18 '1809860800'" in text
    assert "timestamp is no time from 1990 on in seconds" in text
    with pytest.raises(DataError) as bare:
        read_interactions(path, CATALOGUE)
    assert "--" not in str(bare.value), "who has no such flags is told of none"

    lenient = read_interactions(path, CATALOGUE, on_unknown="drop", reading=Reading(on_bad_row="skip"))
    assert (len(lenient.data), lenient.dropped, lenient.bad_rows) == (3, 7, 8)


def test_bad_items_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "items.csv", 'item_id,title,n\n1,A,1\n1,B,2\n,C,3\n2,"D" x,4\n3,E,5,6\n4,,7\n5,F,8\n')
    with pytest.raises(DataError, match="5 faults of 5 kinds"):
        read_items(path)
    read = read_items(path, on_empty="skip", reading=Reading(on_bad_row="skip"))
    assert read.catalogue.item_ids == ("1", "5")
    assert read.catalogue.metadata == {"n": (1, 8)}
    assert (read.skipped, read.bad_rows) == (["4"], 4)


def test_a_file_that_is_all_faults_is_refused_even_when_skipping(tmp_path: Path) -> None:
    skipping = Reading(on_bad_row="skip")
    with pytest.raises(DataError, match="none of its 2 rows can be used; without --on-bad-row skip it is told"):
        read_interactions(
            write(tmp_path / "log", "user_id,item_id,timestamp\n,7,1\nu,7\n"), CATALOGUE, reading=skipping
        )
    with pytest.raises(InputError, match=r"holds no items|no rows"):
        read_items(write(tmp_path / "items", "item_id,title\n,A\n1\n"), reading=skipping)


# Times in files


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (pa.array([NOON * 1000 + 250], pa.timestamp("ms", tz="UTC")), NOON + 0.25),
        (pa.array([NOON], pa.timestamp("s", tz="Asia/Tokyo")), NOON),
        (pa.array([NOON * 10**9 + 1999], pa.timestamp("ns", tz="+01:00")), NOON + 1e-6),
        (pa.array([NOON + 0.25]), NOON + 0.25),
        (pa.array([NOON * 10**3]), NOON),
        (pa.array([NOON * 10**6], pa.uint64()), NOON),
        (pa.array([NOON * 10**9]), NOON),
        (pa.array([str(NOON)], pa.string_view()), NOON),
        (pa.array(["2026-01-31T13:00:00+01:00"]).dictionary_encode(), NOON),
        (pa.array([Decimal(NOON)], pa.decimal128(20, 0)), NOON),
    ],
)
def test_times_of_every_parquet_type_are_seconds(tmp_path: Path, times: pa.Array, expected: float) -> None:
    read = read_interactions(
        write(tmp_path / "log", {"user_id": ["u"], "item_id": ["7"], "timestamp": times}), CATALOGUE
    )
    assert read.data.timestamp is not None
    assert read.data.timestamp.tolist() == [expected]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (pa.array([NOON * 1000], pa.timestamp("ms")), "row 1: timestamp '2026-01-31 12:00:00.000.*' has no time zone"),
        (pa.array([20_000], pa.date32()), "row 1: timestamp '2024-10-04' is a day without a time"),
        (pa.array([20_000 * 86_400_000], pa.date64()), "row 1: timestamp '2024-10-04' is a day without a time"),
        (pa.array([0], pa.timestamp("ms", tz="UTC")), "row 1: timestamp '1970-01-01 .*' is not between 1990 and 9999"),
        (pa.array([float(NOON)], pa.float32()), "column 'timestamp' holds float; expected times"),
        (pa.array([NOON], pa.duration("s")), "column 'timestamp' holds duration"),
        (pa.array([True]), "column 'timestamp' holds bool"),
        (pa.array([None], pa.int64()), "row 1: timestamp None is empty"),
        (pa.array([None]), "row 1: timestamp None is empty"),
        (pa.array([float("nan")]), "row 1: timestamp nan is no finite number"),
        (pa.array([-NOON]), "row 1: timestamp -1769860800 is no time from 1990 on"),
        (pa.array([Decimal("1.5")]), "column 'timestamp' holds decimal"),
        (pa.array([2**64 - 1], pa.uint64()), "row 1: timestamp .* is more than a day ahead"),
    ],
)  # fmt: skip
def test_times_that_are_none_are_refused(tmp_path: Path, times: pa.Array, message: str) -> None:
    columns = {"user_id": ["u"], "item_id": ["7"], "timestamp": times}
    with pytest.raises(DataError, match=message):
        read_interactions(write(tmp_path / "log", columns), CATALOGUE)


def test_a_named_zone_is_what_times_without_one_are_in(tmp_path: Path) -> None:
    reading = reading_of(parsed("--timezone", "Europe/Berlin"))
    csv = write(tmp_path / "log", "user_id,item_id,timestamp\nu,7,2026-01-31 13:00:00\nu,7,2026-01-31 13:00:01.5\n")
    naive = pa.array([(NOON + 3600) * 10**6, (NOON + 3601) * 10**6 + 500_000], pa.timestamp("us"))
    table = write(tmp_path / "t", {"user_id": ["u", "u"], "item_id": ["7", "7"], "timestamp": naive})
    for path in (csv, table):
        read = read_interactions(path, CATALOGUE, reading=reading).data
        assert read.timestamp is not None
        assert read.timestamp.tolist() == [NOON, NOON + 1.5]


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_reading_arguments(parser)
    return parser.parse_args(flags)


def test_json_times_that_are_booleans_or_of_two_kinds_are_refused(tmp_path: Path) -> None:
    times: list[object] = [NOON, NOON, True, "2026-01-31T12:00:00Z", None]
    lines = [json.dumps({"user_id": "u", "item_id": "7", "timestamp": time}) for time in times]
    with pytest.raises(DataError) as caught:
        read_interactions(write(tmp_path / "log", "\n".join(lines)), CATALOGUE)
    for told in (
        "row 3 'true'",
        "is text with a zone, where 2 rows are seconds",
        "row 4 '2026-01-31T12:00:00Z'",
        "is empty: 1 row: row 5",
    ):
        assert told in str(caught.value)


@given(
    units=st.lists(st.sampled_from([1, 1000, 10**6, 10**9]), min_size=1, max_size=8),
    seconds=st.integers(631_152_000, NOON),
)
def test_a_file_that_mixes_units_is_refused_by_row(
    tmp_path_factory: pytest.TempPathFactory, units: list[int], seconds: int
) -> None:
    lines = [f"u,7,{seconds * unit}\n" for unit in units]
    path = write(tmp_path_factory.mktemp("mixed") / "log", "user_id,item_id,timestamp\n" + "".join(lines))
    most = max(set(units), key=lambda unit: (units.count(unit), -unit))
    odd = [at + 2 for at, unit in enumerate(units) if unit != most]
    if not odd:
        read = read_interactions(path, CATALOGUE).data
        assert read.timestamp is not None
        assert set(read.timestamp.tolist()) == {seconds}
        return
    with pytest.raises(DataError) as caught:
        read_interactions(path, CATALOGUE)
    for row in odd[:5]:
        assert f"row {row}" in str(caught.value)


# Damaged files

SAMPLES: dict[str, bytes] = {
    "csv": b"item_id,title,n\n" + b"".join(f'{at},"Some title, {at}",{at}\n'.encode() for at in range(40)),
    "latin": b"item_id;title\n" + b"".join(f"{at};Caf\xe9 {at}\n".encode("latin-1") for at in range(40)),
    "json": b"".join(b'{"item_id": "%d", "title": "T %d", "l": [%d]}\n' % (at, at, at) for at in range(40)),
    "parquet": parquet({"item_id": list(map(str, range(40))), "title": [f"T {at}" for at in range(40)], "n": [1] * 40}),
    "utf-16": ("item_id,title\n" + "".join(f"{at},T {at}\n" for at in range(40))).encode("utf-16"),
}  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), kind=st.sampled_from(list(SAMPLES)), packing=st.sampled_from(list(PACKERS)))
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str, packing: str
) -> None:
    raw = SAMPLES[kind] if kind == "parquet" else PACKERS[packing](SAMPLES[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(raw) - 1)))
        damage = data.draw(st.sampled_from(["cut", "flip", "insert", "drop"]))
        junk = data.draw(st.sampled_from([b"\x00", b"\xff", b'"', b"\n", b",", b"\\", b"{", b"\x80\x81", b"\r"]))
        raw = {
            "cut": raw[:at], "flip": raw[:at] + junk + raw[at + len(junk):], "insert": raw[:at] + junk + raw[at:],
            "drop": raw[:at] + raw[at + 7:],
        }[damage]  # fmt: skip
    path = tmp_path_factory.mktemp("damaged") / "items"
    path.write_bytes(raw)
    for reading in (Reading(), Reading(on_bad_row="skip", hints=True)):
        try:
            read = read_items(path, on_empty="skip", reading=reading)
        except InputError as error:
            told = str(error)
        else:
            told = str(path) if len(read.catalogue) else "empty"
        assert told.startswith(str(path))


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_packed_file_that_is_cut_short_is_refused(tmp_path: Path, kind: str, packing: str) -> None:
    packed = PACKERS[packing](SAMPLES[kind])
    assert len(read_items(write(tmp_path / "whole", packed)).catalogue) == 40
    for left in (len(packed) - 1, len(packed) // 2, 12):
        with pytest.raises(DataError, match=r"cannot be read|is empty"):
            read_items(write(tmp_path / "cut", packed[:left]))
    with pytest.raises(DataError, match="a Parquet file inside of a packed one"):
        read_items(write(tmp_path / "p", gzip.compress(SAMPLES["parquet"])))


def test_a_cell_of_fifty_megabytes_is_refused_and_not_kept(tmp_path: Path) -> None:
    huge = b"x" * (50 << 20)
    with pytest.raises(DataError, match=r"row 3: .* holds more than 16 Mi characters in a cell"):
        read_items(write(tmp_path / "a", b"item_id,title\n1,A\n2," + huge + b"\n"))
    with pytest.raises(DataError, match="row 2: opens a double quote that is never closed"):
        read_items(write(tmp_path / "b", b'item_id,title\n1,"A\n' + b"2,B\n" * 10))
    unclosed = write(tmp_path / "c", b'item_id,title\n1,"A\n' + b"2,BBBBBBBBBBBBBB\n" * (1 << 20))
    with pytest.raises(DataError, match="row 2: opens a double quote that is never closed, or holds more than 16 Mi"):
        read_items(unclosed)


def test_a_file_of_ten_thousand_columns_is_read_by_those_that_count(tmp_path: Path) -> None:
    names = ["item_id", *(f"c{at}" for at in range(10_000)), "c1"]
    rows = "".join(f"{item}," + ",".join(["1"] * 10_001) + "\n" for item in ("7", "x", "7"))
    path = write(tmp_path / "wide", ",".join(names) + "\n" + rows)
    assert count_items(path, CATALOGUE).frequency.tolist() == [2, 0, 1]
    with pytest.raises(DataError, match=r"no column 'title'; it has item_id, c0, .* and 9971 more") as caught:
        read_items(path)
    assert len(str(caught.value)) < 600


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_BATCH_ROWS", 1000)

    def peak(rows: int) -> int:
        path = write(tmp_path / str(rows), "user_id,item_id,timestamp\n" + f"user,7,{NOON}\n" * rows)
        tracemalloc.start()
        try:
            assert count_items(path, CATALOGUE).frequency.tolist() == [rows, 0, 0]
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    small, large = peak(10_000), peak(40_000)
    assert large - small < 30_000 * 100, "a row that is kept takes more"


# Standard input, pipes, and how the process ends


def log_of(rows: int) -> str:
    return "who,sku,at\n" + "".join(f"u{at % 3},{at % 5},{NOON + at}\n" for at in range(rows))


def test_standard_input_is_a_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def igd(*args: str | Path, given: bytes) -> int:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        return main(["data", "prepare", "csv", *map(str, args)])

    items = write(tmp_path / "items", "sku;name\n" + "".join(f"{at};Item {at}\n" for at in range(5)) + '5;"\\"x\\""\n')
    names = ["--columns", "item_id=sku,title=name", "--columns", "user_id=who,timestamp=at", "--json"]
    packed = gzip.compress(log_of(50).encode())
    assert igd("--items", items, *names, "--interactions", "-", "--out", tmp_path / "a", given=packed) == 0
    out, told = capsys.readouterr()
    assert json.loads(out)["interactions"] == {"train": 40, "valid": 5, "test": 5}
    assert told == f"igd: note: {items}: read as quoted with backslashes (--quoting decides)\n"
    for sent, files, message in (
        (b"", ["--items", "-", "--interactions", "-"], "only one file can be standard input (-)"),
        (b"", ["--items", items, "--interactions", "-"], "standard input: the file is empty"),
        (b"who,at\nu,1\n", ["--items", items, "--interactions", "-"], "standard input: neither user_id, item_id"),
        (
            parquet({"sku": [True], "name": ["x"]}),
            ["--items", "-", "--interactions", items],
            "standard input: column 'sku' holds bool; ids are text or whole numbers\n",
        ),
    ):
        assert igd(*files, *names, "--out", tmp_path / "b", given=sent) == 2
        assert capsys.readouterr().err.startswith(f"igd: {message}")
    assert not (tmp_path / "b").exists()


def test_a_pipe_is_a_file_too(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    thread = threading.Thread(target=pipe.write_bytes, args=(gzip.compress(log_of(50).encode()),))
    thread.start()
    with opened([pipe]) as (source,):
        table = open_table(source)
        assert [len(batch) for batch in table.batches(["at", "who"], table.faults())] == [50]
        assert source.name == str(pipe)
    thread.join()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--columns", "item_id"], "'item_id' is not OURS=THEIRS"),
        (["--delimiter", "ab"], "'ab' is not comma, semicolon"),
        (["--timezone", "Mars"], "timezone 'Mars': no such zone"),
        (["--columns", "title=a", "--columns", "title=b"], "columns: 'title' stands twice"),
    ],
)
def test_flags_that_say_nothing_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reading_of(parsed(*flags))


def test_flags_say_how_files_are_read() -> None:
    reading = reading_of(parsed("--columns", "item_id=a, title=b", "--delimiter", "tab", "--on-bad-row", "skip"))
    assert reading.columns == {"item_id": "a", "title": "b"}
    assert (reading.delimiter, reading.on_bad_row, reading.hints) == ("\t", "skip", True)
    assert reading_of(parsed("--delimiter", "~")).delimiter == "~"
    assert Reading().fingerprint() == "" != reading.fingerprint()


def test_parquet_is_read_on_this_thread_alone(tmp_path: Path) -> None:
    """Threads of Arrow's that still run while the process ends abort it, now and then."""
    path = write(tmp_path / "items", {"item_id": [1.5] * 1000, "title": ["A"] * 1000})
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from igd_core.datasets.items_file import read_items\n"
        "from igd_core.errors import DataError\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "try:\n    read_items(Path(sys.argv[1]))\n"
        "except DataError as error:\n    print(error, len(os.listdir('/proc/self/task')) - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    what = "numbers with a fraction or too many digits, such as 1.5"
    assert done.stdout == f"{path}: column 'item_id' holds {what}; ids are text or whole numbers 0\n"


def names_of(path: Path, reading: Reading) -> Sequence[str]:
    return open_table(path, reading).columns


def test_names_are_stripped_and_those_without_one_are_left_out(tmp_path: Path) -> None:
    assert names_of(write(tmp_path / "a", " item_id ,,title\n1,2,3\n"), Reading()) == ["item_id", "title"]
