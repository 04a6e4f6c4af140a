from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from igd_server.catalogues import titles
from igd_server.catalogues.titles import TitleSearch, normalised

from igd_core.catalogue.items import Catalogue
from igd_core.catalogue.packed_texts import PackedTexts

if TYPE_CHECKING:
    from collections.abc import Sequence

# Letters that fold, grow or vanish, signs that separate words, and what ends a line somewhere.
LETTERS = "aAbßİée\u0301'’_-. ٣三\n\r\x0b\x85\u2028"


def catalogue_of(lines: Sequence[str], frequency: list[int] | None = None) -> Catalogue:
    return Catalogue(
        item_ids=[str(row) for row in range(len(lines))],
        titles=lines,
        texts=lines,
        frequency=np.array(frequency or [0] * len(lines), dtype=np.int64),
        metadata={},
    )


def found_by_looking(lines: list[str], query: str) -> list[int]:
    """Every title, one by one; all are equally popular."""
    needle = normalised(query)
    begins = [row for row, line in enumerate(lines) if needle and f" {needle}" in f" {normalised(line)}"]
    return begins + [row for row, line in enumerate(lines) if needle in normalised(line) and row not in begins]


@given(
    lines=st.lists(st.text(LETTERS, max_size=6), min_size=1, max_size=20),
    query=st.text(LETTERS, min_size=1, max_size=4).filter(lambda text: bool(normalised(text))),
    page=st.integers(1, 7),
)
def test_wherever_the_text_is_cut_every_title_that_holds_the_query_is_found(
    lines: list[str], query: str, page: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(titles, "_PAGE_TITLES", page)
        patch.setattr(titles, "_LET_OTHERS_RUN_S", 0)
        found = TitleSearch(catalogue_of(lines)).find(query, limit=len(lines))
    assert list(found) == found_by_looking(lines, query)


def test_no_match_leads_from_one_title_to_the_next() -> None:
    search = TitleSearch(catalogue_of(["night", "fall"]))
    assert list(search.find("night fall", limit=2)) == []
    assert list(search.find("t f", limit=2)) == []


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("\U0001f680", [2, 0]),
        (" \u2764\ufe0f ", [1, 3]),
        ("\u2764", [1, 3]),
        ("\U0001f681", []),
        ("moon \U0001f680", [0]),
        ("!", []),
        ("\ufe0f", []),
    ],
)
def test_signs_are_found_though_they_are_no_words(query: str, rows: list[int]) -> None:
    lines = ["Moon \U0001f680 shot!", "I \u2764\ufe0f NY", "\U0001f680\U0001f680", "\u2764 of gold!"]
    search = TitleSearch(catalogue_of(lines, [1, 4, 3, 2]))
    assert list(search.find(query, limit=4)) == rows
    assert list(search.find(query, limit=1, offset=1)) == rows[1:2]


def test_the_most_popular_come_first_on_every_page() -> None:
    search = TitleSearch(catalogue_of([f"part {row}" for row in range(50)], frequency=list(range(50))))
    pages = [list(search.find("part", limit=20, offset=offset)) for offset in (0, 20, 40, 60)]
    assert [row for page in pages for row in page] == list(range(49, -1, -1))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=8))
@example(["A'b", "", " - ", "℡ Ab", "a\nb", "C`d--E  f_"])
def test_a_page_holds_each_normalised_title_behind_a_line_end_and_a_space(lines: list[str]) -> None:
    assert titles._page(lines) == "".join(f"\n {normalised(line)}" for line in lines).encode()


def test_no_title_stays_a_python_object() -> None:
    """As strings the 60,000 titles of 21 characters would take 78 bytes each."""
    items = 60_000
    catalogue = catalogue_of(PackedTexts.of(f"Wild Night Part {number:05d}" for number in range(items)))
    tracemalloc.start()
    search = TitleSearch(catalogue)
    now, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert list(search.find("part 59999", limit=2)) == [59_999]
    assert now / items < 30
