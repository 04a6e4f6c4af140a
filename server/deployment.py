"""What this process serves, from start to stop: loading, warming, ready, closed."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from igd_core.artifact import load_artifact
from igd_core.errors import EngineError
from igd_core.ids import ItemIndex, LeafIndex
from igd_core.recommender import Query, Recommender
from server.loading import OpenedModel, open_model
from server.titles import TitleSearch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.catalogue import Catalogue
    from server.settings import Settings

_log = logging.getLogger("igd.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCatalogue:
    """One catalogue version, warm; a request keeps the one that it began with."""

    recommender: Recommender
    titles: TitleSearch
    token_text: Callable[[int], str]
    loaded_at: datetime

    @property
    def artifact(self) -> Artifact:
        """The version's artefact."""
        return self.recommender.artifact

    @property
    def catalogue(self) -> Catalogue:
        """The version's items."""
        return self.recommender.artifact.catalogue

    @property
    def model_id(self) -> str:
        """The checkpoint's name."""
        return self.recommender.engine.model_id


class Deployment:
    """Holds the one reference that all requests read.

    Attributes:
        current: what is served; None until it is warm.
        failure: why starting failed, if it did.
        on_failure: called when starting fails.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        open_model: Callable[[Settings], OpenedModel] = open_model,
        read_artifact: Callable[[Path], Artifact] = load_artifact,
    ) -> None:
        """Load nothing yet. Both callables may block."""
        self._settings = settings
        self._open_model = open_model
        self._read_artifact = read_artifact
        self._model: OpenedModel | None = None
        self._closed = False
        self.current: ServedCatalogue | None = None
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Load and warm; an error becomes ``failure``."""
        started = time.monotonic()
        try:
            artifact = await asyncio.to_thread(self._read_artifact, self._settings.artifact)
            self._model = await asyncio.to_thread(self._open_model, self._settings)
            await self._model.engine.load(artifact)
            served = ServedCatalogue(
                recommender=await asyncio.to_thread(Recommender, artifact, self._model.engine),
                titles=await asyncio.to_thread(TitleSearch, artifact.catalogue),
                token_text=self._model.token_text,
                loaded_at=datetime.now(UTC),
            )
            await _warm(served)
        except Exception as error:  # noqa: BLE001 - whoever runs the server decides what a failed start means
            self.failure = error
            self.on_failure()
            return
        self.current = served
        _log.info(
            "ready",
            extra={
                "fields": {
                    "catalogue": artifact.manifest.name,
                    "version": artifact.version,
                    "model": served.model_id,
                    "items": len(artifact.catalogue),
                    "seconds": round(time.monotonic() - started, 3),
                }
            },
        )

    def why_not_ready(self) -> str | None:
        """None while recommendations are served."""
        if self._closed:
            return "the server is stopping"
        if self.failure is not None:
            return "the server could not start"
        if self.current is None:
            return "the model and the catalogue are being loaded"
        if not self.current.recommender.engine.stats().healthy:
            return "the engine has failed"
        return None

    def served(self) -> ServedCatalogue:
        """What is served now.

        Raises:
            EngineError: nothing is, yet.
        """
        if self.current is None:
            raise EngineError(self.why_not_ready() or "nothing is served")
        return self.current

    async def close(self) -> None:
        """Stop the engine."""
        self._closed = True
        _log.info("stopping")
        if self._model is not None:
            await self._model.engine.close()


async def _warm(served: ServedCatalogue) -> None:
    """One real recommendation with a full history: what the first user would otherwise wait for."""
    artifact = served.artifact
    leaves = artifact.popular_leaves()[: artifact.manifest.template.max_history].tolist()
    history = [ItemIndex(int(artifact.trie.items_of(LeafIndex(leaf))[0])) for leaf in leaves]
    await served.recommender.recommend(Query(history=history, k=min(10, len(served.catalogue)), exclude_seen=False))
