"""The embedded engine: transformers, the whole frontier in one forward pass.

A round's new nodes, of all beams and of the forced chains below them, are one sequence of tokens. A 4-D mask lets each
see the prompt and its own ancestors, its position is its depth, and its keys and values stay in the session's cache,
so no node is ever computed twice.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import DynamicCache

from igd_core.decoding.scores import RowSettings, ScoredChildren, TrieWeights, child_scores
from igd_core.decoding.session import ChildScores, Scoring, SessionStats, unscored_child
from igd_core.engines.adapters import require_adapter
from igd_core.engines.base import EngineStats
from igd_core.engines.identity import ModelIdentity
from igd_core.engines.prefix_cache import PrefixCache, PromptKV
from igd_core.engines.worker import ModelThread
from igd_core.errors import ArtifactError, EngineClosed, EngineError
from igd_core.fairness import Turn
from igd_core.ids import ROOT, NodeId
from igd_core.tokenization import require_same_tokenizer
from igd_core.tuned_prompt import warn_of_other_prompts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from igd_core.artifact import Artifact
    from igd_core.engines.checkpoint import Checkpoint

DEFAULT_CACHE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    artifact: Artifact
    weights: TrieWeights


class TreeEngine:
    """Runs a transformers checkpoint on the CPU or one GPU; one forward pass at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        identity: ModelIdentity | None = None,
    ) -> None:
        """Start the model's thread.

        Args:
            checkpoint: loaded with ``load_checkpoint``.
            cache_bytes: budget for key-value caches of past prompts; 0 keeps none.
            identity: of the folders it was loaded from; without one the model is taken for one like no other.
        """
        self._checkpoint = checkpoint
        self.identity = identity or ModelIdentity.unshared(
            checkpoint.model_id, engine="tree", adapters=checkpoint.adapted
        )
        self._versions: dict[str, _Version] = {}
        self._prefixes = PrefixCache(cache_bytes)
        self._thread = ModelThread("igd-model")
        self._opened = 0
        self._open_sessions = 0
        self._lost_device: str | None = None

    @property
    def model_id(self) -> str:
        """Name of the checkpoint."""
        return self._checkpoint.model_id

    @property
    def max_prompt_tokens(self) -> int:
        """Positions the model has, less the longest path of any loaded version."""
        deepest = max((version.artifact.trie.depth for version in self._versions.values()), default=0)
        return int(self._checkpoint.model.config.get_text_config().max_position_embeddings) - deepest

    async def load(self, artifact: Artifact) -> None:
        """Make a version usable.

        Raises:
            ArtifactError: made for another tokenizer, or with token ids the model does not have.
        """
        if artifact.version in self._versions:
            return
        require_same_tokenizer(artifact.manifest.tokenizer_sha256, self._checkpoint.tokenizer)
        eos_id = self._checkpoint.tokenizer.eos_id
        if artifact.manifest.eos_id != eos_id:
            raise ArtifactError(f"eos: paths end with token {artifact.manifest.eos_id}, the model's is {eos_id}")
        if artifact.manifest.vocab_size > self._vocab_size:
            raise ArtifactError(
                f"vocabulary: the artefact needs {artifact.manifest.vocab_size}, the model has {self._vocab_size}"
            )
        warn_of_other_prompts(self._checkpoint.prompts, artifact, self._checkpoint.tokenizer)
        self._versions[artifact.version] = _Version(artifact=artifact, weights=TrieWeights.of(artifact))

    async def unload(self, version: str) -> None:
        """Forget a version; its sessions go on."""
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
        if not 1 <= len(prompt_ids) <= self.max_prompt_tokens:
            raise EngineError(f"the prompt has {len(prompt_ids)} tokens; 1 to {self.max_prompt_tokens} fit")
        for token in (min(prompt_ids), max(prompt_ids)):
            if not 0 <= token < self._vocab_size:  # a GPU that is asked for its embedding is lost to this process
                raise EngineError(f"the prompt holds token {token}; the model has 0 to {self._vocab_size - 1}")
        self._opened += 1
        self._open_sessions += 1
        prompt = _Prompt(ids=list(prompt_ids), scoring=scoring, order=self._opened, turn=scoring.turn or Turn())
        return TreeSession(self, loaded, prompt)

    def stats(self) -> EngineStats:
        """Queue, sessions, versions and cache."""
        return EngineStats(
            waiting=self._thread.waiting,
            sessions=self._open_sessions,
            versions=tuple(self._versions),
            cache_bytes=self._prefixes.nbytes,
            healthy=not self._thread.closed and self._lost_device is None,
        )

    @property
    def _vocab_size(self) -> int:
        return int(self._checkpoint.model.config.get_text_config().vocab_size)

    def _require_working(self) -> None:
        if self._thread.closed:
            raise EngineClosed("the engine is closed")
        if self._lost_device is not None:
            raise EngineClosed(f"the device failed: {self._lost_device}")

    async def close(self) -> None:
        """Stop the model's thread."""
        await asyncio.to_thread(self._thread.close)  # the running pass ends first


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompt:
    ids: list[int]
    scoring: Scoring
    order: int
    turn: Turn


@dataclass(slots=True, kw_only=True)
class _Tree:
    """Tokens computed so far: the model's cache, and where each trie node stands in it.

    ``slots[node]`` are the cache positions of the node and its ancestors; the root's are none, the prompt is visible
    to all.
    """

    cache: DynamicCache
    length: int = 0
    slots: dict[NodeId, list[int]] = field(default_factory=lambda: {ROOT: []})


class TreeSession:
    """One prompt and the part of the trie computed under it."""

    def __init__(self, engine: TreeEngine, version: _Version, prompt: _Prompt) -> None:
        self._engine = engine
        self._version = version
        self._prompt = prompt
        self._tree: _Tree | None = None
        self._closed = False
        self.stats = SessionStats(prompt_tokens=len(prompt.ids))

    async def expand(self, nodes: Sequence[NodeId]) -> Mapping[NodeId, ChildScores]:
        """Score ``nodes`` and the forced chains below them in one forward pass.

        Raises:
            EngineError: the session is closed, or the model failed.
            EngineClosed: the device failed, now or before. After such an error CUDA refuses the process everything
                else, so the engine is no longer healthy and what runs it must start anew.
        """
        if self._closed:
            raise EngineError("the session is closed")
        self._engine._require_working()
        try:
            prompt = self._prompt
            timed = await self._engine._thread.call(prompt.turn, prompt.order, lambda: self._forward(nodes))
        except torch.AcceleratorError as error:
            self._engine._lost_device = str(error).splitlines()[0]
            raise EngineClosed(f"the device failed: {self._engine._lost_device}") from error
        except (RuntimeError, IndexError) as error:  # so torch reports bad shapes, exhausted memory and bad token ids
            raise EngineError(f"the model failed: {error}") from error
        self.stats.queue_s += timed.queue_s
        self.stats.model_s += timed.run_s
        return timed.value

    async def close(self) -> None:
        """Free the cache."""
        if not self._closed:
            self._closed = True
            self._tree = None
            self._engine._open_sessions -= 1
            self._engine._thread.finished(self._prompt.turn, self.stats.model_s)

    def _chain(self, node: NodeId) -> list[NodeId]:
        """``node`` and the nodes that forced tokens lead to, as far as one has more than one child or ends."""
        trie, leaves = self._version.artifact.trie, self._prompt.scoring.leaves
        chain = [node]
        while (edge := leaves.only_edge(trie, chain[-1])) is not None and not trie.is_leaf(NodeId(edge + 1)):
            chain.append(NodeId(edge + 1))
        return chain

    @torch.inference_mode()
    def _forward(self, nodes: Sequence[NodeId]) -> dict[NodeId, ChildScores]:
        """Runs on the model's thread."""
        if self._closed:
            raise EngineError("the session is closed")
        scored = [link for node in nodes for link in self._chain(node)]
        first_round = self._tree is None
        tree = self._tree = self._tree or self._start()
        prompt = self._prompt.ids[tree.length :] if first_round else []
        fed = [node for node in scored if node != ROOT]
        trie = self._version.artifact.trie
        tokens = prompt + trie.edge_token[np.asarray(fed, dtype=np.int64) - 1].tolist()
        visible, positions = self._place(tree, len(prompt), fed)
        model = self._engine._checkpoint.model_of(self._prompt.scoring.adapter)
        device = model.device
        wanted = [self._prompt.scoring.wants(trie, node) for node in scored]
        rows = torch.arange(len(tokens) - len(scored), len(tokens))[torch.tensor(wanted)]
        output = model(
            input_ids=torch.tensor([tokens], device=device),
            attention_mask=_additive(visible, model.dtype).to(device),
            position_ids=torch.tensor([positions], device=device),
            past_key_values=tree.cache,
            use_cache=True,
            logits_to_keep=rows.to(device),
        )
        tree.length += len(tokens)
        if first_round:
            self._remember(tree.cache)
        self.stats.rounds += 1
        self.stats.model_tokens += len(tokens)
        asked = [node for node, is_wanted in zip(scored, wanted, strict=True) if is_wanted]
        unscored = {
            node: unscored_child(trie, node) for node, is_wanted in zip(scored, wanted, strict=True) if not is_wanted
        }
        return (self._rank(asked, output.logits[0]) if asked else {}) | unscored

    def _start(self) -> _Tree:
        """A cache that begins with what an earlier prompt shares with this one."""
        cache = DynamicCache()
        prefix = self._engine._prefixes.longest(self._prompt.ids, self._prompt.scoring.adapter)
        if prefix is None:
            return _Tree(cache=cache)
        for layer, (keys, values) in enumerate(prefix.layers):
            cache.update(keys, values, layer)
        self.stats.cached_tokens = len(prefix.ids)
        return _Tree(cache=cache, length=len(prefix.ids))

    def _remember(self, cache: DynamicCache) -> None:
        length = len(self._prompt.ids)
        layers = tuple((keys[:, :, :length], values[:, :, :length]) for keys, values, *_ in cache)
        adapter = self._prompt.scoring.adapter
        self._engine._prefixes.add(PromptKV(ids=np.asarray(self._prompt.ids), layers=layers, adapter=adapter))

    def _place(self, tree: _Tree, prompt_tokens: int, fed: list[NodeId]) -> tuple[torch.Tensor, list[int]]:
        """Give new tokens their cache slots; returns what each sees, ``(new, cached + new)`` bool, and its position."""
        prompt_length = len(self._prompt.ids)
        new = prompt_tokens + len(fed)
        visible = torch.zeros(new, tree.length + new, dtype=torch.bool)
        visible[:prompt_tokens, :prompt_length] = torch.ones(prompt_tokens, prompt_length, dtype=torch.bool).tril_(
            tree.length
        )
        visible[prompt_tokens:, :prompt_length] = True
        positions = list(range(tree.length, tree.length + prompt_tokens))
        parents = self._version.artifact.trie.parents(np.asarray(fed, dtype=np.int64)).tolist()
        rows: list[int] = []
        columns: list[int] = []
        for row, (node, parent) in enumerate(zip(fed, parents, strict=True), start=prompt_tokens):
            slots = tree.slots[node] = [*tree.slots[parent], tree.length + row]
            positions.append(prompt_length + len(slots) - 1)
            rows += [row] * len(slots)
            columns += slots
        visible[rows, columns] = True
        return visible, positions

    def _rank(self, scored: list[NodeId], logits: torch.Tensor) -> dict[NodeId, ChildScores]:
        scoring, rows = self._prompt.scoring, len(scored)
        settings = RowSettings(
            node=np.array(scored, dtype=np.int64),
            alpha=np.full(rows, scoring.alpha, dtype=np.float32),
            temperature=None if scoring.temperature == 1.0 else np.full(rows, scoring.temperature, dtype=np.float32),
        )
        children = child_scores(logits, self._version.weights, settings)
        return _split_rows(scored, children, scoring, self._version.artifact)


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``(1, 1, queries, keys)`` mask that is added to attention scores: 0 where visible."""
    mask = torch.full(visible.shape, torch.finfo(dtype).min, dtype=dtype)
    return mask.masked_fill_(visible, 0.0)[None, None]


def _split_rows(
    nodes: list[NodeId], children: ScoredChildren, scoring: Scoring, artifact: Artifact
) -> dict[NodeId, ChildScores]:
    """Drop children the filter bars, and keep the best of each row."""
    row, edges = children.row, children.edge
    logprobs = children.logprob.double().cpu().numpy()
    scores = children.score.double().cpu().numpy()
    if not scoring.leaves.admits_all:
        is_open = scoring.leaves.open_nodes(artifact.trie, edges + 1)
        row, edges, logprobs, scores = row[is_open], edges[is_open], logprobs[is_open], scores[is_open]
    bounds = np.searchsorted(row, np.arange(len(nodes) + 1))
    result = {}
    for node, begin, end in zip(nodes, bounds[:-1], bounds[1:], strict=True):
        best = begin + _best(scores[begin:end], scoring.keep)
        result[node] = ChildScores(edges=edges[best], logprobs=logprobs[best], scores=scores[best])
    return result


def _best(
    scores: np.ndarray[tuple[int], np.dtype[np.float64]], keep: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Positions of the ``keep`` highest scores, highest first, ties in order."""
    candidates = np.arange(len(scores))
    if len(scores) > keep:
        worst_kept = np.partition(scores, len(scores) - keep)[len(scores) - keep]
        candidates = np.flatnonzero(scores >= worst_kept)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:keep]
