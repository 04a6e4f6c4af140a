"""The questions of one round to vLLM, and their answers: a message each way, whatever the number of nodes.

A round is one vLLM request. Its prompt is the recommendation's; what is asked of each node travels in
``SamplingParams.extra_args``. vLLM checks it at admission, where a bad round fails alone. Our scheduler, in vLLM's
engine process, makes a row of the batch of each node (`NodeQuestion`), and sends the answers of all of them back at
once (`RoundAnswers`). This module does not import vLLM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from vllm import SamplingParams

EXTRA_ARG = "igd"
ANSWER = "igd"
NO_NODE = -1
"""In the place of a node: a row that the processor leaves as it is, for measurements."""
NOT_COMPUTED = math.inf
"""In the place of a forced token's log-probability: its row lay in the prefix cache."""

_FIELDS = {"version", "alpha", "temperature", "over_children", "numbers", "priors"}
_HEAD = 7  # numbers before a row's path and its listed children
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
    "logprobs": None,
    "prompt_logprobs": None,
    "logprob_token_ids": None,
    "thinking_token_budget": None,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NodeQuestion:
    """Asks for the best children of one node.

    Attributes:
        version: artifact version, loaded in the worker.
        node: whose children to score; not a leaf.
        alpha: weight of the rebalancing, 0..1.
        temperature: divides the logits, > 0.
        over_children: whether probabilities are normalised over all of the node's children, not over the vocabulary.
        keep: most children that come back, >= 1.
        listed: ``(m,)`` int32; positions among the node's children, ascending.
        only_listed: whether ``listed`` are the only children that may come back, or else the ones left out.
        prior: ``(children,)`` float32; for each of the node's children what its score is mixed with before the best are
            kept (`igd_core.search.prior.MixingTerms`); empty where there is nothing to mix, or nobody is left out.
        prior_model: the number for the model's part.
        prior_linear: which of the two sums.
        forced: how many of the last tokens of the row's prompt to give the log-probability of.
    """

    version: str
    node: int
    alpha: float
    temperature: float
    keep: int
    over_children: bool = False
    listed: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    only_listed: bool = False
    prior: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    prior_model: float = 1.0
    prior_linear: bool = False
    forced: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ask:
    """One row of a round.

    Attributes:
        path: token ids after the recommendation's prompt, up to the node.
        question: asks for the node's children, or has `NO_NODE`.
    """

    path: list[int]
    question: NodeQuestion


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The questions of one round. They agree in version, alpha, temperature and normalisation."""

    asks: Sequence[Ask]

    def to_extra_args(self) -> dict[str, Any]:
        """The round as ``SamplingParams.extra_args``: two blocks of bytes, so that vLLM copies and checks little."""
        numbers: list[NDArray[np.int32]] = []
        priors: list[NDArray[np.float32]] = []
        for ask in self.asks:
            asked = ask.question
            flags = asked.only_listed | asked.prior_linear << 1
            head = [asked.node, asked.keep, asked.forced, flags, len(ask.path), len(asked.listed), len(asked.prior)]
            numbers += [np.array(head + ask.path, dtype="<i4"), asked.listed]
            priors += [np.array([asked.prior_model], dtype="<f4"), asked.prior]
        common = self.asks[0].question
        return {
            EXTRA_ARG: {
                "version": common.version,
                "alpha": common.alpha,
                "temperature": common.temperature,
                "over_children": common.over_children,
                "numbers": np.concatenate(numbers).astype("<i4").tobytes(),
                "priors": np.concatenate(priors).astype("<f4").tobytes(),
            }
        }

    @staticmethod
    def from_extra_args(extra_args: Mapping[str, Any] | None) -> Round | None:
        """The round of a request, or None if it is none.

        Raises:
            ValueError: names the field and the value.
        """
        fields = (extra_args or {}).get(EXTRA_ARG)
        if fields is None:
            return None
        if not isinstance(fields, dict) or set(fields) != _FIELDS:
            raise ValueError(f"{EXTRA_ARG}: {fields!r} has not exactly the fields {', '.join(sorted(_FIELDS))}")
        if not isinstance(fields["version"], str) or not fields["version"]:
            raise ValueError(f"{EXTRA_ARG}.version: {fields['version']!r} is not a version")
        if type(fields["over_children"]) is not bool:
            raise ValueError(f"{EXTRA_ARG}.over_children: {fields['over_children']!r} is not true or false")
        common = {
            "version": fields["version"],
            "alpha": _number("alpha", fields["alpha"], low=0.0, high=1.0),
            "temperature": _number("temperature", fields["temperature"], low=1e-6, high=1e6),
            "over_children": fields["over_children"],
        }
        reader = _Reader(_block("numbers", fields["numbers"], "<i4"), _block("priors", fields["priors"], "<f4"))
        asks = []
        while reader.at < len(reader.numbers):
            asks.append(reader.ask(common))
        if not asks:
            raise ValueError(f"{EXTRA_ARG}.numbers: no node is asked about")
        if reader.at_prior != len(reader.priors):
            raise ValueError(f"{EXTRA_ARG}.priors: {len(reader.priors)} numbers; {reader.at_prior} are needed")
        return Round(asks=asks)


class _Reader:
    """Reads row after row of a round's two blocks."""

    def __init__(self, numbers: NDArray[np.int32], priors: NDArray[np.float32]) -> None:
        self.numbers, self.priors = numbers, priors
        self.at = self.at_prior = 0

    def ask(self, common: dict[str, Any]) -> Ask:
        """The next row."""
        if self.at + _HEAD > len(self.numbers):
            raise ValueError(f"{EXTRA_ARG}.numbers: row cut off at number {self.at}")
        node, keep, forced, flags, path, listed, prior = self.numbers[self.at : self.at + _HEAD].tolist()
        for name, value, least, most in (
            ("node", node, NO_NODE, math.inf),
            ("keep", keep, 1, math.inf),
            ("path", path, 0, math.inf),
            ("forced", forced, 0, path),
            ("flags", flags, 0, 3),
            ("listed", listed, 0, math.inf),
            ("prior", prior, 0, math.inf),
        ):
            if not least <= value <= most:
                raise ValueError(f"{EXTRA_ARG}.{name}: {value} is not in {least}..{most}")
        begin, self.at = self.at + _HEAD, self.at + _HEAD + path + listed
        begin_prior, self.at_prior = self.at_prior, self.at_prior + 1 + prior
        if self.at > len(self.numbers) or self.at_prior > len(self.priors):
            raise ValueError(f"{EXTRA_ARG}: row cut off: {path} tokens, {listed} listed children, {prior} of a prior")
        places, floats = self.numbers[begin + path : self.at], self.priors[begin_prior : self.at_prior]
        if listed and (places[0] < 0 or not (places[1:] > places[:-1]).all()):
            raise ValueError(f"{EXTRA_ARG}.listed: integers of at least 0 are needed, each larger than the last")
        if not (np.abs(floats) <= _MOST_NATS).all():  # NaN fails this too
            raise ValueError(f"{EXTRA_ARG}.prior: numbers from {-_MOST_NATS} to {_MOST_NATS} are needed")
        question = NodeQuestion(
            node=node,
            keep=keep,
            listed=places,
            only_listed=bool(flags & 1),
            prior=floats[1:],
            prior_model=float(floats[0]),
            prior_linear=bool(flags & 2),
            forced=forced,
            **common,
        )
        tokens = self.numbers[begin : begin + path].tolist()
        return Ask(path=tokens, question=question)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NodeAnswer:
    """What vLLM found for one row.

    Attributes:
        cached: tokens of prompt and path that were in the prefix cache.
        tokens: ``(n,)`` int32; the kept children, and the token that has the rest of the probability.
        logprobs: ``(n,)`` float32; of each, unweighted, nats.
        forced: ``(m,)`` float32; log-probabilities of the last tokens of the path, or `NOT_COMPUTED`.
    """

    cached: int
    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    forced: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAnswers:
    """The answers of a round, in the order of its questions."""

    answers: Sequence[NodeAnswer]

    def to_params(self) -> dict[str, Any]:
        """As a field of vLLM's output that holds any dictionary: two blocks of bytes."""
        heads = [np.array([each.cached, len(each.tokens), len(each.forced)]) for each in self.answers]
        numbers = [part for head, each in zip(heads, self.answers, strict=True) for part in (head, each.tokens)]
        floats = [part for each in self.answers for part in (each.logprobs, each.forced)]
        blocks = [np.concatenate(numbers).astype("<i4"), np.concatenate(floats).astype("<f4")]
        return {ANSWER: [block.tobytes() for block in blocks]}

    @staticmethod
    def from_params(params: Mapping[str, Any] | None) -> RoundAnswers | None:
        """The answers in an output of vLLM; None if it has none: the request did not come to its end."""
        if not params or ANSWER not in params:
            return None
        numbers, floats = (
            np.frombuffer(block, dtype=kind) for block, kind in zip(params[ANSWER], ("<i4", "<f4"), strict=True)
        )
        answers, at, at_float = [], 0, 0
        while at < len(numbers):
            cached, kept, forced = numbers[at : at + 3].tolist()
            middle, end = at_float + kept, at_float + kept + forced
            answers.append(
                NodeAnswer(
                    cached=cached,
                    tokens=numbers[at + 3 : at + 3 + kept],
                    logprobs=floats[at_float:middle],
                    forced=floats[middle:end],
                )
            )
            at, at_float = at + 3 + kept, end
        return RoundAnswers(answers=answers)


def check_params(params: SamplingParams) -> None:
    """Refuse sampling parameters with a round that would not get its answers.

    Raises:
        ValueError: names the field and the value.
    """
    if Round.from_extra_args(params.extra_args) is None:
        return
    for name, required in _REQUIRED_PARAMS.items():
        value = getattr(params, name)
        if value != required:
            raise ValueError(f"{name}: {value!r} with {EXTRA_ARG}, which needs {required!r}")


def _number(name: str, value: object, *, low: float, high: float) -> float:
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not low <= number <= high:  # NaN fails this too
        raise ValueError(f"{EXTRA_ARG}.{name}: {value!r} is not in {low}..{high}")
    return number


def _block(name: str, value: object, kind: str) -> NDArray[Any]:
    if not isinstance(value, bytes) or len(value) % 4:
        raise ValueError(f"{EXTRA_ARG}.{name}: bytes of whole numbers of four bytes are needed")
    return np.frombuffer(value, dtype=kind)
