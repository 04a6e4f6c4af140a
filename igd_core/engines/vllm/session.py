"""A session in vLLM: nodes become requests, and their outputs become scores."""

from __future__ import annotations

import itertools
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from igd_core.catalogue.gain import decoding_weight
from igd_core.engines.vllm.forced import digest
from igd_core.engines.vllm.question import NodeQuestion, RoundTicket
from igd_core.errors import EngineClosed, EngineError, ModelFault
from igd_core.search.session import ChildScores, Scoring, SessionStats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from vllm import RequestOutput, SamplingParams

    from igd_core.artifact import Artifact
    from igd_core.engines.vllm.forced import ForcedLogprobs
    from igd_core.engines.vllm.shares import EngineShares
    from igd_core.ids import NodeId
    from igd_core.search.fairness import Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a session was opened with; ``order`` counts sessions, ``turn`` is the request's claim on the model."""

    ids: list[int]
    scoring: Scoring
    order: int
    turn: Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask:
    """One request to vLLM.

    Attributes:
        chain: a node and the nodes that forced tokens lead to. The sampler's row has the scores of the last one, the
            prompt's log-probabilities those of the others.
        token_ids: prompt, path and chain.
        params: sampling parameters for vLLM.
    """

    chain: list[NodeId]
    token_ids: list[int]
    params: SamplingParams


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
        return self._prompt.scoring.wants(self.artifact.trie, node)

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
        ticket = RoundTicket(round_id=f"{self._prompt.order}-{self.stats.rounds}", size=len(chains))
        asks = [self._ask(chain, ticket) for chain in chains]
        outputs = await self._run(asks)
        self._count(asks, outputs)
        scored: dict[NodeId, ChildScores] = {}
        for ask, output in zip(asks, outputs, strict=True):
            scored |= self._read_chain(ask, output)
            scored[ask.chain[-1]] = self._read_children(ask.chain[-1], output)
        return scored

    def _ask(self, chain: list[NodeId], ticket: RoundTicket) -> _Ask:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        trie, node = self.artifact.trie, chain[-1]
        question = self._question(node)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            ignore_eos=True,
            detokenize=False,
            logprobs=question.keep + 1,
            flat_logprobs=True,
            prompt_logprobs=0 if any(map(self._wants, chain[:-1])) else None,
            skip_reading_prefix_cache=False,  # vLLM's default becomes True with prompt_logprobs
            extra_args=question.to_extra_args() | ticket.to_extra_args(),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        path = trie.edge_token[np.asarray(trie.edges_to(node), dtype=np.int64)].tolist()
        return _Ask(chain=chain, token_ids=self._prompt.ids + path, params=params)

    def _question(self, node: NodeId) -> NodeQuestion:
        scoring = self._prompt.scoring
        first, degree = int(self.artifact.trie.row_start[node]), len(self.artifact.trie.children(node))
        open_places = scoring.leaves.open_edges(self.artifact.trie, node) - first
        only_listed = 2 * len(open_places) < degree
        barred = np.setdiff1d(np.arange(degree), open_places, assume_unique=True)
        mixer = scoring.mixer if scoring.keep < len(open_places) else None  # with nobody left out, we mix here
        terms = None if mixer is None else mixer.terms(node)
        return NodeQuestion(
            version=self.artifact.version,
            node=node,
            alpha=scoring.alpha,
            temperature=scoring.temperature,
            over_children=scoring.over_children,
            keep=min(scoring.keep, len(open_places)),
            listed=tuple((open_places if only_listed else barred).tolist()),
            only_listed=only_listed,
            # What the filter bars has no mass; no number that travels is infinite.
            prior=() if terms is None else tuple(np.maximum(terms.prior, -1e5).tolist()),
            prior_model=1.0 if terms is None else terms.model,
            prior_linear=terms is not None and terms.linear,
        )

    async def _run(self, asks: list[_Ask]) -> list[RequestOutput]:
        """Run all ``asks`` in vLLM; on an error, none is left running."""
        from vllm.exceptions import VLLMError
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        llm, priority = self._engine.llm, self._engine.shares.priority(self._prompt.turn)
        lora = self._engine.lora_request(self._prompt.scoring.adapter)
        started: list[str] = []
        try:
            collectors = []
            for ask in asks:
                request_id = next(self._request_ids)
                started.append(request_id)
                self._running.add(request_id)
                prompt = tokens_input(ask.token_ids)
                added = llm.add_request(request_id, prompt, ask.params, lora_request=lora, priority=priority)
                collectors.append(await added)
            outputs = [await collector.get() for collector in collectors]
        except EngineDeadError as error:
            raise EngineClosed("vLLM's engine process has died") from error
        except VLLMError as error:
            raise EngineError(f"vLLM refused a request: {error}") from error
        finally:
            await self.abort()
            self._running.difference_update(started)
        self._check_open()
        for output in outputs:
            if (reason := output.outputs[0].finish_reason) != "length":
                raise EngineError(f"vLLM ended a request early: {reason}")
        return outputs

    def _count(self, asks: list[_Ask], outputs: list[RequestOutput]) -> None:
        stats = self.stats
        if not stats.rounds:
            stats.cached_tokens = min(outputs[0].num_cached_tokens, len(self._prompt.ids))
        stats.rounds += 1
        tokens = sum(len(ask.token_ids) - output.num_cached_tokens for ask, output in zip(asks, outputs, strict=True))
        stats.model_tokens += tokens
        self._engine.shares.charge(self._prompt.turn, tokens)
        times = [output.metrics for output in outputs if output.metrics is not None]
        if times:
            begun = min(each.queued_ts for each in times)
            scheduled = min(each.scheduled_ts for each in times)
            stats.queue_s += max(0.0, scheduled - begun)
            stats.model_s += max(each.last_token_ts for each in times) - scheduled

    def _read_chain(self, ask: _Ask, output: RequestOutput) -> dict[NodeId, ChildScores]:
        """Scores of all but the chain's last node, if their rows were computed now or before."""
        scored = {}
        forced, known, prompt_tokens = len(ask.chain) - 1, self._engine.forced, len(self._prompt.ids)
        for place, (node, following) in enumerate(itertools.pairwise(ask.chain)):
            if not self._wants(node):
                continue
            token_at = len(ask.token_ids) - forced + place  # of the forced token; the row before it predicts it
            path = ask.token_ids[prompt_tokens : token_at + 1]
            logprob = _prompt_logprob(output, token_at) if token_at > output.num_cached_tokens else None
            if logprob is None:
                logprob = known.get(self._digest, path)
            else:
                if not math.isfinite(logprob):
                    raise self._fault(node)
                known.put(self._digest, path, logprob)
            if logprob is not None:
                scored[node] = self._scores(node, np.array([following - 1]), np.array([logprob]))
        return scored

    def _read_children(self, node: NodeId, output: RequestOutput) -> ChildScores:
        """Scores of the last node's children: the returned tokens that are open children; none may be missing."""
        trie, scoring = self.artifact.trie, self._prompt.scoring
        flat = output.outputs[0].logprobs
        edges = scoring.leaves.open_edges(trie, node)
        found = dict(zip(flat.token_ids, flat.logprobs, strict=True))
        tokens = trie.edge_token[edges]
        returned = np.isin(tokens, np.fromiter(found, dtype=np.int64))
        logprobs = np.array([found[token] for token in tokens[returned].tolist()])
        if np.isnan(flat.logprobs).any():  # one NaN or infinity among a row's logits makes the whole row NaN
            raise self._fault(node)
        if len(logprobs) != min(scoring.keep, len(edges)) or not np.isfinite(logprobs).all():
            raise EngineError(
                f"vLLM returned {int(np.isfinite(logprobs).sum())} of {min(scoring.keep, len(edges))} children of node "
                f"{node}: its worker does not hold version {self.artifact.version!r} as it is here"
            )
        return self._scores(node, edges[returned], logprobs)

    def _fault(self, node: NodeId) -> ModelFault:
        return ModelFault(f"model {self._engine.model_id}: scores of node {node} are not finite")

    def _scores(self, node: NodeId, edges: NDArray[np.int64], logprobs: NDArray[np.float64]) -> ChildScores:
        gain = self.artifact.gains.sibling_gain[edges].astype(np.float64)
        scoring = self._prompt.scoring
        scores = scoring.mixed(node, edges, logprobs * decoding_weight(gain, scoring.alpha))
        best = np.argsort(-scores, kind="stable")
        return ChildScores(edges=edges[best], logprobs=logprobs[best], scores=scores[best])


def _prompt_logprob(output: RequestOutput, token_at: int) -> float | None:
    """Log-probability of one token of a request's prompt; None if vLLM has not computed it.

    Counted from the end: for rows from the cache, runner V2 returns nothing and V1 whatever was in memory. Either
    happens also to a request that was preempted and found more in the cache when it resumed: the token id tells.
    """
    flat, tokens = output.prompt_logprobs, output.prompt_token_ids
    tail = token_at - len(tokens)
    if -tail > len(flat):
        return None
    at = flat.start_indices[tail]
    return float(flat.logprobs[at]) if flat.token_ids[at] == tokens[token_at] else None
