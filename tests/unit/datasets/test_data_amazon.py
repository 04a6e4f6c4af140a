from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from igd_core.cli.main import main
from igd_core.datasets.amazon import read_amazon, usable_title
from igd_core.datasets.options import AmazonOptions
from igd_core.errors import DataError, InputError

if TYPE_CHECKING:
    from pathlib import Path

DAY = 86_400
OCTOBER_2015 = 1_443_657_600  # 2015-10-01 00:00 UTC


def review(user: str, item: str, day: int, rating: float = 5.0) -> dict[str, Any]:
    return {"reviewerID": user, "asin": item, "unixReviewTime": OCTOBER_2015 + day * DAY, "overall": rating}


def square(size: int = 5) -> list[dict[str, Any]]:
    """Every user reviews every item: exactly a core of ``size``."""
    return [review(f"u{user}", f"i{item}", user + 10 * item) for user in range(size) for item in range(size)]


def write(path: Path, entries: list[dict[str, Any]], *, zipped: bool = True) -> Path:
    data = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    return path


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    titles = [{"asin": f"i{item}", "title": f"Item &amp; {item}"} for item in range(9)]
    return write(tmp_path / "meta.json.gz", [*titles, {"asin": "page", "title": "<span>x</span>"}, {"asin": "none"}])


@pytest.mark.parametrize("zipped", [True, False])
def test_users_and_items_below_the_core_leave_until_none_is_left_to_leave(
    tmp_path: Path, metadata: Path, zipped: bool
) -> None:
    # u9 reviews four items of the core and i8; without i8 (one review) it is below five, and leaves too.
    extra = [review("u9", item, 70) for item in ("i0", "i1", "i2", "i3", "i8")]
    read = read_amazon(write(tmp_path / "r.json", square() + extra, zipped=zipped), metadata, AmazonOptions())
    assert len(read.interactions) == 25
    assert sorted(read.catalogue.item_ids) == [f"i{item}" for item in range(5)]
    assert "u9" not in read.interactions.user_ids
    assert read.catalogue.titles[0].startswith("Item & ")
    assert read.reviews == 30


def test_reviews_come_in_time_order_and_a_repeated_one_counts_once_the_first_time(
    tmp_path: Path, metadata: Path
) -> None:
    entries = [review("u0", "i0", 90), *square()]
    read = read_amazon(write(tmp_path / "r", entries), metadata, AmazonOptions())
    assert len(read.interactions) == 25
    assert np.all(np.diff(read.interactions.timestamp) >= 0)
    first = [row for row in range(25) if read.interactions.user[row] == 0 and read.interactions.item[row] == 0]
    assert read.interactions.timestamp[first].tolist() == [OCTOBER_2015]


def test_the_window_holds_its_first_day_and_not_its_last(tmp_path: Path, metadata: Path) -> None:
    entries = [review("u", f"i{item}", day) for item, day in enumerate((-1, 0, 1, 2))]
    options = AmazonOptions(begin="2015-10-01", end="2015-10-03", core=1)
    read = read_amazon(write(tmp_path / "r", entries), metadata, options)
    assert read.catalogue.item_ids == ("i1", "i2")


def test_items_without_a_usable_title_are_left_out_and_counted(tmp_path: Path, metadata: Path) -> None:
    entries = [review("u", item, 1) for item in ("i0", "page", "none", "unknown")]
    read = read_amazon(write(tmp_path / "r", entries), metadata, AmazonOptions(core=1))
    assert read.catalogue.item_ids == ("i0",)
    assert read.untitled == 3


@pytest.mark.parametrize("raw", [None, 5, "", "  ", "x" * 401, "var aPageStart = (new Date()).getTime();"])
def test_debris_is_no_title(raw: object) -> None:
    assert usable_title(raw) == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: holds a list"),
        ('{"reviewerID": "u", "asin": ""}', "line 2: asin is ''"),
        ('{"reviewerID": "u", "asin": "i0", "unixReviewTime": "5"}', "line 2: unixReviewTime '5' is no time from 1990"),
        ('{"reviewerID": "u", "asin": "i0", "unixReviewTime": true}', "line 2: unixReviewTime True is no time"),
        ('{"reviewerID": "u", "asin": "i0", "unixReviewTime": 5, "overall": "x"}', "line 2: overall is 'x'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, metadata: Path, line: str, message: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(review("u", "i0", 1)) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        read_amazon(path, metadata, AmazonOptions(core=1))


def test_nothing_left_says_why(tmp_path: Path, metadata: Path) -> None:
    with pytest.raises(DataError, match=r"none of 16 reviews is left: .* core 5"):
        read_amazon(write(tmp_path / "r", square(4)), metadata, AmazonOptions())


def test_a_truncated_file_is_an_error(tmp_path: Path, metadata: Path) -> None:
    path = write(tmp_path / "r.json.gz", square())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        read_amazon(path, metadata, AmazonOptions())


def test_a_window_is_of_days_in_order() -> None:
    with pytest.raises(InputError, match=r"^begin: 'today' is no day such as 2015-10-01$"):
        AmazonOptions.read({"begin": "today"})
    with pytest.raises(InputError, match=r"^begin: 2018-11-01 is not before end 2015-10-01$"):
        AmazonOptions.read({"begin": "2018-11-01", "end": "2015-10-01"})


def test_the_command_makes_a_prepared_folder(
    tmp_path: Path, metadata: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reviews = write(tmp_path / "r.json.gz", square())
    words = [
        "data",
        "prepare",
        "amazon",
        "--reviews",
        reviews,
        "--metadata",
        metadata,
        "--out",
        tmp_path / "o",
        "--json",
    ]
    assert main(list(map(str, words))) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["items"], summary["users"], summary["reviews"]) == (5, 5, 25)
    assert (tmp_path / "o" / "train.csv").is_file()
