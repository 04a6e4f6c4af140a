"""Two exports as shops write them: which columns are what is found out, and what is not clear is said, not guessed."""

from __future__ import annotations

import io
import json
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet
import pytest

from igd_core.datasets.column_names import plain_name
from igd_core.datasets.export_detection import detect
from igd_core.datasets.sources import Reading, Source
from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from igd_core.datasets.export_detection import Detected

WORDS = ["Red", "Quiet", "Last", "Golden", "Broad"]
NOUNS = ["House", "River", "Planet", "Dragon", "Garden", "Boat"]
TITLES = [f"{word} {noun}" for word in WORDS for noun in NOUNS]
ITEMS = "sku;Produktname;Preis;Tags;Farbe\n" + "".join(
    f"A-{at};{title};{at},99;{'old|red' if at % 2 else 'new'};blau\n" for at, title in enumerate(TITLES)
)
EVENTS = "Beleg,Kunde,Artikel,Zeit,Menge\n" + "".join(
    f"{9000 + at},k{at % 40},A-{at % 30},2024-01-{1 + at // 30:02} 10:{at % 60:02}:00,{1 + at % 3}\n"
    for at in range(300)
)


def found(tmp_path: Path, items: str | bytes, events: str | bytes, said: Mapping[str, str] | None = None) -> Detected:
    paths = tmp_path / "items", tmp_path / "log"
    for path, content in zip(paths, (items, events), strict=True):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    sources = [Source(path=path, name=path.name) for path in paths]
    return detect(sources[0], sources[1], (Reading(), Reading()), (said or {}, said or {}), {})


def test_a_column_that_somebody_names_and_the_file_lacks_is_told_and_no_other_one_taken(tmp_path: Path) -> None:
    renamed = EVENTS.replace("Zeit,", "Stempel,", 1)
    assert found(tmp_path, ITEMS, renamed).unclear == ()
    (told,) = set(found(tmp_path, ITEMS, renamed, {"timestamp": "Zeit"}).unclear)
    assert told.startswith("log: no column looks like the time: 'Zeit', which the layout or a flag names, is not there")


def test_texts_of_several_lines_are_neither_lists_nor_attributes(tmp_path: Path) -> None:
    rows = [f'A-{at};{title};"Kurz;\n{at} Worte\nlang"\n' for at, title in enumerate(TITLES)]
    detected = found(tmp_path, "sku;Produktname;Text\n" + "".join(rows), EVENTS)
    assert detected.items.attributes == {"Text": {"type": "ignore"}}


def test_markup_and_days_with_slashes_are_no_lists(tmp_path: Path) -> None:
    rows = [
        f"A-{at};{title};<p>Warm<br/>soft, and made for all winter</p>;8/{1 + at % 28}/15\n"
        for at, title in enumerate(TITLES)
    ]
    detected = found(tmp_path, "sku;Produktname;Body;made\n" + "".join(rows), EVENTS)
    assert detected.items.attributes == {"Body": {"type": "ignore"}}


def test_columns_of_any_name_are_told_by_their_cells(tmp_path: Path) -> None:
    detected = found(tmp_path, ITEMS, EVENTS)
    assert detected.unclear == ()
    assert detected.items.columns == {"item_id": "sku", "title": "Produktname"}
    assert detected.items.attributes == {
        "Preis": {"decimal": "comma"},
        "Tags": {"type": "list-of-text", "separator": "|"},
    }
    assert detected.events.columns == {"user_id": "Kunde", "item_id": "Artikel", "timestamp": "Zeit"}
    assert (detected.items.delimiter, detected.events.delimiter) == (";", ",")
    assert detected.events.timezone == "UTC"
    told = "\n".join(detected.told)
    assert "items: csv with semicolons, 30 rows" in told
    assert "100% of the rows name an item of 'sku'" in told
    assert "taken for UTC" in told


@pytest.mark.parametrize(
    ("written", "words", "zone"),
    [("1700000000", "seconds since 1970", None), ("1700000000000", "milliseconds since 1970", None),
     ("2024-01-31T10:00:00Z", "text with a zone", None), ("2024-01-31", "a day without a time", "UTC")],
)  # fmt: skip
def test_the_unit_of_times_is_said(tmp_path: Path, written: str, words: str, zone: str | None) -> None:
    events = "user_id,item_id,timestamp\n" + "".join(f"u{at % 3},A-{at},{written}\n" for at in range(9))
    detected = found(tmp_path, ITEMS, events)
    assert words in "\n".join(detected.told)
    assert detected.events.timezone == zone


def test_parquet_and_json_lines_are_looked_at_in_the_same_way(tmp_path: Path) -> None:
    sink = io.BytesIO()
    table = {"id": range(30), "name": TITLES, "tags": [["a"]] * 30, "about": ["words " * 80] * 30}
    pyarrow.parquet.write_table(pa.table(table), sink)
    lines = [{"member": f"m{at % 5}", "product": at % 30, "ts": 1_700_000_000_000 + at, "stars": 4.5, "event": "buy"}
             for at in range(90)]  # fmt: skip
    detected = found(tmp_path, sink.getvalue(), "\n".join(map(json.dumps, lines)))
    assert detected.unclear == ()
    assert detected.items.columns == {"item_id": "id", "title": "name"}
    assert detected.items.attributes == {"about": {"type": "ignore"}}
    assert detected.events.columns == {
        "user_id": "member", "item_id": "product", "timestamp": "ts", "rating": "stars", "kind": "event"
    }  # fmt: skip


def test_cells_of_several_parts_are_left_out_and_cells_of_any_type_are_looked_at(tmp_path: Path) -> None:
    sink = io.BytesIO()
    rows = len(TITLES)
    columns = {
        "id": range(rows), "name": TITLES, "price": [Decimal("9.99")] * rows, "size": [{"w": 1}] * rows,
        "none": pa.nulls(rows), "new": [True] * rows, "since": [date(2020, 1, 1)] * rows, "parts": [[{"a": 1}]] * rows,
        "seen": [datetime(2020, 1, 1, tzinfo=UTC)] * rows, "tags": [["a"]] * rows,
        "opens": [time(9, 30)] * rows,
    }  # fmt: skip
    pyarrow.parquet.write_table(pa.table(columns), sink)
    detected = found(tmp_path, sink.getvalue(), EVENTS.replace(",A-", ","))
    assert detected.unclear == ()
    assert detected.items.columns == {"item_id": "id", "title": "name"}
    assert detected.items.attributes == {
        "size": {"type": "ignore"},
        "parts": {"type": "ignore"},
        "opens": {"type": "ignore"},
    }
    told = "\n".join(detected.told)
    assert "size                    left out: its cells have parts" in told
    assert "opens                   left out: its cells are of a type that no filter can name" in told


def test_two_columns_that_could_be_the_item_are_named_and_a_person_settles_it(tmp_path: Path) -> None:
    items = "sku,ean,title\n" + "".join(f"A{at},E{at},{title}\n" for at, title in enumerate(TITLES))
    events = "user,sku,ean,time\n" + "".join(
        f"u{at % 7},A{at % 30},E{at % 30},{1_700_000_000 + at}\n" for at in range(60)
    )
    unclear = "\n".join(found(tmp_path, items, events).unclear)
    assert "items: the item's id could be column 'sku' or 'ean'" in unclear
    assert "log: the item's id could be column 'sku' or 'ean'" in unclear
    assert "--columns item_id=NAME" in unclear
    settled = found(tmp_path, items, events, {"item_id": "ean"})
    assert settled.unclear == ()
    assert (settled.items.columns["item_id"], settled.events.columns["item_id"]) == ("ean", "ean")


def test_of_two_ids_the_one_that_the_events_name_is_taken(tmp_path: Path) -> None:
    items = "sku,ean,title\n" + "".join(f"A{at},E{at},{title}\n" for at, title in enumerate(TITLES))
    events = "user,ref,time\n" + "".join(f"u{at % 7},E{at % 30},{1_700_000_000 + at}\n" for at in range(60))
    detected = found(tmp_path, items, events)
    assert detected.unclear == ()
    assert (detected.items.columns["item_id"], detected.events.columns["item_id"]) == ("ean", "ref")


def test_small_numbers_of_other_columns_are_not_taken_for_item_ids(tmp_path: Path) -> None:
    items = "id,title,stock\n" + "".join(f"{at},{title},{at * 3}\n" for at, title in enumerate(TITLES))
    events = "user_id,product_id,quantity,date\n" + "".join(
        f"{at % 9},{at % 30},{at % 4},2024-03-{1 + at % 28:02}\n" for at in range(200)
    )
    detected = found(tmp_path, items, events)
    assert detected.unclear == ()
    assert detected.events.columns == {"item_id": "product_id", "timestamp": "date"}
    assert detected.items.columns == {"item_id": "id"}


LONG = [7_654_321_098_765 + at * 32_768 for at in range(30)]
NUMBERED = "product_id,title\n" + "".join(f"{at + 1},{title}\n" for at, title in enumerate(TITLES))


def events_of(header: str, cells: Callable[[int], str], rows: int = 120) -> str:
    return header + "\n" + "".join(f"{cells(at)}\n" for at in range(rows))


def day(at: int) -> str:
    return f"2024-{1 + at // 28 % 12:02}-{1 + at % 28:02}T10:00:00Z"


@pytest.mark.parametrize(
    ("items", "events", "item", "user", "time"),
    [
        ("id,title,position\n" + "".join(f"{LONG[at]},{title},{at}\n" for at, title in enumerate(TITLES)),
         events_of("customer,product_id,quantity,created_at",
                   lambda at: f"c{at % 9},{LONG[at % 30]},{at % 4},{day(at)}"),
         "product_id", "customer", "created_at"),
        (NUMBERED,
         events_of("user_id,product_id,session_no,created_at",
                   lambda at: f"{6_123_456_789_012 + at % 9},{at % 30 + 1},{at // 2},{day(at)}"),
         "product_id", "user_id", "created_at"),
        (NUMBERED,
         events_of("item_id,order_id,customer_id,product_id,created_at",
                   lambda at: f"{at % 30 + 1},{at // 2},{at % 9},{at * 7 % 30 + 1},{day(at)}"),
         "product_id", "customer_id", "created_at"),
        (NUMBERED,
         events_of("Invoice,product_id,InvoiceDate,Customer ID",
                   lambda at: f"{489434 + at // 2},{at % 30 + 1},{day(at)},{12346 + at % 9}.0"),
         "product_id", "Customer ID", "InvoiceDate"),
        (NUMBERED,
         events_of("event_date,event_timestamp,user_pseudo_id,product_id",
                   lambda at: f"{20240101 + at % 28},{1_704_103_200_000_000 + at},{1000 + at % 9}.17,{at % 30 + 1}"),
         "product_id", "user_pseudo_id", "event_timestamp"),
        (NUMBERED,
         events_of("reviewerID,product_id,unixReviewTime,reviewTime",
                   lambda at: f"A{at % 9},{at % 30 + 1},{1_582_156_800 + at},\"02 20, 2020\""),
         "product_id", "reviewerID", "unixReviewTime"),
        (NUMBERED,
         events_of("kode,product_id,time", lambda at: f"07000001{at % 40:02},{at % 30 + 1},{day(at)}"),
         "product_id", "kode", "time"),
        (NUMBERED,
         events_of("kode,product_id,time", lambda at: f"{9_000_000_000 + at % 40},{at % 30 + 1},{day(at)}"),
         "product_id", "kode", "time"),
        (NUMBERED,
         events_of("line_user_id,product_id,bought,delivered_at,dwell",
                   lambda at: f"k{at % 40},{at % 30 + 1},{day(at)},{day(at)},{at % 60}"),
         "product_id", "line_user_id", "bought"),
        ("order_item_sku,title,2019,1998\n" + "".join(f"{at},{title},1,2\n" for at, title in enumerate(TITLES)),
         events_of("who,order_item_sku,epoch,first_seen",
                   lambda at: f"k{at % 40},{at % 30},{1_700_000_000 + at},12/31/2024"),
         "order_item_sku", "who", "epoch"),
        ("id,sku,title\n" + "".join(f"{at},P{at},{title}\n" for at, title in enumerate(TITLES)),
         events_of("user_id,product_id,timestamp,sku", lambda at: f"k{at % 40},{at % 30},{1_700_000_000 + at},V{at}"),
         "product_id", "user_id", "timestamp"),
        ("id,title\n" + "".join(f"{at},{title}\n" for at, title in enumerate(TITLES)),
         events_of("user_id,ref,timestamp,sku", lambda at: f"k{at % 40},{at % 30},{1_700_000_000 + at},S7"),
         "ref", "user_id", "timestamp"),
    ],
)  # fmt: skip
def test_what_names_and_cells_make_clear_is_taken_and_not_asked_about(
    tmp_path: Path, items: str, events: str, item: str, user: str, time: str
) -> None:
    """Ids of 9 to 21 digits, an order line's own id, ids that pandas made fractions of, a day as 20240131; and more."""
    detected = found(tmp_path, items, events)
    assert detected.unclear == ()
    columns = {ours: detected.events.columns.get(ours, ours) for ours in ("item_id", "user_id", "timestamp")}
    assert columns == {"item_id": item, "user_id": user, "timestamp": time}


@pytest.mark.parametrize(
    ("items", "events", "words"),
    [
        ("sku,name,sort_order\n" + "".join(f"{at:06},{title},{at}\n" for at, title in enumerate(TITLES)),
         events_of("customer,sku,date", lambda at: f"c{at % 9},{at % 30},{day(at)}"),
         "column 'sku' holds '0', and 'sku' of the items '000000': one of the files has lost the leading zeros"),
        ("sku,name,sort_order\n" + "".join(f"X{at},{title},{at}\n" for at, title in enumerate(TITLES)),
         events_of("customer,sku,date", lambda at: f"c{at % 9},{at % 30},{day(at)}"),
         "items: the item's id could be column 'sort_order' or 'sku'"),
        ("sku,name\n" + "".join(f"{at},{title}\n" for at, title in enumerate(TITLES)),
         events_of("customer,sku,number,date", lambda at: f"c{at % 9},X{at % 30},{at % 30},{day(at)}"),
         "log: the item's id could be column 'number' or 'sku'"),
        (NUMBERED,
         events_of("who,product_id,Bestelltag", lambda at: f"{1_000_012_000 + at % 9},{at % 30 + 1},03/02/2020"),
         "the time could be column 'who': column 'Bestelltag' holds '03/02/2020', which is no time"),
        (NUMBERED, events_of("who,product_id,nr", lambda at: f"k{at % 40},{at % 30 + 1},{at}"),
         "no column looks like the time: `igd start` and `igd data prepare` need to know what came first"),
        (NUMBERED, events_of("order_no,product_id,time", lambda at: f"{at // 2},{at % 30 + 1},{day(at)}"),
         "no column looks like the person: 'order_no' is called after what one person has several of"),
        (NUMBERED, events_of("session_id,product_id,time,discount",
                             lambda at: f"{at % 40},{at % 30 + 1},{day(at)},{at % 60}"),
         "the person could be column 'session_id' or 'discount'"),
        (NUMBERED, events_of("session_id,product_id,time,user_agent",
                             lambda at: f"{at % 40},{at % 30 + 1},{day(at)},Browser {at % 60}"),
         "the person could be column 'session_id' or 'user_agent'"),
        (NUMBERED, events_of("user,product_id,moment,birth_date",
                             lambda at: f"u{at % 9},{at % 30 + 1},{at},1990-01-01"),
         "the time could be column 'birth_date'"),
        (NUMBERED, events_of("user,product_id,time,birth_date", lambda at: f"u{at % 9},{at % 30 + 1},10:05,1990-01-01"),
         "column 'time' holds '10:05', which is no time"),
        (NUMBERED, events_of("user,order_product_id,time,line",
                             lambda at: f"u{at % 9},{at % 30 + 1},{day(at)},{at % 4 + 1}"),
         "the item's id could be column 'order_product_id' or 'line'"),
        (NUMBERED, events_of("user,product_id,time", lambda at: f"{day(at % 40)},{at % 30 + 1},{day(at)}"),
         "no column looks like the person: column 'user' holds times, such as '2024-01-01T10:00:00Z'"),
    ],
)  # fmt: skip
def test_what_holds_the_same_numbers_by_chance_is_asked_about(
    tmp_path: Path, items: str, events: str, words: str
) -> None:
    assert words in "\n".join(found(tmp_path, items, events).unclear)


@pytest.mark.parametrize(
    "events",
    [
        events_of("1,2268359,2520382,cart,1639862605", lambda at: f"{at % 9},{at % 30 + 1},4,pv,{1_639_862_605 + at}"),
        events_of("u0\t2021-04-23T18:39:11Z\tspot", lambda at: f"u{at % 9}\t{day(at)}\t{at % 30 + 1}"),
    ],
)
def test_a_first_row_that_names_nothing_is_no_header(tmp_path: Path, events: str) -> None:
    with pytest.raises(DataError, match=r"^log: its first row, .* looks like data, where it has to name the columns"):
        found(tmp_path, NUMBERED, events)


def test_double_colons_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it has '::', which no csv has"):
        found(tmp_path, NUMBERED, "user::item::time\n1::2::3\n")


def test_what_is_told_of_returns_and_of_rows_that_cannot_be_read(tmp_path: Path) -> None:
    events = events_of(
        "user_id,product_id,quantity,status,recommended,rating,created_at",
        lambda at: (
            f"u{at % 9},{at % 30 + 1},{-1 if at % 4 == 0 else 1},{'refunded' if at % 4 == 0 else 'paid'},"
            f"{at % 2 == 0},{at % 5},{day(at)}"
        ),
    )
    told = "\n".join(found(tmp_path, NUMBERED, events + "u1,2\n").told)
    assert "log: csv with commas, 120 rows, and 1 that cannot be read" in told
    assert "quantity                not used: 25% are negative, and count as purchases do; export without them" in told
    assert "status                  not used: rows with 'refunded' count as the others do; export without them" in told
    assert "recommended             not used: rows with 'False' count as the others do; export without them" in told
    assert "rating                  rating: kept beside the events; low ones count as the others do" in told


@pytest.mark.parametrize(
    ("items", "events", "words"),
    [
        (ITEMS, "who,Artikel,day\nx,A-1,01/31/2024\ny,A-2,02/01/2024\n", "no column looks like the time"),
        (ITEMS, "user,Artikel,date\nx,A-1,01/31/2024\ny,A-2,02/01/2024\n",
         "column 'date' holds '01/31/2024', which is no time"),
        (ITEMS, "user,Artikel,created_at,order_date\nx,A-1,2024-01-01,2024-01-01\nx,A-2,2024-01-01,2024-01-01\n",
         "the time could be column 'created_at' or 'order_date'"),
        (ITEMS, "a,Artikel,time\n" + "".join(f"{at},A-{at % 30},2024-01-01\n" for at in range(60)),
         "no column looks like the person"),
        (ITEMS, "user,Artikel,time\n" + "".join(f"{at},A-{at % 30},2024-01-01\n" for at in range(60)),
         "no column looks like the person: in column 'user' nobody stands twice"),
        ("id,title\n" + "".join(f"{at},{title}\n" for at, title in enumerate(TITLES)),
         "user,item,time\n" + "".join(f"{at % 9},{at % 30}.0,2024-01-01\n" for at in range(60)),
         "log: no column looks like the item's id: column 'item' holds '0.0', which has a decimal point"),
        (ITEMS, "".join(json.dumps({"user": at % 9, "item": ["A-1"], "time": "2024-01-01"}) + "\n" for at in range(60)),
         "log: no column looks like the item's id: column 'item' holds lists"),
        (ITEMS, "user,thing,time\nx,Z-1,2024-01-01\nx,Z-2,2024-01-01\n", "log: no column looks like the item's id"),
        ("sku,short,long\n" + "".join(f"A-{at},{t},{t} of them\n" for at, t in enumerate(TITLES)), EVENTS,
         "items: the item's title could be column 'short' or 'long'"),
    ],
)  # fmt: skip
def test_what_is_missing_or_twice_is_said_by_name(tmp_path: Path, items: str, events: str, words: str) -> None:
    assert words in "\n".join(found(tmp_path, items, events).unclear)


def test_attributes_are_told_as_they_are_read(tmp_path: Path) -> None:
    items = "id,title,live,code,since,seen,note\n" + "".join(
        f"A-{at},{title},{'true' if at % 2 else 'false'},0{at},2024-01-{1 + at % 28:02},2024-01-01T10:00:00Z,x{at}\n"
        for at, title in enumerate(TITLES)
    )
    told = "\n".join(found(tmp_path, items, EVENTS).told)
    for name, words in {
        "live": "true or false", "code": "text", "since": "days", "seen": "times", "note": "text"
    }.items():  # fmt: skip
        assert f"  {name:<24}attribute: {words}\n" in told


def test_what_the_events_are_counted_against_is_not_said_before_it_is_known(tmp_path: Path) -> None:
    items = "sku,ean,title\n" + "".join(f"A{at},A{at},{title}\n" for at, title in enumerate(TITLES))
    events = "user,ref,time\n" + "".join(f"u{at % 7},A{at % 30},{1_700_000_000 + at}\n" for at in range(60))
    detected = found(tmp_path, items, events)
    assert "items: the item's id could be column 'sku' or 'ean'" in "\n".join(detected.unclear)
    assert "of the rows name" not in "\n".join(detected.told)


def test_another_delimiter_than_those_known_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"items: one column alone, 'sku\^title\^price': .*--delimiter CHAR"):
        found(tmp_path, "sku^title^price\nA^Red House^3\n", EVENTS)


def test_a_file_of_which_no_row_can_be_read_is_refused_by_its_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="log: row 2: has 3 cells where the header has 4 columns"):
        found(tmp_path, ITEMS, "user,item,time,price\nu1,A-1,2024-01-01\n")
    with pytest.raises(DataError, match="log: no rows below the header"):
        found(tmp_path, ITEMS, "user,item,time,price\n")


def test_names_of_columns_are_compared_without_case_accents_and_signs() -> None:
    assert [plain_name(name) for name in ("Título ", "SKU", "productId", "Ordered at", "e-mail")] == [
        "titulo", "sku", "product_id", "ordered_at", "e_mail"
    ]  # fmt: skip
