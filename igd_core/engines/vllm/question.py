"""The question of one vLLM request: the best children of one trie node. It travels in ``SamplingParams.extra_args``.

The engine writes it and the processors in vLLM's worker read it. vLLM checks it at admission, where a bad one fails its
own request alone. This module does not import vLLM.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm import SamplingParams

EXTRA_ARG = "igd"
ROUND_ARG = "igd_round"

_FIELDS = {
    "version",
    "node",
    "alpha",
    "temperature",
    "over_children",
    "keep",
    "listed",
    "only_listed",
    "prior",
    "prior_model",
    "prior_linear",
}
_MOST_NATS = 1e6
# Each of these would change the row before or after the processor, or ask for more than one token.
_REQUIRED_PARAMS: dict[str, object] = {
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
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeQuestion:
    """Asks for the best children of one node.

    Attributes:
        version: artifact version, loaded in the worker.
        node: whose children to score; not a leaf.
        alpha: weight of the rebalancing, 0..1.
        temperature: divides the logits, > 0.
        over_children: whether probabilities are normalised over all of the node's children, not over the vocabulary.
        keep: most children that come back, >= 1.
        listed: positions among the node's children, ascending.
        only_listed: whether ``listed`` are the only children that may come back, or else the ones left out.
        prior: for each of the node's children what its score is mixed with before the best are kept
            (`igd_core.search.prior.MixingTerms`); empty where there is nothing to mix, or nobody is left out.
        prior_model: the number for the model's part.
        prior_linear: which of the two sums.
    """

    version: str
    node: int
    alpha: float
    temperature: float
    keep: int
    over_children: bool = False
    listed: tuple[int, ...] = ()
    only_listed: bool = False
    prior: tuple[float, ...] = ()
    prior_model: float = 1.0
    prior_linear: bool = False

    def to_extra_args(self) -> dict[str, Any]:
        """The question as ``SamplingParams.extra_args``."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        return {EXTRA_ARG: {**fields, "listed": list(self.listed), "prior": list(self.prior)}}

    @staticmethod
    def from_extra_args(extra_args: Mapping[str, Any] | None) -> NodeQuestion | None:
        """The question of a request, or None if it has none.

        Raises:
            ValueError: names the field and the value.
        """
        fields = (extra_args or {}).get(EXTRA_ARG)
        if fields is None:
            return None
        if not isinstance(fields, dict) or set(fields) != _FIELDS:
            raise ValueError(f"{EXTRA_ARG}: {fields!r} has not exactly the fields {', '.join(sorted(_FIELDS))}")
        version, listed, prior = fields["version"], fields["listed"], fields["prior"]
        if not isinstance(version, str) or not version:
            raise ValueError(f"{EXTRA_ARG}.version: {version!r} is not a version")
        for name in ("over_children", "only_listed", "prior_linear"):
            if type(fields[name]) is not bool:
                raise ValueError(f"{EXTRA_ARG}.{name}: {fields[name]!r} is not true or false")
        return NodeQuestion(
            version=version,
            node=_integer("node", fields["node"], at_least=0),
            alpha=_number("alpha", fields["alpha"], low=0.0, high=1.0),
            temperature=_number("temperature", fields["temperature"], low=1e-6, high=1e6),
            over_children=fields["over_children"],
            keep=_integer("keep", fields["keep"], at_least=1),
            listed=_ascending("listed", listed),
            only_listed=fields["only_listed"],
            prior=_numbers("prior", prior),
            prior_model=_number("prior_model", fields["prior_model"], low=-_MOST_NATS, high=_MOST_NATS),
            prior_linear=fields["prior_linear"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTicket:
    """Which requests form a round: ``size`` of them have the same ``round_id``."""

    round_id: str
    size: int

    def to_extra_args(self) -> dict[str, Any]:
        """The ticket as ``SamplingParams.extra_args``."""
        return {ROUND_ARG: {"round_id": self.round_id, "size": self.size}}

    @staticmethod
    def from_extra_args(extra_args: Mapping[str, Any] | None) -> RoundTicket | None:
        """The ticket of a request, or None if it is alone.

        Raises:
            ValueError: names the field and the value.
        """
        fields = (extra_args or {}).get(ROUND_ARG)
        if fields is None:
            return None
        if not isinstance(fields, dict) or set(fields) != {"round_id", "size"} or type(fields["round_id"]) is not str:
            raise ValueError(f"{ROUND_ARG}: {fields!r} is not a round_id and a size")
        return RoundTicket(round_id=fields["round_id"], size=_integer("size", fields["size"], at_least=1))


def check_params(params: SamplingParams) -> None:
    """Refuse sampling parameters with a question that would not get its answer.

    Raises:
        ValueError: names the field and the value.
    """
    RoundTicket.from_extra_args(params.extra_args)
    question = NodeQuestion.from_extra_args(params.extra_args)
    if question is None:
        return
    for name, required in _REQUIRED_PARAMS.items():
        value = getattr(params, name)
        if value != required:
            raise ValueError(f"{name}: {value!r} with {EXTRA_ARG}, which needs {required!r}")
    if params.logprobs is None or params.logprobs <= question.keep:
        raise ValueError(f"logprobs: {params.logprobs!r} with {EXTRA_ARG}.keep {question.keep}, which needs one more")


def _integer(name: str, value: object, *, at_least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{EXTRA_ARG}.{name}: {value!r} is not an integer of at least {at_least}")
    return value


def _number(name: str, value: object, *, low: float, high: float) -> float:
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not low <= number <= high:  # NaN fails this too
        raise ValueError(f"{EXTRA_ARG}.{name}: {value!r} is not in {low}..{high}")
    return number


def _numbers(name: str, value: object) -> tuple[float, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{EXTRA_ARG}.{name}: a list of numbers is needed")  # noqa: TRY004 - as for all fields
    return tuple(_number(name, each, low=-_MOST_NATS, high=_MOST_NATS) for each in value)


def _ascending(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(type(place) is int for place in value):
        raise ValueError(f"{EXTRA_ARG}.{name}: a list of integers is needed")
    places = tuple(value)
    if places and (places[0] < 0 or any(a >= b for a, b in itertools.pairwise(places))):
        raise ValueError(f"{EXTRA_ARG}.{name}: integers of at least 0 are needed, each larger than the last")
    return places
