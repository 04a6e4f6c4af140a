"""Gamma as a number or by the length of a history: what it means, what is refused, and the file that carries it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.errors import CatalogueError, InputError
from igd_core.scorers.gamma import checked_gamma, gamma_after, shown_gamma
from igd_core.scorers.gamma_file import ChosenGamma, read_gamma
from igd_core.scorers.options import ScorerOptions
from igd_core.scorers.record import ScorerRecord

if TYPE_CHECKING:
    from pathlib import Path

WRONG: list[tuple[object, str]] = [
    (1.5, r"is 1.5; 0 to 1 can be"),
    (math.nan, "is nan; 0 to 1 can be"),
    ("0.5", r"is '0\.5'; 0 to 1 can be"),
    (True, "is True; 0 to 1 can be"),
    ({"0": 0.5}, "is {'0': 0.5}; 0 to 1 can be"),
    ([], "has 0 steps; 1 to 64 can be"),
    ([[at, 0.5] for at in range(65)], "has 65 steps; 1 to 64 can be"),
    ([[1, 0.5]], "begins at 1 interactions; its first step begins at 0"),
    ([[0, 0.5], [5, 0.4], [5, 0.3]], "has 5 interactions after 5; they must rise"),
    ([[0, 0.5], [5, 0.4], [2, 0.3]], "has 2 interactions after 5; they must rise"),
    ([[0, 0.5], 5], r"has a step 5; \[INTERACTIONS, GAMMA\] is one"),
    ([[0, 0.5, 1]], r"has a step \[0, 0.5, 1\]"),
    ([[0.0, 0.5]], "has a step at 0.0 interactions; a whole number"),
    ([[False, 0.5]], "has a step at False interactions; a whole number"),
    ([[-1, 0.5]], "has a step at -1 interactions; a whole number"),
    ([[0, 0.5], [3, 1.01]], "is 1.01 from 3 interactions on; 0 to 1 can be"),
    ([[0, None]], "is None from 0 interactions on; 0 to 1 can be"),
    ([[0, math.nan]], "is nan from 0 interactions on"),
]


@given(
    later=st.dictionaries(st.integers(1, 60), st.floats(0, 1), max_size=8),
    first=st.floats(0, 1),
    length=st.integers(0, 80),
)
def test_a_histories_gamma_is_that_of_the_last_step_it_reaches(
    later: dict[int, float], first: float, length: int
) -> None:
    wanted = first
    for at in range(1, length + 1):  # item by item, as a history grows
        wanted = later.get(at, wanted)
    steps = checked_gamma([[0, first], *([at, later[at]] for at in sorted(later))])
    assert gamma_after(steps, length) == wanted
    assert gamma_after(first, length) == first


def test_a_table_reads_as_a_line() -> None:
    assert [shown_gamma(each) for each in (0.25, ((0, 1.0), (7, 0.05)))] == ["0.25", "0:1,7:0.05"]


@pytest.mark.parametrize(("gamma", "message"), WRONG)
def test_what_is_no_gamma_is_refused_by_name_wherever_it_lies(gamma: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        checked_gamma(gamma)
    file = tmp_path / "gamma.json"
    file.write_text(json.dumps({**ChosenGamma(gamma=0.5, mixture="linear", scorer="x").to_json(), "gamma": gamma}))
    with pytest.raises(InputError, match=rf"gamma\.json: gamma {message}"):
        read_gamma(file)
    if isinstance(gamma, list):
        with pytest.raises(InputError, match=f"^gamma: {message}"):
            ScorerOptions.read({"kind": "transitions", "gamma": gamma})
        record = ScorerRecord.of(ScorerOptions(kind="transitions"), 0)
        with pytest.raises(CatalogueError, match=f"scorer.gamma {message}"):
            replace(record, gamma=tuple(gamma))


@pytest.mark.parametrize("gamma", [0.25, 1, ((0, 0.5),), ((0, 0.0), (3, 1.0), (10, 0.25))])
def test_a_file_says_what_was_chosen(gamma: Any, tmp_path: Path) -> None:
    chosen = ChosenGamma(gamma=gamma, mixture="linear", scorer="transitions")
    file = tmp_path / "gamma.json"
    file.write_text(json.dumps({**chosen.to_json(), "more": "is for people"}))
    assert read_gamma(file) == chosen


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"not JSON"),
        (b"\xff", r"not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no igd-gamma file of version 1"),
        (b'{"format": "igd-gamma", "format_version": 2}', "no igd-gamma file of version 1"),
        (b'{"format": "igd-gamma", "format_version": 1, "mixture": "cubic"}', "mixture is 'cubic'; one of log-linear"),
        (b'{"format": "igd-gamma", "format_version": 1, "mixture": "linear", "scorer": 3}', "scorer is 3; the kind"),
        (b" " * (1 << 20) + b"{}", "longer than 1,048,576 bytes"),
    ],
)
def test_another_file_is_refused_in_a_line(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "gamma.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"gamma\.json: {message}") as refused:
        read_gamma(file)
    assert "\n" not in str(refused.value)


def test_steps_stay_as_they_are_written_because_a_version_hashes_them() -> None:
    made = ScorerOptions.read({"kind": "transitions", "gamma": [[0, 1], [5, 0.5]]})
    assert json.dumps(ScorerRecord.of(made, 0).to_json()["gamma"]) == "[[0, 1], [5, 0.5]]"
    assert json.dumps(made.to_json()["gamma"]) == "[[0, 1], [5, 0.5]]"
    assert json.dumps(ScorerRecord.of(made.replaced(gamma=1), 0).to_json()["gamma"]) == "1.0"


def test_a_file_that_is_not_there_names_who_writes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gamma.json: No such file or directory; `igd evaluate --gammas` writes it"):
        read_gamma(tmp_path / "gamma.json")


def test_a_choice_for_another_kind_of_scorer_is_refused() -> None:
    chosen = ChosenGamma(gamma=0.5, mixture="linear", scorer="transitions")
    chosen.require_for("transitions", where="here")
    with pytest.raises(InputError, match="here: was chosen for a scorer of transitions, and this one is of neighbours"):
        chosen.require_for("neighbours", where="here")
