"""A session in vLLM: the nodes of a round become one request, and its answers become scores."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from igd_core.catalogue.gain import decoding_weight
from igd_core.engines.vllm.forced import digest
from igd_core.engines.vllm.question import NOT_COMPUTED, Ask, NodeQuestion, Round, RoundAnswers
from igd_core.errors import EngineClosed, EngineError, ModelFault
from igd_core.ids import ROOT, NodeId
from igd_core.search.children import ranked_children
from igd_core.search.session import ChildScores, Scoring, SessionStats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from vllm import RequestOutput, SamplingParams

    from igd_core.artifact import Artifact
    from igd_core.engines.vllm.forced import ForcedLogprobs
    from igd_core.engines.vllm.question import NodeAnswer
    from igd_core.engines.vllm.shares import EngineShares
    from igd_core.search.fairness import Turn
    from igd_core.search.prior import MixingTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a session was opened with; ``order`` counts sessions, ``turn`` is the request's claim on the model."""

    ids: list[int]
    scoring: Scoring
    order: int
    turn: Turn


class _Read(NamedTuple):
    """What vLLM said of a node: edges of its children, ascending, and their log-probabilities, both ``(n,)``."""

    edges: NDArray[np.int64]
    logprobs: NDArray[np.float64]


class SessionEngine(Protocol):
    """What a session needs from its engine.

    Attributes:
        llm: vLLM's ``AsyncLLM``; None once it is closed.
        shares: decides whose requests go first.
        forced: known log-probabilities of forced tokens.
    """

    llm: Any
    shares: EngineShares
    forced: ForcedLogprobs

    @property
    def model_id(self) -> str:
        """The checkpoint's name."""
        ...

    def check_open(self) -> None:
        """Raise EngineClosed once the engine is closed or dead."""
        ...

    def lora_request(self, adapter: str | None) -> Any:  # noqa: ANN401 - vLLM's type, which is loose
        """The adapter in vLLM's form; None for the model itself."""
        ...

    def release(self, session: VLLMSession) -> None:
        """Tell the engine that the session has ended."""
        ...


class VLLMSession:
    """A session; its computed tokens are in vLLM's prefix cache."""

    def __init__(self, engine: SessionEngine, artifact: Artifact, prompt: Prompt) -> None:
        self.artifact = artifact
        self.stats = SessionStats(prompt_tokens=len(prompt.ids))
        self._engine = engine
        self._prompt = prompt
        self._digest = digest(prompt.ids, prompt.scoring.adapter)
        self._request_ids = (f"igd-{prompt.order}-{count}" for count in itertools.count())
        self._running: set[str] = set()
        self._paths: dict[NodeId, list[int]] = {ROOT: []}
        self._closed = False

    async def expand(self, nodes: Sequence[NodeId]) -> Mapping[NodeId, ChildScores]:
        """Score ``nodes`` and the forced chains below them, in one engine step where vLLM has room.

        Raises:
            EngineClosed: the engine was closed, or its process died.
            ModelFault: the model's scores are not finite.
            EngineError: the session is closed, or vLLM failed.
        """
        self._check_open()
        scoring, trie = self._prompt.scoring, self.artifact.trie
        chains = [self._chain(node) for node in nodes]
        unwanted = {node for chain in chains for node in chain[:-1] if not self._wants(node)}
        if scoring.over_children:
            unwanted |= {chain[-1] for chain in chains if not self._wants(chain[-1])}
        if scoring.temperature != 1.0 or scoring.over_children:
            # Prompt log-probabilities are over the vocabulary and at temperature 1; otherwise every node is a request.
            chains = [[node] for chain in chains for node in chain if node not in unwanted]
        scored = await self._round(chains) if chains else {}
        scored |= {node: scoring.unscored_child(trie, node) for node in unwanted}
        # vLLM computes no rows for cached blocks. A prompt that was asked before can have part of its chains there.
        skipped = [[node] for chain in chains for node in chain if node not in scored]
        if skipped:
            scored |= await self._round(skipped)
        return scored

    async def close(self) -> None:
        """End running requests, and release the version."""
        if not self._closed:
            self._closed = True
            self._engine.shares.end(self._prompt.turn, self.stats.model_tokens)
            await self.abort()
            self._engine.release(self)

    @property
    def adapter(self) -> str | None:
        """The adapter that it runs under."""
        return self._prompt.scoring.adapter

    async def abort(self) -> None:
        """Abort running requests; calls that wait for them raise an error."""
        from vllm.v1.engine.exceptions import EngineDeadError

        llm = self._engine.llm
        if self._running and llm is not None:
            with suppress(EngineDeadError):
                await llm.abort(list(self._running))

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the session is closed")
        self._engine.check_open()

    def _wants(self, node: NodeId) -> bool:
        return bool(self._prompt.scoring.wants(self.artifact.trie, node))

    def _chain(self, node: NodeId) -> list[NodeId]:
        """``node`` and the nodes that forced tokens lead to; a benchmark overrides it to measure without jumps."""
        trie, scoring = self.artifact.trie, self._prompt.scoring
        chain = scoring.leaves.forced_chain(trie, node)
        if scoring.mixer is None or not scoring.mixer.is_linear:
            return chain
        # A linear mixture ranks a node's children by what the model gave the nodes above: those must be known first.
        decides = next((place for place, each in enumerate(chain) if len(trie.children(each)) > 1), len(chain))
        return chain[: decides + 1]

    async def _round(self, chains: list[list[NodeId]]) -> dict[NodeId, ChildScores]:
        asks = self._asks(chains)
        output = await self._run(Round(asks=asks))
        answers = RoundAnswers.from_params(output.kv_transfer_params)
        if answers is None or len(answers.answers) != len(asks):
            raise EngineError(f"vLLM ended a round early: {output.outputs[0].finish_reason}")
        self._count(asks, answers.answers, output)
        read: dict[NodeId, _Read] = {}
        for chain, ask, answer in zip(chains, asks, answers.answers, strict=True):
            read |= self._read_chain(chain, ask, answer)
            read[chain[-1]] = self._read_children(chain[-1], answer)
        return self._scored(read)

    def _asks(self, chains: list[list[NodeId]]) -> list[Ask]:
        """Asks about the last node of each chain, and about the tokens that lead to it from the first one."""
        trie, scoring = self.artifact.trie, self._prompt.scoring
        last = [chain[-1] for chain in chains]
        edges = [scoring.leaves.open_edges(trie, node) for node in last]
        terms: dict[NodeId, MixingTerms] = {}
        if scoring.mixer is not None:  # with nobody left out, we mix here
            mixed = [node for node, its in zip(last, edges, strict=True) if scoring.keep < len(its)]
            terms = dict(zip(mixed, scoring.mixer.terms(np.array(mixed, np.int64)), strict=True))
        return [self._ask(chain, its, terms.get(chain[-1])) for chain, its in zip(chains, edges, strict=True)]

    def _ask(self, chain: list[NodeId], edges: NDArray[np.int64], terms: MixingTerms | None) -> Ask:
        wanted = next((place for place, node in enumerate(chain[:-1]) if self._wants(node)), len(chain) - 1)
        question = self._question(chain[-1], len(chain) - 1 - wanted, edges, terms)
        return Ask(path=self._path(chain[-1]), question=question)

    def _path(self, node: NodeId) -> list[int]:
        """Token ids from the root to ``node``; a search asks about a node after its parent, so most are known."""
        known = self._paths.get(node)
        if known is None:
            trie = self.artifact.trie
            parent = NodeId(int(trie.parents(np.array([node]))[0]))
            known = self._paths[node] = [*self._path(parent), int(trie.edge_token[node - 1])]
        return known

    def _question(self, node: NodeId, forced: int, edges: NDArray[np.int64], terms: MixingTerms | None) -> NodeQuestion:
        scoring = self._prompt.scoring
        first, degree = int(self.artifact.trie.row_start[node]), len(self.artifact.trie.children(node))
        open_places = edges - first
        only_listed = 2 * len(open_places) < degree
        barred = np.setdiff1d(np.arange(degree), open_places, assume_unique=True)
        return NodeQuestion(
            version=self.artifact.version,
            node=node,
            alpha=scoring.alpha,
            temperature=scoring.temperature,
            over_children=scoring.over_children,
            keep=min(scoring.keep, len(open_places)),
            listed=(open_places if only_listed else barred).astype(np.int32),
            only_listed=only_listed,
            # What the filter bars has no mass; no number that travels is infinite.
            prior=np.empty(0, np.float32) if terms is None else np.maximum(terms.prior, -1e5).astype(np.float32),
            prior_model=1.0 if terms is None else terms.model,
            prior_linear=terms is not None and terms.linear,
            forced=forced,
        )

    async def _run(self, asked: Round) -> RequestOutput:
        """Run a round in vLLM; on an error, nothing of it is left running."""
        from vllm.exceptions import VLLMError
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        llm, request_id = self._engine.llm, next(self._request_ids)
        self._running.add(request_id)
        ended = False
        try:
            collector = await llm.add_request(
                request_id,
                tokens_input(self._prompt.ids),
                round_params(asked),
                lora_request=self._engine.lora_request(self._prompt.scoring.adapter),
                priority=self._engine.shares.priority(self._prompt.turn),
            )
            output: RequestOutput = await collector.get()
            ended = True
        except EngineDeadError as error:
            raise EngineClosed("vLLM's engine process has died") from error
        except VLLMError as error:
            raise EngineError(f"vLLM refused a request: {error}") from error
        finally:
            if not ended:
                await self.abort()
            self._running.discard(request_id)
        self._check_open()
        return output

    def _count(self, asks: Sequence[Ask], answers: Sequence[NodeAnswer], output: RequestOutput) -> None:
        stats, length = self.stats, len(self._prompt.ids)
        if not stats.rounds:
            stats.cached_tokens = min(answers[0].cached, length)
        stats.rounds += 1
        tokens = sum(length + len(ask.path) - answer.cached for ask, answer in zip(asks, answers, strict=True))
        stats.model_tokens += tokens
        self._engine.shares.charge(self._prompt.turn, tokens)
        times = output.metrics
        if times is not None:
            stats.queue_s += max(0.0, times.scheduled_ts - times.queued_ts)
            stats.model_s += times.last_token_ts - times.scheduled_ts

    def _read_chain(self, chain: list[NodeId], ask: Ask, answer: NodeAnswer) -> dict[NodeId, _Read]:
        """Of all but the chain's last node, if their rows were computed now or before."""
        read: dict[NodeId, _Read] = {}
        known = self._engine.forced
        for back in range(ask.question.forced, 0, -1):
            node, following = chain[-1 - back], chain[-back]
            if not self._wants(node):
                continue
            path = ask.path[: len(ask.path) - back + 1]
            found = float(answer.forced[-back])
            logprob = known.get(self._digest, path) if found == NOT_COMPUTED else found
            if found != NOT_COMPUTED:
                if not math.isfinite(found):
                    raise self._fault(node)
                known.put(self._digest, path, found)
            if logprob is not None:
                read[node] = _Read(np.array([following - 1]), np.array([logprob]))
        return read

    def _read_children(self, node: NodeId, answer: NodeAnswer) -> _Read:
        """Of the last node: the returned tokens that are open children; none may be missing."""
        trie, scoring = self.artifact.trie, self._prompt.scoring
        if np.isnan(answer.logprobs).any():  # one NaN or infinity among a row's logits makes the whole row NaN
            raise self._fault(node)
        edges = scoring.leaves.open_edges(trie, node)
        tokens, order = trie.edge_token[edges], np.argsort(answer.tokens, kind="stable")
        place = np.searchsorted(answer.tokens, tokens, sorter=order)
        at = order[np.minimum(place, len(order) - 1)]
        returned = answer.tokens[at] == tokens
        logprobs = answer.logprobs[at[returned]].astype(np.float64)
        if len(logprobs) != min(scoring.keep, len(edges)) or not np.isfinite(logprobs).all():
            raise EngineError(
                f"vLLM returned {int(np.isfinite(logprobs).sum())} of {min(scoring.keep, len(edges))} children of node "
                f"{node}: its worker does not hold version {self.artifact.version!r} as it is here"
            )
        return _Read(edges[returned], logprobs)

    def _fault(self, node: NodeId) -> ModelFault:
        return ModelFault(f"model {self._engine.model_id}: scores of node {node} are not finite")

    def _scored(self, read: Mapping[NodeId, _Read]) -> dict[NodeId, ChildScores]:
        scoring, nodes = self._prompt.scoring, np.array(list(read), np.int64)
        row = np.repeat(np.arange(len(nodes)), [len(each.edges) for each in read.values()])
        edges = np.concatenate([each.edges for each in read.values()])
        logprobs = np.concatenate([each.logprobs for each in read.values()])
        gain = self.artifact.gains.sibling_gain[edges].astype(np.float64)
        scores = scoring.mixed(nodes, row, edges, logprobs * decoding_weight(gain, scoring.alpha))
        ranked = ranked_children(row, edges, logprobs, scores, np.full(len(nodes), scoring.keep))
        return dict(zip(read, ranked, strict=True))


def round_params(asked: Round) -> SamplingParams:
    """VLLM's parameters of a round. What is the same for all was checked by vLLM's constructor once."""
    params = copy.copy(_checked_params())
    params.extra_args = asked.to_extra_args()
    return params


@functools.cache
def _checked_params() -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        ignore_eos=True,
        detokenize=False,
        flat_logprobs=True,
        skip_reading_prefix_cache=False,  # vLLM's default becomes True with prompt_logprobs
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,  # each round has a copy of its own already
    )
