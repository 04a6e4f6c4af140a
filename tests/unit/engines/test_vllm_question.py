"""What travels to vLLM's engine with a round, and back; needs no vLLM."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.engines.vllm.forced import ForcedLogprobs, digest
from igd_core.engines.vllm.question import (
    NO_NODE,
    Ask,
    NodeAnswer,
    NodeQuestion,
    Round,
    RoundAnswers,
    check_params,
)


def ints(*values: int) -> Any:
    return np.array(values, dtype=np.int32)


def floats(*values: float) -> Any:
    return np.array(values, dtype=np.float32)


def good(**changed: Any) -> NodeQuestion:
    values: dict[str, Any] = {"version": "v1", "node": 3, "alpha": 0.2, "temperature": 1.0, "keep": 20}
    return NodeQuestion(**(values | {"listed": ints(0, 4), "only_listed": True} | changed))


def extra_args(*asks: Ask) -> dict[str, Any]:
    return Round(asks=asks or [Ask(path=[7, 8], question=good(forced=1))]).to_extra_args()


def params(**changed: Any) -> Any:
    """The parameters that a request with a round has, as far as they are checked."""
    values: dict[str, Any] = {
        "n": 1,
        "max_tokens": 1,
        "min_tokens": 0,
        "temperature": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logit_bias": None,
        "allowed_token_ids": None,
        "bad_words": [],
        "structured_outputs": None,
        "logprobs": None,
        "prompt_logprobs": None,
        "logprob_token_ids": None,
        "thinking_token_budget": None,
        "extra_args": extra_args(),
    }
    return SimpleNamespace(**(values | changed))


def as_lists(found: Any) -> dict[str, Any]:
    values = {each.name: getattr(found, each.name) for each in dataclasses.fields(found)}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


TOKENS = st.integers(0, 2**31 - 1)
NATS = st.floats(-1e6, 1e6, width=32)
ROWS = st.builds(
    Ask,
    path=st.lists(TOKENS, max_size=4),
    question=st.builds(
        NodeQuestion,
        version=st.just("v1"),
        node=st.integers(NO_NODE, 2**31 - 1),
        alpha=st.just(0.3),
        temperature=st.just(0.7),
        over_children=st.just(True),
        keep=st.integers(1, 400),
        listed=st.sets(st.integers(0, 10**6)).map(lambda places: ints(*sorted(places))),
        only_listed=st.booleans(),
        prior=st.lists(NATS, max_size=4).map(lambda values: floats(*values)),
        prior_model=NATS,
        prior_linear=st.booleans(),
    ),
)


@given(asks=st.lists(ROWS, min_size=1, max_size=5), data=st.data())
def test_a_round_survives_the_way_to_the_engine(asks: list[Ask], data: st.DataObject) -> None:
    asks = [
        dataclasses.replace(
            ask, question=dataclasses.replace(ask.question, forced=data.draw(st.integers(0, len(ask.path))))
        )
        for ask in asks
    ]
    found = Round.from_extra_args(extra_args(*asks))
    assert found is not None
    for one, other in zip(found.asks, asks, strict=True):
        assert one.path == other.path
        assert as_lists(one.question) == as_lists(other.question)


@given(
    answers=st.lists(
        st.builds(
            NodeAnswer,
            cached=st.integers(0, 10**6),
            tokens=st.just(ints(5, 9, 2)),
            logprobs=st.lists(NATS, min_size=3, max_size=3).map(lambda values: floats(*values)),
            forced=st.lists(st.floats(width=32, allow_nan=False), max_size=3).map(lambda values: floats(*values)),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_answers_survive_the_way_back(answers: list[NodeAnswer]) -> None:
    found = RoundAnswers.from_params(RoundAnswers(answers=answers).to_params())
    assert found is not None
    assert [as_lists(each) for each in found.answers] == [as_lists(each) for each in answers]


@pytest.mark.parametrize("params", [None, {}, {"do_remote_prefill": True}])
def test_an_output_without_answers_has_none(params: dict[str, Any] | None) -> None:
    assert RoundAnswers.from_params(params) is None


@pytest.mark.parametrize("given_args", [None, {}, {"other": 1}])
def test_requests_without_a_round_are_none_of_our_business(given_args: dict[str, Any] | None) -> None:
    assert Round.from_extra_args(given_args) is None
    check_params(params(extra_args=given_args, n=4, temperature=0.7, logprobs=3))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", "", "igd.version: '' is not a version"),
        ("version", 7, "igd.version: 7 is not"),
        ("alpha", 1.01, r"igd.alpha: 1\.01 is not in 0\.0\.\.1\.0"),
        ("alpha", float("nan"), "igd.alpha: nan is not in"),
        ("alpha", "high", "igd.alpha: 'high' is not in"),
        ("over_children", 1, "igd.over_children: 1 is not true or false"),
        ("temperature", 0, "igd.temperature: 0 is not in"),
        ("temperature", float("inf"), "igd.temperature: inf is not in"),
        ("numbers", [1, 2], "igd.numbers: bytes of whole numbers"),
        ("numbers", b"abc", "igd.numbers: bytes of whole numbers"),
        ("numbers", b"", "igd.numbers: no node is asked about"),
        ("numbers", bytes(8), "igd.numbers: row cut off at number 0"),
        ("priors", "0", "igd.priors: bytes of whole numbers"),
        ("priors", bytes(0), "igd: row cut off"),
        ("priors", bytes(8), "igd.priors: 2 numbers; 1 are needed"),
    ],
)
def test_a_bad_value_is_refused_by_name(field: str, value: object, message: str) -> None:
    asked = extra_args()
    asked["igd"][field] = value
    with pytest.raises(ValueError, match=message):
        check_params(params(extra_args=asked))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"node": -2}, r"igd.node: -2 is not in -1\.\.inf"),
        ({"keep": 0}, r"igd.keep: 0 is not in 1\.\.inf"),
        ({"listed": ints(2, 2)}, "igd.listed: .*each larger than the last"),
        ({"listed": ints(-1)}, "igd.listed: integers of at least 0"),
        ({"prior": floats(0.5, float("nan"))}, "igd.prior: numbers from"),
        ({"prior_model": float("-inf")}, "igd.prior: numbers from"),
    ],
)
def test_a_bad_question_is_refused_by_name(changed: dict[str, Any], message: str) -> None:
    asked = extra_args(Ask(path=[7], question=good(**changed)))
    with pytest.raises(ValueError, match=message):
        check_params(params(extra_args=asked))


@pytest.mark.parametrize(
    ("place", "value", "name"), [(2, 3, "forced"), (3, 4, "flags"), (4, -1, "path"), (6, -1, "prior")]
)
def test_a_bad_head_of_a_row_is_refused_by_name(place: int, value: int, name: str) -> None:
    asked = extra_args()
    numbers = np.frombuffer(asked["igd"]["numbers"], dtype="<i4").copy()
    numbers[place] = value
    asked["igd"]["numbers"] = numbers.tobytes()
    with pytest.raises(ValueError, match=f"igd.{name}: {value} is not in"):
        check_params(params(extra_args=asked))


@pytest.mark.parametrize("cut", [4, 12, 36])
def test_a_row_that_is_cut_off_is_refused(cut: int) -> None:
    asked = extra_args()
    asked["igd"]["numbers"] = asked["igd"]["numbers"][:-cut]
    with pytest.raises(ValueError, match=r"igd.*row cut off"):
        check_params(params(extra_args=asked))


@pytest.mark.parametrize("fields", [{}, {"version": "v1"}, "v1", [], {**extra_args()["igd"], "beams": 3}])
def test_missing_and_unknown_fields_are_refused(fields: object) -> None:
    with pytest.raises(ValueError, match="has not exactly the fields alpha, numbers, over_children"):
        Round.from_extra_args({"igd": fields})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("max_tokens", 2),
        ("max_tokens", None),
        ("min_tokens", 1),
        ("temperature", 1.0),
        ("presence_penalty", 0.5),
        ("logit_bias", {1: 5.0}),
        ("allowed_token_ids", [1]),
        ("bad_words", ["x"]),
        ("logprobs", 20),
        ("prompt_logprobs", 0),
        ("logprob_token_ids", [1]),
    ],
)
def test_parameters_that_would_change_the_answer_are_refused(name: str, value: object) -> None:
    check_params(params())
    with pytest.raises(ValueError, match=f"{name}: .* with igd, which needs"):
        check_params(params(**{name: value}))


def test_forced_log_probabilities_are_kept_by_prompt_and_path_and_the_oldest_go_first() -> None:
    known, (one, other) = ForcedLogprobs(capacity=3), (digest([1, 2, 3]), digest([1, 2, 4]))
    known.put(one, [7], -0.5)
    known.put(one, [7, 8], -0.25)
    known.put(other, [7], -2.0)
    assert [known.get(one, [7]), known.get(one, [7, 8]), known.get(other, [7])] == [-0.5, -0.25, -2.0]
    assert known.get(other, [7, 8]) is None
    known.get(one, [7])
    known.put(other, [9], -3.0)
    assert len(known) == 3
    assert known.get(one, [7, 8]) is None, "the least recently used"
    assert known.get(one, [7]) == -0.5
