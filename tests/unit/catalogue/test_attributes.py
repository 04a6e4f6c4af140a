from __future__ import annotations

import datetime
import difflib
import math
import random
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from igd_core.catalogue.attribute_columns import ColumnValues, array_of, attribute_type
from igd_core.catalogue.attribute_types import BASE_TYPES, AttributeType, BaseType, comparable, in_json
from igd_core.catalogue.attributes import AttributeIndex
from igd_core.catalogue.conditions import Condition, conditions_of, nearest, num_values
from igd_core.errors import QueryError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from igd_core.catalogue.items import MetadataValue

    Catalogue: TypeAlias = tuple[dict[str, AttributeType], dict[str, list[MetadataValue]]]

# Few values, so that conditions meet items; and those that computers mix up.
DAYS = st.dates(datetime.date(1, 1, 1), datetime.date(9999, 12, 31)) | st.sampled_from(
    [datetime.date(1969, 12, 31), datetime.date(1970, 1, 1), datetime.date(2024, 2, 29)]
)
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: datetime.timezone(datetime.timedelta(minutes=minutes)))
TIMES = st.builds(
    lambda day, seconds, zone: (
        datetime.datetime.combine(day, datetime.time(), zone) + datetime.timedelta(seconds=seconds)
    ),
    st.dates(datetime.date(1, 1, 3), datetime.date(9999, 12, 28)),
    st.sampled_from([0, 0.5, 86399.999999]) | st.integers(0, 86399),
    st.just(datetime.UTC) | ZONES,
)
VALUES: dict[BaseType, st.SearchStrategy[Any]] = {
    "text": st.sampled_from(["", "a", "A", "b", "é", "e\u0301", "ß", "true", "1", "gte", "\U0001f600", "\uffff"]),
    "integer": st.sampled_from([0, 1, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)]) | st.integers(-3, 3),
    "number": st.sampled_from([0.0, -0.0, 1.0, 0.5, -2.5, 1e300, 5e-324, float(2**53)]) | st.integers(-2, 2),
    "boolean": st.booleans(),
    "date": DAYS.map(lambda day: day.isoformat()),
    "datetime": TIMES.map(lambda time: time.isoformat()),
}
ASKED: dict[BaseType, st.SearchStrategy[Any]] = {
    **VALUES,
    "integer": VALUES["integer"] | st.sampled_from([1.0, -0.0, 2**63, 2**64 + 1, -(2**70)]),
    "number": VALUES["number"] | st.sampled_from([2**53 + 1, 2**63, 10**300]),
}
MOSTLY: st.SearchStrategy[Any] = st.sampled_from([True, True, True, False])
BOUNDS = {**ASKED, "integer": ASKED["integer"] | st.sampled_from([0.5, -1.5, 1e300, -1e300])}


def key(base: BaseType, value: Any) -> Any:
    """What values of the type are compared by, said a second time."""
    match base:
        case "text":
            return unicodedata.normalize("NFC", value)
        case "date":
            return datetime.date.fromisoformat(value)
        case "datetime":
            return datetime.datetime.fromisoformat(value)
        case _:
            return value


def holds(base: BaseType, asked: Any, item: MetadataValue) -> bool:
    """Whether one item meets one attribute's part of a filter: read from the words of docs/reference/http-api.md."""
    own = [key(base, one) for one in (item if isinstance(item, tuple) else (item,)) if one is not None]
    if not isinstance(asked, dict):
        asked = {"any_of": asked if isinstance(asked, list) else [asked]}
    in_range = [
        one
        for one in own
        if ("gte" not in asked or one >= key(base, asked["gte"]))
        and ("gt" not in asked or one > key(base, asked["gt"]))
        and ("lte" not in asked or one <= key(base, asked["lte"]))
        and ("lt" not in asked or one < key(base, asked["lt"]))
    ]
    return (
        ("any_of" not in asked or any(one == key(base, value) for one in own for value in asked["any_of"]))
        and ("none_of" not in asked or not any(one == key(base, value) for one in own for value in asked["none_of"]))
        and (not {"gte", "gt", "lte", "lt"} & set(asked) or bool(in_range))
        and ("exists" not in asked or asked["exists"] == bool(own))
    )


@st.composite
def catalogues(draw: st.DrawFn) -> Catalogue:
    """Attributes of all types, one of them named as an operator is."""
    count = draw(st.integers(1, 8) | st.integers(4, 8))
    types, columns = {}, {}
    for name in draw(st.lists(st.sampled_from(["x", "y", "gte"]), min_size=1, unique=True)):
        types[name] = kind = AttributeType(base=draw(st.sampled_from(BASE_TYPES)), is_list=draw(st.booleans()))
        one = VALUES[kind.base]
        value: st.SearchStrategy[Any] = st.lists(one, max_size=3).map(tuple) if kind.is_list else one
        columns[name] = [draw(value) if draw(MOSTLY) else None for _ in range(count)]
    return types, columns


@st.composite
def parts(draw: st.DrawFn, base: BaseType, column: list[MetadataValue]) -> Any:
    """One attribute's part of a filter; three of four values in it are items' own, or most filters admit none."""
    own: list[Any] = [
        one for value in column for one in (value if isinstance(value, tuple) else (value,)) if one is not None
    ]

    def values(others: st.SearchStrategy[Any], least: int, most: int) -> list[Any]:
        count = draw(st.integers(least, most))
        return [draw(st.sampled_from(own) if draw(MOSTLY) and own else others) for _ in range(count)]

    ordered = [] if base == "boolean" else ["gte", "gt", "lt", "lte"]
    forms = ["one value", "a list", "any operators", *(["a range"] * 3 if ordered else ["any operators"])]
    form = draw(st.sampled_from(forms))
    if form in ("one value", "a list"):
        return values(ASKED[base], 1, 1)[0] if form == "one value" else values(ASKED[base], 1, 3)
    operators = ordered if form == "a range" else ["any_of", "none_of", "exists", *ordered]
    names = draw(st.lists(st.sampled_from(operators), min_size=1, max_size=2, unique=True))
    part: dict[str, Any] = {name: values(ASKED[base], 1, 3) for name in ("any_of", "none_of") if name in names}
    if "exists" in names:
        part["exists"] = draw(st.booleans())
    bounds = [name for name in ordered if name in names]
    ends = values(BOUNDS[base], len(bounds), len(bounds))
    if draw(MOSTLY):  # a range that can hold something
        ends.sort(key=lambda value: key(base, value))
    return {**part, **dict(zip(bounds, ends, strict=True))}


@st.composite
def filters(
    draw: st.DrawFn, types: Mapping[str, AttributeType], columns: Mapping[str, list[MetadataValue]]
) -> dict[str, Any]:
    """Of one attribute mostly: each further one admits less, and of none nothing is asked."""
    least, most = draw(st.sampled_from([(1, 1), (1, 1), (1, 1), (1, 1), (1, 3), (0, 0)]))
    names = draw(st.lists(st.sampled_from(sorted(types)), unique=True, min_size=least, max_size=most))
    return {name: draw(parts(types[name].base, columns[name])) for name in names}


@settings(max_examples=150)
@given(data=st.data(), catalogue=catalogues())
def test_matching_equals_looking_at_every_item(data: st.DataObject, catalogue: Catalogue) -> None:
    types, columns = catalogue
    written = data.draw(filters(types, columns))
    index = AttributeIndex(columns, types)
    try:
        conditions = conditions_of(written, types)
    except QueryError as error:
        if "no value can be both" not in str(error):  # a range whose lower bound is above its upper one
            raise
        event("refused")
        return
    count = len(next(iter(columns.values())))
    expected = [
        row
        for row in range(count)
        if written and all(holds(types[name].base, asked, columns[name][row]) for name, asked in written.items())
    ]
    outcome = "none" if not expected else "all" if len(expected) == count else "some"
    event(f"admits {outcome}")
    assert index.matching(conditions).tolist() == expected
    # What Arrow stores answers as what Python holds.
    stored = {name: ColumnValues(array_of(column, types[name])) for name, column in columns.items()}
    assert AttributeIndex(stored, types).matching(conditions).tolist() == expected
    named = {
        (name, value)
        for name, condition in conditions.items()
        for value in (*(condition.any_of or ()), *(condition.none_of or ()))
    }
    held = {
        (name, comparable(types[name].base, one))
        for name, column in columns.items()
        for value in column
        for one in (value if isinstance(value, tuple) else (value,))
        if one is not None
    }
    unknown = index.unknown_values(conditions)
    assert sum(len(found.values) for found in unknown) == len(named - held)


def test_most_filters_drawn_here_admit_some_items_and_not_all() -> None:
    outcomes: Counter[str] = Counter()

    @settings(max_examples=80, database=None, derandomize=True)
    @given(data=st.data(), catalogue=catalogues())
    def look(data: st.DataObject, catalogue: Catalogue) -> None:
        types, columns = catalogue
        try:
            conditions = conditions_of(data.draw(filters(types, columns)), types)
        except QueryError:
            return
        admitted = len(AttributeIndex(columns, types).matching(conditions))
        outcomes["none" if not admitted else "all" if admitted == len(next(iter(columns.values()))) else "some"] += 1

    look()
    assert outcomes["some"] > outcomes.total() / 2, outcomes


@pytest.mark.parametrize("base", ["text", "integer", "number", "date", "datetime"])
def test_a_bound_that_is_a_value_of_items_is_in_the_range_unless_strict(base: BaseType) -> None:
    in_order: dict[str, list[MetadataValue]] = {
        "text": ["a", "b", "c"],
        "integer": [-1, 0, 7],
        "number": [-0.5, 0.25, 7],
        "date": ["1969-12-31", "1970-01-01", "2001-05-17"],
        "datetime": ["1969-12-31T23:59:59.999999Z", "1970-01-01T00:00:00Z", "2001-05-17T10:00:00Z"],
    }
    values = in_order[base]
    index = AttributeIndex({"x": values}, {"x": AttributeType(base=base)})
    for operator, rows in (("gte", [1, 2]), ("gt", [2]), ("lte", [0, 1]), ("lt", [0])):
        assert index.matching(conditions_of({"x": {operator: values[1]}}, index.types)).tolist() == rows


@given(data=st.data(), base=st.sampled_from(BASE_TYPES), is_list=st.booleans())
def test_a_stored_column_gives_its_values_back(data: st.DataObject, base: BaseType, is_list: bool) -> None:
    kind = AttributeType(base=base, is_list=is_list)
    one = VALUES[base]
    values = data.draw(st.lists(st.none() | (st.lists(one, max_size=3).map(tuple) if is_list else one), max_size=6))
    column = ColumnValues(array_of(values, kind))
    assert attribute_type(column.array.type) == column.type == kind

    def plain(value: Any) -> Any:
        if value is None or base not in {"date", "datetime"}:
            return value
        return tuple(map(plain, value)) if isinstance(value, tuple) else in_json(base, comparable(base, value))

    assert list(column) == [column[at] for at in range(len(values))] == column[:] == [plain(value) for value in values]
    assert array_of(column, kind) is column.array


@given(base=st.sampled_from(BASE_TYPES), data=st.data())
def test_no_type_takes_another_types_values(base: BaseType, data: st.DataObject) -> None:
    others: dict[BaseType, list[Any]] = {
        "text": [1, True, None, 1.5],
        "integer": [True, "1", 1.5, None, math.nan, math.inf, 10**400],
        "number": [False, "1.5", None, math.nan, -math.inf, -(10**400)],
        "boolean": [0, 1, "true", None, 1.0],
        "date": [0, "2001-5-17", "2001-02-30", "20010517", "2001-05-17T00:00:00Z", "0000-01-01", True],
        "datetime": [0, "2001-05-17", "2001-05-17T10:00:00", "0001-01-01T00:00:00+14:00", "2001-05-17T25:00:00Z"],
    }
    with pytest.raises(ValueError, match=r"is (no|too)"):
        comparable(base, data.draw(st.sampled_from([*others[base], ["x"], {}])))


TYPES = {
    "discs": AttributeType(base="integer"),
    "live": AttributeType(base="boolean"),
    "price": AttributeType(base="number"),
    "sold": AttributeType(base="date"),
    "genres": AttributeType(base="text", is_list=True),
    "code": AttributeType(base="text"),
}


@pytest.mark.parametrize(
    ("written", "field", "message"),
    [
        ({"discs": True}, "filter.discs", "true is no integer, such as 7; the attribute is integer"),
        ({"discs": "1"}, "filter.discs", "'1' is no integer"),
        ({"discs": 1.5}, "filter.discs", "1.5 is no integer"),
        ({"discs": [1, "2"]}, "filter.discs", "'2' is no integer"),
        ({"discs": {"gte": "1"}}, "filter.discs.gte", "'1' is no number, such as 9.5; the attribute is integer"),
        ({"discs": math.nan}, "filter.discs", "got nan"),
        ({"discs": {"lt": math.inf}}, "filter.discs", "lt: expected .* got inf"),
        ({"discs": 2**1024}, "filter.discs", "a number of 1025 bits is too large"),
        ({"live": 1}, "filter.live", "1 is no boolean, such as true or false; the attribute is boolean"),
        ({"live": {"gte": True}}, "filter.live.gte", "true: the attribute is boolean, which has no order"),
        ({"price": "9.5"}, "filter.price", "'9.5' is no number"),
        ({"sold": 2001}, "filter.sold", '2001 is no date, such as "2001-05-17"'),
        ({"sold": {"gte": "2001-02-30"}}, "filter.sold.gte", "'2001-02-30' is no day of the calendar"),
        ({"genres": {"none_of": [7]}}, "filter.genres.none_of", "7 is no text, .* the attribute is list-of-text"),
        ({"code": 7}, "filter.code", "7 is no text"),
        ({"code": None}, "filter.code", "got null"),
        ({"code": []}, "filter.code", "0 values; 1 to 100"),
        ({"code": {"any_of": []}}, "filter.code", "any_of: 0 values"),
        ({"code": {"any_of": "x"}}, "filter.code", "any_of: 'x' is no list"),
        ({"code": {"exists": 1}}, "filter.code", "exists: 1 is neither true nor false"),
        ({"code": {}}, "filter.code", "no operator; there are any_of, none_of, gte"),
        ({"code": {"$gt": 1}}, "filter.code", r"no operator '\$gt'; there are"),
        ({"code": "x" * 2000}, "filter.code", "a text of 2000 characters"),
        ({"code": {"none_of": ["\ud800"]}}, "filter.code", r"none_of: '\\ud800' holds half a character"),
        ({"code": ["x"] * 101}, "filter.code", "101 values"),
        ({"price": {"gte": 3, "lt": 2}}, "filter.price", "gte 3, lt 2: no value can be both"),
        ({"Disc": 1}, "filter", r"no attribute 'Disc' \(did you mean 'discs'\?\); the catalogue has: code, discs"),
        ({str(number): 1 for number in range(17)}, "filter", "17 attributes; at most 16"),
        ([], "filter", "an array of 0 is no object"),
    ],
)
def test_what_no_attribute_can_be_is_refused_by_field_value_and_type(written: Any, field: str, message: str) -> None:
    with pytest.raises(QueryError, match=message) as caught:
        conditions_of(written, TYPES)
    assert caught.value.field == field
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"discs": 1}, {"discs": {"any_of": [1.0, 1]}}),
        ({"discs": {"gt": 1}}, {"discs": {"gte": 2}}),
        ({"discs": {"gt": 1.5, "lte": 3}}, {"discs": {"gte": 2.0, "lt": 4, "lte": 3.5}}),
        ({"price": -0.0}, {"price": 0}),
        ({"price": {"gte": 1, "gt": 1}}, {"price": {"gt": 1.0}}),
        ({"price": {"gt": 0, "gte": 1}}, {"price": {"gte": 1}}),
        ({"sold": {"gt": "2001-05-17"}}, {"sold": {"gte": "2001-05-18"}}),
        ({"code": "e\u0301"}, {"code": ["é", "e\u0301"]}),
        ({"genres": ["b", "a"]}, {"genres": {"any_of": ["a", "b", "a"]}}),
    ],
)
def test_filters_that_mean_the_same_become_one_condition(one: Any, other: Any) -> None:
    first, second = conditions_of(one, TYPES), conditions_of(other, TYPES)
    assert first == second
    assert [condition.canonical() for condition in first.values()] == [each.canonical() for each in second.values()]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"price": {"gt": 1}}, {"price": {"gte": 1}}),
        ({"price": 2**53}, {"price": 2**53 + 1}),
        ({"code": "a"}, {"code": "A"}),
        ({"code": {"gte": "a"}}, {"code": {"lte": "a"}}),
        ({"code": {"exists": True}}, {"code": {"exists": False}}),
        ({"code": {"any_of": ["a"]}}, {"code": {"none_of": ["a"]}}),
    ],
)
def test_filters_that_differ_stay_apart(one: Any, other: Any) -> None:
    (first,), (second,) = conditions_of(one, TYPES).values(), conditions_of(other, TYPES).values()
    assert first.canonical() != second.canonical()


COLUMNS: Mapping[str, list[MetadataValue]] = {
    "discs": [1, 2, None, 10],
    "live": [True, True, None, True],
    "price": [0.5, 1.0, 100.0, None],
    "sold": ["2001-05-17", "2003-01-01", None, None],
    "genres": [("Rock", "Pop"), ("Jazz",), (), None],
    "code": ["007", "Straße", None, "é"],
}


@pytest.mark.parametrize(
    ("written", "values", "near"),
    [
        ({"genres": "rock"}, ("rock",), ("Rock",)),
        ({"genres": ["Rock", "Jaz"]}, ("Jaz",), ("Jazz",)),
        ({"genres": {"none_of": ["Popp"]}}, ("Popp",), ("Pop",)),
        ({"discs": 7}, (7,), (2, 10)),
        ({"discs": 2**63}, (2**63,), (10,)),
        ({"price": [0.4, 0.5]}, (0.4,), (0.5,)),
        ({"sold": "2002-01-01"}, ("2002-01-01",), ("2001-05-17", "2003-01-01")),
        ({"live": False}, (False,), (True,)),
        ({"code": "STRASSE"}, ("STRASSE",), ("Straße",)),
        ({"code": "\x00" * 99}, ("\x00" * 99,), ()),
    ],
)
def test_a_value_that_no_item_has_is_named_with_the_nearest(written: Any, values: Any, near: Any) -> None:
    (found,) = AttributeIndex(COLUMNS, TYPES).unknown_values(conditions_of(written, TYPES))
    assert (found.attribute, found.values, found.nearest) == (next(iter(written)), values, near)
    assert str(found).startswith("no item has ")
    assert ("nearest" in str(found)) == bool(near)
    assert len(str(found)) < 500


def test_among_many_values_the_nearest_are_sought_where_they_begin_alike() -> None:
    names: list[MetadataValue] = [f"Maker {number:04}" for number in range(5000)]
    index = AttributeIndex({"maker": names}, {"maker": AttributeType(base="text")})
    (found,) = index.unknown_values(conditions_of({"maker": ["maker 0421", "zzz"]}, index.types))
    assert found.nearest[0] == "Maker 0421"
    many = conditions_of({"maker": [f"m{number}" for number in range(100)]}, index.types)
    (found,) = index.unknown_values(many)
    assert (len(found.values), str(found).count("m")) == (100, str(found).count("m"))
    assert ", ..." in str(found)


def test_of_many_values_the_nearest_is_what_comparing_all_of_them_finds() -> None:
    rng = random.Random(3)
    words = ["lamp", "chair", "table", "desk", "shelf", "sofa", "stool", "bench"]
    names = sorted({" ".join(rng.choices(words, k=4)) for _ in range(250)})
    for _ in range(30):
        name = rng.choice(names)
        at = rng.randrange(len(name))
        misspelt = rng.choice([name[:at] + name[at + 1 :], name[:at] + "x" + name[at:], name.upper()[:at] + name[at:]])
        assert nearest(misspelt, names)[0] == difflib.get_close_matches(misspelt.casefold(), names, n=1)[0]


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ({}, 0),
        ({"code": "x", "discs": [1, 2, 3]}, 4),
        ({"code": {"any_of": ["x", "y"], "none_of": ["z"]}, "price": {"gte": 1, "lt": 2, "exists": True}}, 6),
    ],
)
def test_the_values_of_a_filter_are_counted_whatever_its_form(written: Any, count: int) -> None:
    assert num_values(written) == count


def test_an_index_costs_four_bytes_a_value_and_sixteen_a_distinct_one() -> None:
    rng = np.random.default_rng(1)
    prices = ColumnValues(pa.array(rng.integers(0, 1000, 50_000)))
    column = AttributeIndex({"price": prices}, {"price": prices.type})._columns["price"]
    assert column.rows.nbytes + column.start.nbytes + column.distinct.nbytes <= 4 * 50_000 + 16 * 1001
    texts = ColumnValues(pa.array([f"maker {number % 1000:04}" for number in range(50_000)]))
    column = AttributeIndex({"maker": texts}, {"maker": texts.type})._columns["maker"]
    assert column.rows.nbytes + column.start.nbytes + column.distinct.nbytes <= 4 * 50_000 + (12 + 10 + 1) * 1001


def test_an_index_refuses_an_attribute_it_does_not_have() -> None:
    with pytest.raises(QueryError, match="no attribute 'x'; the catalogue has: none"):
        AttributeIndex({}, {}).matching({"x": Condition(exists=True)})
    assert AttributeIndex({}, {}).matching({}).dtype == "int64"


def test_a_column_of_an_earlier_release_without_a_value_counts_as_text() -> None:
    assert ColumnValues(pa.array([None, None])).type == AttributeType(base="text")
    assert ColumnValues(pa.array([[], None])).type == AttributeType(base="text", is_list=True)
    with pytest.raises(ValueError, match="is no type of attributes"):
        ColumnValues(pa.array([b"x"]))


@example("list-of-list-of-text")
@example("float")
@settings(max_examples=30)
@given(st.text(max_size=5))
def test_only_names_of_types_are_types(name: str) -> None:
    names = [prefix + base for prefix in ("", "list-of-") for base in BASE_TYPES]
    if name in names:
        assert AttributeType.of(name).name == name
    else:
        with pytest.raises(ValueError, match="is no type; there are text, integer"):
            AttributeType.of(name)
    assert [AttributeType.of(known).name for known in names] == names
