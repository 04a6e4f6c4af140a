from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.attributes import AttributeIndex
from igd_core.errors import QueryError

if TYPE_CHECKING:
    from igd_core.catalogue import MetadataValue

COLUMNS: dict[str, list[MetadataValue]] = {
    "year": [1995, None, 1996, 1995, 1995],
    "genres": [("drama", "noir"), (), ("comedy",), None, ("noir", "noir")],
    "sold": [True, False, None, True, True],
    "studio": ["Ö", "o", "", "Ö", None],
    "price": [0.5, 1.0, None, 0.5, -1.0],
}

names = st.sampled_from(["a", "b", "c"])
single: st.SearchStrategy[MetadataValue] = st.none() | names
multiple: st.SearchStrategy[MetadataValue] = st.none() | st.lists(names, max_size=3).map(tuple)


@given(data=st.data(), count=st.integers(1, 12))
def test_matching_equals_looking_at_every_item(data: st.DataObject, count: int) -> None:
    metadata = {
        "one": data.draw(st.lists(single, min_size=count, max_size=count)),
        "many": data.draw(st.lists(multiple, min_size=count, max_size=count)),
    }
    wanted = data.draw(
        st.dictionaries(st.sampled_from(["one", "many"]), st.lists(names | st.just("d"), min_size=1), min_size=1)
    )

    def has(value: MetadataValue, values: list[str]) -> bool:
        return any(one in values for one in value) if isinstance(value, tuple) else value in values

    expected = [
        row for row in range(count) if all(has(metadata[column][row], values) for column, values in wanted.items())
    ]
    index = AttributeIndex(metadata)
    for _ in range(2):  # the second answer comes from the index made for the first
        assert index.matching(wanted).tolist() == expected


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [
        ({"year": [1995]}, [0, 3, 4]),
        ({"year": [1995, 1996]}, [0, 2, 3, 4]),
        ({"year": [1999]}, []),
        ({"genres": ["noir"]}, [0, 4]),
        ({"genres": ["noir", "comedy"], "year": [1995]}, [0, 4]),
        ({"genres": ["comedy"], "year": [1995]}, []),
        ({"sold": [False]}, [1]),
        ({"sold": [True], "studio": ["Ö"]}, [0, 3]),
        ({"studio": [""]}, [2]),
        ({"price": [0.5, -1.0]}, [0, 3, 4]),
        ({}, []),
    ],
)
def test_any_value_of_a_column_and_every_column_named(wanted: dict[str, list[str]], rows: list[int]) -> None:
    found = AttributeIndex(COLUMNS).matching(wanted)
    assert found.tolist() == rows
    assert found.dtype == "int64"


def test_an_unknown_column_or_no_value_is_refused_by_field() -> None:
    index = AttributeIndex(COLUMNS)
    with pytest.raises(QueryError, match="filter: no attribute 'colour'; the catalogue has: genres, price") as caught:
        index.matching({"colour": ["red"]})
    assert caught.value.field == "filter"
    with pytest.raises(QueryError, match="attribute 'year': no value given"):
        index.matching({"year": []})
    with pytest.raises(QueryError, match="the catalogue has: none"):
        AttributeIndex({}).matching({"x" * 999: ["y"]})
