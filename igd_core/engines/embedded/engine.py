"""The embedded engine: the model in this process, and all nodes of a round in one forward pass (`token_tree`).

A round's new nodes, of all beams and the forced chains below them, are one sequence of tokens, and no node is computed
twice. So forced tokens cost no calls of their own. Rounds of several sessions that wait at the same moment share a pass
where the forward computes them so (`rounds`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from igd_core.engines.embedded.checkpoint import context_tokens
from igd_core.engines.embedded.children import ScoredNodes, best_children
from igd_core.engines.embedded.integrity import named, tensors_not_finite
from igd_core.engines.embedded.parts import Part
from igd_core.engines.embedded.prefix_cache import PrefixCache, PromptKV
from igd_core.engines.embedded.rounds import JointRounds
from igd_core.engines.embedded.token_tree import Growth, NewTokens, TokenTree
from igd_core.engines.embedded.worker import ModelThread
from igd_core.engines.fit import require_artifact_fits, require_prompt_fits
from igd_core.engines.tuned_prompt import warn_of_other_prompts
from igd_core.errors import EngineClosed, EngineError, ModelFault
from igd_core.ids import ROOT, NodeId
from igd_core.search.engine import EngineStats
from igd_core.search.fairness import Turn
from igd_core.search.identity import ModelIdentity, require_adapter
from igd_core.search.scores import TrieWeights, child_tokens
from igd_core.search.session import Scoring, SessionStats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from igd_core.artifact import Artifact
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.search.session import ChildScores

DEFAULT_CACHE_BYTES = 256 << 20
_Answer: TypeAlias = "Mapping[NodeId, ChildScores] | None"
"""None if a pass fed a part of the prompt alone, so that the round is still to come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    artifact: Artifact
    weights: TrieWeights


class TreeEngine:
    """Runs a transformers checkpoint on the CPU or one GPU; one pass at a time, of one session or several."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        most_tokens: int | None = None,
        identity: ModelIdentity | None = None,
        beside: TreeEngine | None = None,
    ) -> None:
        """Start the model's thread.

        Args:
            checkpoint: loaded with ``load_checkpoint``.
            cache_bytes: budget for key-value caches of past prompts; 0 keeps none.
            most_tokens: of several sessions in one pass; 0 gives each a pass of its own, None leaves it to the forward.
            identity: of the folders it was loaded from; without one the model counts as different from every other.
            beside: an engine of another model whose thread runs this one too, so that both share the machine fairly.
        """
        self._checkpoint = checkpoint
        self.identity = identity or ModelIdentity.unshared(
            checkpoint.model_id, engine="tree", adapters=checkpoint.adapted
        )
        self._context_tokens = context_tokens(checkpoint.model.config)
        self._versions: dict[str, _Version] = {}
        self._prefixes = PrefixCache(cache_bytes)
        self._closed = False
        shared: ModelThread | None = None if beside is None or beside._closed else beside._thread
        self._thread: ModelThread = shared or ModelThread("igd-model")
        self._thread.join()
        self._rounds: dict[str | None, JointRounds[_Round, _Answer]] = {
            adapter: JointRounds(checkpoint.forward_of(adapter), self._read, most_tokens)
            for adapter in (None, *checkpoint.adapted)
        }
        self._opened = 0
        self._open_sessions = 0
        self._lost_device: str | None = None
        self._not_finite: dict[str | None, str] = {}

    @property
    def model_id(self) -> str:
        """Name of the checkpoint."""
        return self._checkpoint.model_id

    @property
    def context_tokens(self) -> int:
        """Positions of the model."""
        return self._context_tokens

    async def load(self, artifact: Artifact) -> None:
        """Make a version usable.

        Raises:
            ArtifactError: made for another tokenizer, or with token ids the model does not have.
        """
        if artifact.version in self._versions:
            return
        require_artifact_fits(artifact, self._checkpoint.tokenizer, self._vocab_size)
        warn_of_other_prompts(self._checkpoint.prompts, artifact, self._checkpoint.tokenizer)
        self._versions[artifact.version] = _Version(artifact=artifact, weights=TrieWeights.of(artifact))

    async def unload(self, version: str) -> None:
        """Unload a version; its sessions continue."""
        self._versions.pop(version, None)

    async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> TreeSession:
        """Start decoding one prompt.

        Raises:
            EngineError: the version is not loaded, there is no such adapter, the prompt is empty or too long or holds a
                token id that the model does not have, or the engine is closed.
        """
        self._require_working()
        require_adapter(scoring.adapter, self._checkpoint.adapted)
        loaded = self._versions.get(version)
        if loaded is None:
            raise EngineError(f"catalogue version {version!r} is not loaded")
        require_prompt_fits(
            prompt_ids, loaded.artifact, context_tokens=self._context_tokens, vocab_size=self._vocab_size
        )
        self._opened += 1
        self._open_sessions += 1
        prompt = _Prompt(ids=list(prompt_ids), scoring=scoring, order=self._opened, turn=scoring.turn or Turn())
        return TreeSession(self, loaded, prompt)

    def stats(self) -> EngineStats:
        """Queue, sessions, versions and cache."""
        forward, counts = self._checkpoint.forward_of(None), self._thread.counts
        return EngineStats(
            waiting=self._thread.waiting,
            sessions=self._open_sessions,
            versions=tuple(self._versions),
            cache_bytes=self._prefixes.nbytes,
            healthy=not self._closed and not self._thread.closed and self._lost_device is None,
            forward=forward.name,
            why_forward=forward.why,
            precision=self._checkpoint.precision.name,
            precision_told=self._checkpoint.precision.told,
            passes=counts.passes,
            pass_sessions=counts.parts,
            pass_tokens=counts.tokens,
            passes_split=sum(rounds.split for rounds in self._rounds.values()),
        )

    @property
    def _vocab_size(self) -> int:
        return int(self._checkpoint.model.config.get_text_config().vocab_size)

    def _require_working(self) -> None:
        if self._closed or self._thread.closed:
            raise EngineClosed("the engine is closed")
        if self._lost_device is not None:
            raise EngineClosed(f"the device failed: {self._lost_device}")

    def _explained(self, fault: ModelFault, adapter: str | None) -> ModelFault:
        """The fault, with the names of weights that are not finite; looked for once, in a pass over all weights."""
        if adapter not in self._not_finite:
            names = tensors_not_finite(self._checkpoint.model_of(adapter))
            told = f"; not finite: {named(names)}" if names else "; its weights are finite"
            self._not_finite[adapter] = told
        name = self.model_id if adapter is None else f"{self.model_id} with adapter {adapter!r}"
        return ModelFault(f"model {name}: {fault}{self._not_finite[adapter]}")

    def _read(self, rounds: Sequence[_Round], logits: Sequence[torch.Tensor]) -> list[_Answer | Exception]:
        """What sessions get from one pass, scored together: None to one whose prompt is not yet through."""
        answers: list[_Answer | Exception] = [None] * len(rounds)
        of_version: dict[str, dict[int, tuple[TokenTree, ScoredNodes]]] = {}
        for place, (each, found) in enumerate(zip(rounds, logits, strict=True)):
            session, tree = each.session, each.session._tree
            if tree is None:
                answers[place] = EngineError("the session is closed")
            elif not tree.prompt_left and not len(each.asked):
                answers[place] = session._answered(each, tree, [])
            elif not tree.prompt_left:
                scored = ScoredNodes(
                    nodes=each.asked, scoring=session._prompt.scoring, logits=found, columns=each.next_tokens
                )
                of_version.setdefault(session._version.artifact.version, {})[place] = tree, scored
        for asked in of_version.values():
            version = rounds[next(iter(asked))].session._version
            ranked = best_children([scored for _, scored in asked.values()], version.artifact.trie, version.weights)
            for (place, (tree, _)), children in zip(asked.items(), ranked, strict=True):
                answers[place] = rounds[place].session._answered(rounds[place], tree, children)
        return answers

    async def close(self) -> None:
        """Let go of the model and of its caches; stop the model's thread if no other engine uses it."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._thread.leave, self._release)  # the running pass ends first

    def _release(self) -> None:
        self._prefixes.clear()
        self._versions.clear()
        if self._checkpoint.owned:
            self._checkpoint.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompt:
    ids: list[int]
    scoring: Scoring
    order: int
    turn: Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """Nodes of a session to score. A `rounds.Round`.

    Attributes:
        session: whose they are.
        scored: the nodes.
        new: those of them that are fed.
        wanted: which of them the model scores.
        asked: the nodes that are wanted.
        next_tokens: of which it gives logits; None: of all.
    """

    session: TreeSession
    scored: list[NodeId]
    new: NewTokens
    wanted: NDArray[np.bool_]
    asked: NDArray[np.int64]
    next_tokens: NDArray[np.int64] | None

    def growth(self) -> Growth:
        tree, most = self.session._begun(), self.session._passes.most_prompt_tokens
        if tree.prompt_left > most:
            return Growth(tree=tree, new=_NOTHING, wanted=_NONE_WANTED, most_prompt_tokens=most)
        return Growth(tree=tree, new=self.new, wanted=self.wanted, next_tokens=self.next_tokens)


_NOTHING = NewTokens(nodes=[], parents=[], tokens=[])
_NONE_WANTED = np.empty(0, dtype=np.bool_)


class TreeSession:
    """A prompt, and the nodes computed under it."""

    def __init__(self, engine: TreeEngine, version: _Version, prompt: _Prompt) -> None:
        self._engine = engine
        self._version = version
        self._prompt = prompt
        self._tree: TokenTree | None = None
        self._closed = False
        self._share_s = 0.0  # of the passes that it was in
        self.stats = SessionStats(prompt_tokens=len(prompt.ids))

    async def expand(self, nodes: Sequence[NodeId]) -> Mapping[NodeId, ChildScores]:
        """Score ``nodes`` and the forced chains below them in one forward pass, or a few if a long prompt comes first.

        Raises:
            ModelFault: its scores are not finite; nothing of this prompt is kept.
            EngineError: the session is closed, or the model failed.
            EngineClosed: the device failed, now or before. After such an error CUDA refuses the process everything
                else, so the engine is no longer healthy and what runs it must start anew.
        """
        if self._closed:
            raise EngineError("the session is closed")
        self._engine._require_working()
        asked = self._round(nodes)
        while (found := await self._pass(asked)) is None:
            pass  # others' rounds come between and beside the parts of a long prompt
        return found

    async def _pass(self, asked: _Round) -> _Answer:
        try:
            timed = await self._engine._thread.call(self._prompt.turn, self._prompt.order, self._part(asked))
        except torch.AcceleratorError as error:
            self._engine._lost_device = str(error).splitlines()[0]
            raise EngineClosed(f"the device failed: {self._engine._lost_device}") from error
        except (RuntimeError, IndexError) as error:  # torch's errors for bad shapes, ids, and exhausted memory
            raise EngineError(f"the model failed: {error}") from error
        self.stats.queue_s += timed.queue_s
        self.stats.model_s += timed.run_s
        self._share_s += timed.share_s
        return timed.value

    async def close(self) -> None:
        """Free the session's cache."""
        if not self._closed:
            self._closed = True
            self._tree = None
            self._engine._open_sessions -= 1
            self._engine._thread.finished(self._prompt.turn, self._share_s)

    @property
    def _passes(self) -> JointRounds[_Round, _Answer]:
        return self._engine._rounds[self._prompt.scoring.adapter]

    def _part(self, asked: _Round) -> Part[_Round, _Answer]:
        """As a part of a pass: the round, or a part of the prompt that comes before it."""
        left = len(self._prompt.ids) if self._tree is None else self._tree.prompt_left
        return Part(
            passes=self._passes,
            what=asked,
            tokens=min(left, self._passes.most_prompt_tokens) + len(asked.new.nodes),
            begins=self._tree is None,
        )

    def _round(self, nodes: Sequence[NodeId]) -> _Round:
        """The nodes and the forced chains below them."""
        trie, scoring = self._version.artifact.trie, self._prompt.scoring
        scored = [link for node in nodes for link in scoring.leaves.forced_chain(trie, node)]
        fed = [node for node in scored if node != ROOT]
        nodes_fed = np.asarray(fed, dtype=np.int64)
        parents: list[NodeId] = trie.parents(nodes_fed).tolist()
        new = NewTokens(nodes=fed, parents=parents, tokens=trie.edge_token[nodes_fed - 1].tolist())
        all_scored = np.asarray(scored, dtype=np.int64)
        wanted = scoring.wants(trie, all_scored)
        next_tokens = None
        asked = all_scored[wanted]
        if scoring.over_children and len(asked):
            next_tokens = child_tokens(self._version.weights, asked)
        return _Round(session=self, scored=scored, new=new, wanted=wanted, asked=asked, next_tokens=next_tokens)

    def _begun(self) -> TokenTree:
        """The tree; runs on the model's thread."""
        if self._closed or self._engine._closed:
            raise EngineError("the session is closed")
        tree = self._tree = self._tree or self._start()
        return tree

    def _answered(
        self, of: _Round, tree: TokenTree, ranked: list[ChildScores] | Exception
    ) -> dict[NodeId, ChildScores] | Exception:
        """The nodes' children, by those of the nodes that the model scored; runs on the model's thread."""
        trie, scoring = self._version.artifact.trie, self._prompt.scoring
        self.stats.rounds += 1
        self.stats.model_tokens = tree.length - self.stats.cached_tokens
        if isinstance(ranked, ModelFault):
            return self._engine._explained(ranked, scoring.adapter)
        if isinstance(ranked, Exception):
            return ranked
        if self.stats.rounds == 1 and ranked:  # reuse a prompt's cache only if it led to finite scores
            self._remember(tree)
        of_asked = iter(ranked)
        return {
            node: next(of_asked) if is_wanted else scoring.unscored_child(trie, node)
            for node, is_wanted in zip(of.scored, of.wanted.tolist(), strict=True)
        }

    def _start(self) -> TokenTree:
        """Begin a tree with the longest prefix of an earlier prompt."""
        adapter = self._prompt.scoring.adapter
        prefix = self._engine._prefixes.longest(self._prompt.ids, adapter)
        self.stats.cached_tokens = 0 if prefix is None else len(prefix.ids)
        return TokenTree(self._engine._checkpoint.forward_of(adapter), self._prompt.ids, prefix)

    def _remember(self, tree: TokenTree) -> None:
        adapter = self._prompt.scoring.adapter
        kept = PromptKV(ids=np.asarray(self._prompt.ids), layers=tree.prompt_layers(), adapter=adapter)
        self._engine._prefixes.add(kept)
