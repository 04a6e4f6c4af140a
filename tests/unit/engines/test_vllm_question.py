"""What travels to vLLM's worker with a request; needs no vLLM."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.engines.vllm.forced import ForcedLogprobs, digest
from igd_core.engines.vllm.question import NodeQuestion, RoundTicket, check_params

GOOD = NodeQuestion(version="v1", node=3, alpha=0.2, temperature=1.0, keep=20, listed=(0, 4), only_listed=True)


def params(**changed: Any) -> Any:
    """The parameters that a request with a question has, as far as they are checked."""
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
        "logprob_token_ids": None,
        "thinking_token_budget": None,
        "logprobs": GOOD.keep + 1,
        "extra_args": GOOD.to_extra_args(),
    }
    return SimpleNamespace(**(values | changed))


@given(
    question=st.builds(
        NodeQuestion,
        version=st.text(min_size=1),
        node=st.integers(0, 2**31 - 1),
        alpha=st.floats(0, 1),
        temperature=st.floats(0.01, 10),
        over_children=st.booleans(),
        keep=st.integers(1, 400),
        listed=st.sets(st.integers(0, 10**6)).map(lambda places: tuple(sorted(places))),
        only_listed=st.booleans(),
        prior=st.lists(st.floats(-1e6, 0), max_size=4).map(tuple),
        prior_model=st.floats(-1e6, 1),
        prior_linear=st.booleans(),
    )
)
def test_a_question_survives_the_way_to_the_worker(question: NodeQuestion) -> None:
    extra_args = json.loads(json.dumps(question.to_extra_args()))
    assert NodeQuestion.from_extra_args(extra_args) == question


@pytest.mark.parametrize("extra_args", [None, {}, {"other": 1}])
def test_requests_without_a_question_are_none_of_our_business(extra_args: dict[str, Any] | None) -> None:
    assert NodeQuestion.from_extra_args(extra_args) is None
    assert RoundTicket.from_extra_args(extra_args) is None
    check_params(params(extra_args=extra_args, n=4, temperature=0.7, logprobs=None))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", "", "igd.version: '' is not a version"),
        ("version", 7, "igd.version: 7 is not"),
        ("node", -1, "igd.node: -1 is not an integer of at least 0"),
        ("node", 1.5, r"igd.node: 1\.5 is not an integer"),
        ("node", True, "igd.node: True is not an integer"),
        ("alpha", 1.01, r"igd.alpha: 1\.01 is not in 0\.0\.\.1\.0"),
        ("alpha", float("nan"), "igd.alpha: nan is not in"),
        ("alpha", "high", "igd.alpha: 'high' is not in"),
        ("over_children", 1, "igd.over_children: 1 is not true or false"),
        ("temperature", 0, "igd.temperature: 0 is not in"),
        ("temperature", float("inf"), "igd.temperature: inf is not in"),
        ("keep", 0, "igd.keep: 0 is not an integer of at least 1"),
        ("prior", "0", "igd.prior: a list of numbers is needed"),
        ("prior", [0.5, float("nan")], "igd.prior: nan is not in"),
        ("prior_model", float("-inf"), "igd.prior_model: -inf is not in"),
        ("prior_linear", 1, "igd.prior_linear: 1 is not true or false"),
        ("listed", "0", "igd.listed: a list of integers is needed"),
        ("listed", [0, 1.0], "igd.listed: a list of integers is needed"),
        ("listed", [2, 2], "igd.listed: .*each larger than the last"),
        ("listed", [-1], "igd.listed: integers of at least 0"),
        ("only_listed", 1, "igd.only_listed: 1 is not true or false"),
    ],
)
def test_a_bad_value_is_refused_by_name(field: str, value: object, message: str) -> None:
    extra_args = GOOD.to_extra_args()
    extra_args["igd"][field] = value
    with pytest.raises(ValueError, match=message):
        check_params(params(extra_args=extra_args))


@pytest.mark.parametrize("fields", [{}, {"version": "v1"}, "v1", [], {**GOOD.to_extra_args()["igd"], "beams": 3}])
def test_missing_and_unknown_fields_are_refused(fields: object) -> None:
    with pytest.raises(ValueError, match="has not exactly the fields alpha, keep, listed"):
        NodeQuestion.from_extra_args({"igd": fields})


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
        ("logprob_token_ids", [1]),
    ],
)
def test_parameters_that_would_change_the_answer_are_refused(name: str, value: object) -> None:
    check_params(params())
    with pytest.raises(ValueError, match=f"{name}: .* with igd, which needs"):
        check_params(params(**{name: value}))


@pytest.mark.parametrize("logprobs", [None, 0, GOOD.keep])
def test_every_child_and_the_rest_must_fit_the_answer(logprobs: int | None) -> None:
    with pytest.raises(ValueError, match=r"logprobs: .* with igd\.keep 20, which needs one more"):
        check_params(params(logprobs=logprobs))


@pytest.mark.parametrize(
    "fields", [{}, {"round_id": "1-0"}, {"round_id": 1, "size": 2}, {"round_id": "1-0", "size": 0}, "1-0"]
)
def test_a_bad_round_is_refused(fields: object) -> None:
    with pytest.raises(ValueError, match=r"igd_round|igd\.size"):
        check_params(params(extra_args={"igd_round": fields}))


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
