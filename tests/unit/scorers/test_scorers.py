"""Item scorers against counts made one by one in plain Python."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.errors import CatalogueError, InputError, ModelFault
from igd_core.ids import ItemIndex
from igd_core.scorers.counting import neighbour_rows, transition_rows
from igd_core.scorers.mass import ItemMass
from igd_core.scorers.options import ScorerOptions
from igd_core.scorers.record import ScorerRecord
from igd_core.scorers.rows import SparseRows
from igd_core.scorers.sparse import SparseScorer

if TYPE_CHECKING:
    from collections.abc import Sequence

NUM_ITEMS = 9
SEQUENCES = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=7), max_size=8)


def arrays(sequences: Sequence[Sequence[int]]) -> list[np.ndarray[tuple[int], np.dtype[np.int32]]]:
    return [np.array(each, np.int32) for each in sequences]


def entries(rows: SparseRows) -> dict[tuple[int, int], float]:
    return {
        (item, other): weight
        for item in range(NUM_ITEMS)
        for other, weight in zip(*(array.tolist() for array in rows.of(item)), strict=True)
    }


def strongest(weights: dict[tuple[int, int], float], most: int) -> dict[tuple[int, int], float]:
    kept: dict[tuple[int, int], float] = {}
    for item in range(NUM_ITEMS):
        row = sorted(
            ((pair, weight) for pair, weight in weights.items() if pair[0] == item), key=lambda e: (-e[1], e[0])
        )
        kept |= dict(row[:most])
    return kept


@given(sequences=SEQUENCES, most=st.integers(1, 4))
def test_transitions_are_the_pairs_that_follow_each_other(sequences: list[list[int]], most: int) -> None:
    counts = Counter(pair for sequence in sequences for pair in pairwise(sequence))
    rows = transition_rows(arrays(sequences), num_items=NUM_ITEMS, most=most)
    assert entries(rows) == strongest(dict(counts), most)
    assert rows.fault(NUM_ITEMS) is None


@given(sequences=SEQUENCES, most=st.integers(1, 9))
def test_neighbours_are_the_cosines_of_the_sets_of_people(sequences: list[list[int]], most: int) -> None:
    people = defaultdict(set)
    for person, sequence in enumerate(sequences):
        for item in sequence:
            people[item].add(person)
    cosine = {
        (one, other): len(people[one] & people[other]) / math.sqrt(len(people[one]) * len(people[other]))
        for one in people
        for other in people
        if one != other and people[one] & people[other]
    }
    found = entries(neighbour_rows(arrays(sequences), num_items=NUM_ITEMS, most=most))
    if most >= NUM_ITEMS:
        assert found == {pair: pytest.approx(weight) for pair, weight in cosine.items()}
    assert all(weight == pytest.approx(cosine[pair]) for pair, weight in found.items())
    for item in range(NUM_ITEMS):
        kept = sorted((weight for pair, weight in found.items() if pair[0] == item), reverse=True)
        best = sorted((weight for pair, weight in cosine.items() if pair[0] == item), reverse=True)
        assert kept == pytest.approx(best[:most])


def test_only_the_latest_choices_of_a_person_count_as_neighbours() -> None:
    rows = neighbour_rows([np.arange(300, dtype=np.int32)], num_items=300, most=300)
    assert [len(rows.of(item)[0]) for item in (0, 99, 100, 299)] == [0, 0, 199, 199]


def scorer(weights: dict[tuple[int, int], float], *, decay: float, backoff: float) -> SparseScorer:
    pairs = np.array(sorted(weights), np.int64).reshape(-1, 2)
    values = np.array([weights[one, other] for one, other in pairs.tolist()])
    rows = SparseRows.strongest(pairs[:, 0], pairs[:, 1], values, num_items=NUM_ITEMS, most=NUM_ITEMS)
    return SparseScorer(rows=rows, decay=decay, backoff=backoff, fingerprint="")


@given(
    weights=st.dictionaries(
        st.tuples(st.integers(0, NUM_ITEMS - 1), st.integers(0, NUM_ITEMS - 1)), st.sampled_from([0.5, 1.0, 3.0])
    ),
    history=st.lists(st.integers(0, NUM_ITEMS - 1), max_size=6),
    decay=st.sampled_from([0.0, 0.5, 1.0]),
    backoff=st.sampled_from([0.25, 4.0]),
)
def test_mass_is_the_documented_formula(
    weights: dict[tuple[int, int], float], history: list[int], decay: float, backoff: float
) -> None:
    mass = scorer(weights, decay=decay, backoff=backoff).mass([ItemIndex(item) for item in history])
    mass.check(NUM_ITEMS)
    latest = sorted(set(history), key=lambda item: -max(at for at, each in enumerate(history) if each == item))
    sums = [
        sum(decay**age * weights.get((item, other), 0.0) for age, item in enumerate(latest))
        for other in range(NUM_ITEMS)
    ]
    assert mass.items is not None
    found = np.bincount(mass.items, weights=mass.mass, minlength=NUM_ITEMS)
    assert found.tolist() == pytest.approx([each / (sum(sums) + backoff) for each in sums])
    assert mass.background == pytest.approx(backoff / (sum(sums) + backoff))


def _items(mass: ItemMass) -> list[int]:
    assert mass.items is not None
    return [int(item) for item in mass.items]


def test_earlier_items_speak_up_where_the_last_says_nothing() -> None:
    made = scorer({(1, 4): 2.0}, decay=0.25, backoff=1.0)
    assert _items(made.mass([ItemIndex(1), ItemIndex(2)])) == [4]
    assert made.mass([ItemIndex(2)]).background == 1.0
    assert made.mass([]).background == 1.0


def test_an_item_far_back_is_not_looked_at() -> None:
    made = scorer({(item, 0): 1.0 for item in range(NUM_ITEMS)}, decay=0.01, backoff=1.0)
    assert len(_items(made.mass([ItemIndex(item) for item in range(NUM_ITEMS)]))) == 2


@pytest.mark.parametrize(
    ("background", "items", "mass", "message"),
    [
        (0.0, [1], [1.0], "a background of 0.0"),
        (math.nan, [1], [1.0], "a background of nan"),
        (0.5, [1, 2], [0.5], r"\(2,\) items and \(1,\) shares"),
        (0.5, [-1], [0.5], "item rows -1 to -1 of 9"),
        (0.5, [9], [0.5], "item rows 9 to 9 of 9"),
        (0.5, [1, 2], [0.6, -0.1], "a share of -0.1"),
        (0.5, [1, 2], [0.5, math.nan], "a share of nan"),
        (0.5, [1], [0.6], "sum to 1.1"),
        (0.5, [], [], "sum to 0.5"),
        (0.5, None, [0.5], r"\(9,\) items and \(1,\) shares"),
        (0.5, None, [0.0625] * 9, "sum to 1.0625"),
        (0.5, None, [0.5, *[0.25, -0.25] * 4], "a share of -0.25"),
    ],
)
def test_what_is_no_distribution_is_refused(
    background: float, items: list[int] | None, mass: list[float], message: str
) -> None:
    rows = None if items is None else np.array(items, np.int64)
    said = ItemMass(background=background, items=rows, mass=np.array(mass, np.float64))
    with pytest.raises(ModelFault, match=f"item scorer: .*{message}"):
        said.check(NUM_ITEMS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "magic"}, "kind: 'magic' is not one of transitions, neighbours, ease, sasrec, given"),
        ({"mixture": "cubic"}, "mixture: 'cubic' is not one of log-linear, linear"),
        ({"decay": 1.5}, r"decay: 1.5 is not in 0..1"),
        ({"backoff": 1e-7}, r"backoff: 1e-07 is not in 1e-06..1e\+06"),
        ({"backoff": math.inf}, "backoff: inf is not in"),
        ({"gamma": math.nan}, "gamma: is nan"),
        ({"most": 0}, "most: 0 is not in 1..10000"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        ScorerOptions.read({"kind": "transitions", **options})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"kind": "magic"}, "scorer.kind is 'magic'; one of transitions, neighbours, ease, sasrec, given"),
        ({"mixture": "cubic"}, "scorer.mixture is 'cubic'"),
        ({"decay": 1.5}, r"scorer.decay is 1.5; 0 to 1 can be"),
        ({"backoff": 1e-7}, r"scorer.backoff is 1e-07; 1e-06 to 1e\+06 can be"),
        ({"backoff": math.inf}, "scorer.backoff is inf"),
        ({"gamma": math.nan}, "scorer.gamma is nan"),
    ],
)
def test_a_manifest_with_a_value_out_of_range_is_refused_by_name(said: dict[str, Any], message: str) -> None:
    record = ScorerRecord.of(ScorerOptions(kind="transitions"), 1)
    with pytest.raises(CatalogueError, match=message):
        ScorerRecord(**{**record.to_json(), **said})


def test_the_fingerprint_tells_scorers_apart() -> None:
    rows = transition_rows(arrays([[0, 1]]), num_items=NUM_ITEMS, most=1)
    made = {
        ScorerRecord.of(ScorerOptions(kind=kind, decay=decay, backoff=backoff), 1)
        .scorer(rows, sha256=sha256)
        .fingerprint
        for kind in ("transitions", "neighbours")
        for decay in (0.0, 0.5)
        for backoff in (1.0, 2.0)
        for sha256 in ("a", "b")
    }
    assert len(made) == 16
