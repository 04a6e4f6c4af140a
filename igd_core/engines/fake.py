"""An engine without a model: its log-probabilities are a hash of prompt and node.

It obeys the same contract as the real engines and costs next to nothing: tests of the search and the server use it, and
so do measurements of the server's own overhead.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING

import numpy as np

from igd_core.catalogue.gain import decoding_weight
from igd_core.errors import EngineClosed, EngineError
from igd_core.search.children import ranked_children
from igd_core.search.engine import EngineStats
from igd_core.search.identity import ModelIdentity, require_adapter
from igd_core.search.session import ChildScores, SessionStats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from igd_core.artifact import Artifact
    from igd_core.engines.embedded.adapters import Adapters
    from igd_core.ids import NodeId
    from igd_core.search.normalisation import Normalisation
    from igd_core.search.session import Scoring

_FAKE_CONTEXT_TOKENS = 1 << 20


class FakeEngine:
    """Answers at once, or ``delay_s`` after each call; the same prompt always gets the same scores.

    ``weights`` is any text: two different texts stand for two checkpoints of one name, which score differently.
    ``tuned_for`` is the normalisation that it says it was tuned for.
    """

    def __init__(
        self,
        *,
        delay_s: float = 0.0,
        adapters: Adapters | None = None,
        weights: str = "",
        tuned_for: Normalisation | None = None,
    ) -> None:
        self._delay_s = delay_s
        self._weights = weights
        self._adapters = dict(adapters or {})
        self._artifacts: dict[str, Artifact] = {}
        self._open_sessions = 0
        self._closed = False
        self.identity = ModelIdentity(
            name="fake",
            engine="fake",
            runtime="",
            checkpoint=weights,
            adapters={name: name for name in self._adapters},  # an adapter changes nothing here but the name
            normalisations={} if tuned_for is None else {None: tuned_for},
        )

    @property
    def model_id(self) -> str:
        """The name of this engine."""
        return self.identity.name

    @property
    def context_tokens(self) -> int:
        """More than any history needs."""
        return _FAKE_CONTEXT_TOKENS

    async def load(self, artifact: Artifact) -> None:
        """Load an artifact; every artifact fits."""
        self._artifacts[artifact.version] = artifact

    async def unload(self, version: str) -> None:
        """Unload a version."""
        self._artifacts.pop(version, None)

    async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> FakeSession:
        """Start a session.

        Raises:
            EngineError: the version is not loaded, there is no such adapter, or the engine is closed.
        """
        if self._closed:
            raise EngineClosed("the engine is closed")
        require_adapter(scoring.adapter, self._adapters)
        if version not in self._artifacts:
            raise EngineError(f"catalogue version {version!r} is not loaded")
        self._open_sessions += 1
        return FakeSession(self, self._artifacts[version], scoring, prompt_ids)

    def stats(self) -> EngineStats:
        """Open sessions and loaded versions."""
        return EngineStats(sessions=self._open_sessions, versions=tuple(self._artifacts), healthy=not self._closed)

    async def close(self) -> None:
        """Refuse new sessions."""
        self._closed = True


class FakeSession:
    """A session whose log-probabilities depend on prompt and node alone."""

    def __init__(self, engine: FakeEngine, artifact: Artifact, scoring: Scoring, prompt_ids: Sequence[int]) -> None:
        self._engine = engine
        self._artifact = artifact
        self._scoring = scoring
        model = (engine._weights + (scoring.adapter or "")).encode()
        self._seed = zlib.crc32(np.asarray(prompt_ids, dtype=np.int64).tobytes() + model)
        self._closed = False
        self.stats = SessionStats(prompt_tokens=len(prompt_ids), model_tokens=len(prompt_ids))

    async def expand(self, nodes: Sequence[NodeId]) -> Mapping[NodeId, ChildScores]:
        """Score ``nodes`` and the forced chains below them."""
        if self._closed:
            raise EngineError("the session is closed")
        if self._engine._closed:
            raise EngineClosed("the engine is closed")
        await asyncio.sleep(self._engine._delay_s)
        trie, leaves = self._artifact.trie, self._scoring.leaves
        result = {}
        for start in nodes:
            for node in leaves.forced_chain(trie, start):
                wanted = bool(self._scoring.wants(trie, node))
                result[node] = self._score(node) if wanted else self._scoring.unscored_child(trie, node)
        self.stats.rounds += 1
        self.stats.model_tokens += len(result)
        return result

    async def close(self) -> None:
        """Count the session as ended."""
        if not self._closed:
            self._closed = True
            self._engine._open_sessions -= 1

    def logprobs(self, node: NodeId) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Log-probabilities of all children of ``node``, admitted or not; a tenth of it lies outside the trie."""
        children = self._artifact.trie.children(node)
        logits = 3.0 * np.random.default_rng((self._seed, node)).standard_normal(len(children) + 1)
        logits[-1] = np.log(np.exp(logits[:-1]).sum() / 9.0)
        return np.asarray(logits[:-1] - np.log(np.exp(logits).sum()))

    def _score(self, node: NodeId) -> ChildScores:
        trie, leaves = self._artifact.trie, self._scoring.leaves
        edges = leaves.open_edges(trie, node)
        logprobs = self.logprobs(node) / self._scoring.temperature
        if self._scoring.over_children:
            logprobs = logprobs - np.log(np.exp(logprobs).sum())
        logprobs = logprobs[edges - int(trie.row_start[node])]
        gains = self._artifact.gains.sibling_gain[edges].astype(np.float64)
        row, scores = np.zeros(len(edges), np.int64), logprobs * decoding_weight(gains, self._scoring.alpha)
        scores = self._scoring.mixed(np.array([node]), row, edges, scores)
        return ranked_children(row, edges, logprobs, scores, np.array([self._scoring.keep]))[0]
