"""Several scorers as one, against the mean of their distributions, item by item."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.errors import CatalogueError
from igd_core.ids import ItemIndex
from igd_core.scorers.blended import BlendedPart, BlendedScorer
from igd_core.scorers.network import NetworkPart, NetworkRecord
from igd_core.scorers.options import ScorerOptions
from igd_core.scorers.record import ScorerRecord, check_options, make_part
from igd_core.scorers.rows import SparseRows

if TYPE_CHECKING:
    from igd_core.scorers.mass import ItemMass

NUM_ITEMS = 9
POPULARITY = np.arange(1, NUM_ITEMS + 1) / np.arange(1, NUM_ITEMS + 1).sum()
SEQUENCES = [np.array(each, np.int32) for each in ([0, 1, 2, 3], [1, 2, 5], [4, 1, 2], [7, 3, 0])]
NETWORK = NetworkRecord(width=4, layers=1, heads=2, length=3, temperature=1.5, background=0.25)


def network(*_: object) -> NetworkPart:
    rng = np.random.default_rng(5)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in NETWORK.shapes(NUM_ITEMS).items()}
    return NetworkPart(network=NETWORK, tensors=tensors)


def blended(*also: str, **options: Any) -> BlendedScorer:
    makers = {"sasrec": network} if "sasrec" in also else {}
    asked = ScorerOptions.read({"kind": "transitions", "also": also, "makers": makers, **options})
    check_options(asked)
    catalogue: Any = [None] * NUM_ITEMS
    part = make_part(asked, catalogue, SEQUENCES)
    assert isinstance(part, BlendedPart)
    assert part.fault(NUM_ITEMS) is None
    scorer = ScorerRecord.of_part(asked, part).scorer(part, sha256="a")
    assert isinstance(scorer, BlendedScorer)
    return scorer


def by_item(mass: ItemMass) -> list[float]:
    found: list[float] = (mass.background * POPULARITY).tolist()
    for place, share in zip(range(NUM_ITEMS) if mass.items is None else mass.items.tolist(), mass.mass, strict=True):
        found[place] += float(share)
    return found


@pytest.mark.parametrize("also", [("ease",), ("sasrec",), ("neighbours", "ease"), ("ease", "sasrec", "neighbours")])
@given(history=st.lists(st.integers(0, NUM_ITEMS - 1).map(ItemIndex), max_size=5))
def test_it_says_the_mean_of_what_each_says(also: tuple[str, ...], history: list[ItemIndex]) -> None:
    scorer = blended(*also, share=0.3)
    assert scorer.shares == (0.3, *([0.7 / len(also)] * len(also)))
    mass = scorer.mass(history)
    mass.check(NUM_ITEMS)
    alone = [by_item(each.mass(history)) for each in scorer.scorers]
    expected = [sum(s * each[item] for s, each in zip(scorer.shares, alone, strict=True)) for item in range(NUM_ITEMS)]
    assert by_item(mass) == pytest.approx(expected, abs=1e-12)
    assert sum(expected) == pytest.approx(1.0)
    if "sasrec" not in also:
        assert mass.items is not None, "what is sparse stays sparse: a million items cost nothing"


def test_shares_are_equal_where_none_is_said() -> None:
    assert blended("ease").shares == (0.5, 0.5)
    assert blended("ease", "sasrec", "neighbours").shares == pytest.approx((0.25,) * 4)


def test_settings_are_of_the_first_kind_and_the_others_have_their_own() -> None:
    first, second = blended("ease", decay=0.9, backoff=3.0, most=1).scorers
    alone = blended("neighbours").scorers[0]
    assert (getattr(first, "decay", None), getattr(first, "backoff", None)) == (0.9, 3.0)
    assert (getattr(second, "decay", None), getattr(second, "backoff", None)) == (0.7, 1.0)
    lengths = [len(each.part.arrays()["scorer_item"]) for each in (first, alone)]
    assert lengths[0] < lengths[1], "one entry of an item was asked for"


def test_the_fingerprint_knows_kinds_order_and_shares() -> None:
    options: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (("ease",), {}),
        (("ease",), {"share": 0.4}),
        (("neighbours",), {}),
        (("ease", "neighbours"), {}),
        (("neighbours", "ease"), {}),
        (("ease",), {"decay": 0.5}),
    ]
    assert len({blended(*also, **said).fingerprint for also, said in options}) == len(options)


def test_a_record_is_what_its_json_says_and_is_checked() -> None:
    options = ScorerOptions(kind="ease", also=("transitions", "sasrec"), share=0.4, gamma=0.5)
    record = ScorerRecord.of(options, 4, 7, NETWORK)
    said = record.to_json()
    assert ScorerRecord(**said) == record
    assert record.name == "ease+transitions+sasrec"
    assert said["also"] == [
        {"kind": "transitions", "decay": 0.25, "backoff": 1.0, "entries": 7},
        {"kind": "sasrec", "network": said["also"][1]["network"]},
    ]
    for change, message in (
        ({"share": None}, r"scorer\.share is None; above 0 and below 1"),
        ({"share": 1.0}, r"scorer\.share is 1\.0; above 0 and below 1"),
        ({"also": said["also"] + said["also"][:1]}, r"scorer\.also: ease, transitions, sasrec, transitions; 4 kinds"),
        ({"also": [{"kind": "ease", "decay": 0.7, "backoff": 1.0, "entries": 1, "ridge": 1.0}]}, "each once"),
        ({"also": [{"kind": "eas"}]}, r"scorer\.kind is 'eas'; one of"),
        ({"also": []}, r"scorer\.share is 0\.4; a scorer of one kind has none"),
    ):
        with pytest.raises(CatalogueError, match=message):
            ScorerRecord(**{**said, **change})


def test_parts_of_other_kinds_are_refused() -> None:
    scorer = blended("ease")
    record = ScorerRecord.of(ScorerOptions(kind="transitions", also=("ease",)), 1, 1)
    with pytest.raises(CatalogueError, match=r"arrays of another kind than transitions\+ease"):
        record.scorer(scorer.part.parts[0], sha256="a")
    with pytest.raises(CatalogueError, match="arrays of 3 kinds for"):
        record.scorer(BlendedPart(parts=scorer.part.parts + scorer.part.parts[:1]), sha256="a")
    second = scorer.part.parts[1]
    assert isinstance(second, SparseRows)
    damaged = replace(second, scorer_start=np.zeros(3, np.int32))
    assert BlendedPart(parts=(scorer.part.parts[0], damaged)).fault(NUM_ITEMS) == "also1.scorer_start"


def test_a_kind_that_is_trained_needs_its_maker() -> None:
    with pytest.raises(CatalogueError, match=r"scorer\.makers are of \[\]; sasrec and given need one"):
        check_options(ScorerOptions(kind="ease", also=("sasrec",)))
