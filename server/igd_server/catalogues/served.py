"""Served catalogue versions: what requests need of one, how its answers go, and how long the engine holds it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from igd_core.errors import DeadlineExceeded, EngineError, IGDError
from igd_server.catalogues.heap import give_back_free_memory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from igd_core.artifact import Artifact, Manifest
    from igd_core.catalogue.attribute_types import AttributeType
    from igd_core.catalogue.items import Catalogue
    from igd_core.search.engine import Engine
    from igd_core.search.identity import ModelIdentity
    from igd_core.search.recommender import Recommender
    from igd_server.catalogues.models import Models
    from igd_server.catalogues.titles import TitleSearch

_MAX_FAULT_CHARS = 200
_LONGEST_UNLOAD_S = 5.0

_log = logging.getLogger("igd.server")


class AnswerWatch:
    """Counts the model's answers and faults; one object for each loaded version.

    Attributes:
        answers: answers of the model.
        faults: calls that failed in the engine, or in our code; a request that cannot be served, or its deadline, is
            none.
        last_fault: one line, for operators.
    """

    __slots__ = ("answers", "faults", "last_fault")

    def __init__(self) -> None:
        self.answers = 0
        self.faults = 0
        self.last_fault = ""

    @contextlib.contextmanager
    def answer(self) -> Iterator[None]:
        """Count one call of the model, which is the block."""
        try:
            yield
        except DeadlineExceeded:
            raise
        except Exception as error:
            if isinstance(error, EngineError) or not isinstance(error, IGDError):
                self.faults += 1
                said = str(error) if isinstance(error, EngineError) else type(error).__name__
                self.last_fault = " ".join(said.split())[:_MAX_FAULT_CHARS]
            raise
        self.answers += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCatalogue:
    """A served version, warm; a request keeps the version that it began with.

    Attributes:
        name: the name it is served under; its artifact may have been built under another.
        recommender: its artifact on the engine.
        titles: title search.
        token_texts: gives the text of each token, for a text and the token ids of its path.
        attributes: types of the attributes that filters can use, by name.
        loaded_at: when it took over.
        watch: counts the model's answers and faults.
        untuned: why the model (under None), or one of its adapters, is not tuned for this catalogue; only those that
            are not.
    """

    name: str
    recommender: Recommender
    titles: TitleSearch
    token_texts: Callable[[str, Sequence[int]], list[str]]
    attributes: Mapping[str, AttributeType]
    loaded_at: datetime
    watch: AnswerWatch = field(default_factory=AnswerWatch)
    untuned: Mapping[str | None, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """Its artifact's content hash."""
        return self.recommender.artifact.version

    @property
    def artifact(self) -> Artifact:
        """Its artifact."""
        return self.recommender.artifact

    @property
    def catalogue(self) -> Catalogue:
        """Its items."""
        return self.recommender.artifact.catalogue

    @property
    def model_id(self) -> str:
        """The checkpoint's name."""
        return self.recommender.engine.model_id

    @property
    def model(self) -> ModelIdentity:
        """What its answers depend on, besides the artifact and the request."""
        return self.recommender.engine.identity


@dataclass(slots=True, kw_only=True)
class _Loaded:
    served: ServedCatalogue
    users: int


class LoadedVersions:
    """A version stays in the engine while a catalogue serves it or a request runs on it; then it is unloaded.

    A catalogue that serves a version is one of its users, and so is every request; two catalogues may serve the same.
    A version is a user of its model, from before it is added until it has been unloaded.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._loaded: dict[str, _Loaded] = {}
        self._unloading: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    def add(self, served: ServedCatalogue) -> None:
        """Add a version that the engine has loaded; the caller is its only user."""
        self._loaded[served.version] = _Loaded(served=served, users=1)

    def join(self, version: str) -> ServedCatalogue | None:
        """Become a user of a version; None if it is not loaded."""
        loaded = self._loaded.get(version)
        if loaded is None:
            return None
        loaded.users += 1
        return loaded.served

    def leave(self, version: str) -> None:
        """Stop being a user; the last one to leave unloads the version."""
        loaded = self._loaded[version]
        loaded.users -= 1
        if loaded.users == 0:
            del self._loaded[version]
            if not self._closed:
                unload = self._unload(loaded.served.recommender.engine, loaded.served.artifact.manifest)
                self._unloading[version] = asyncio.get_running_loop().create_task(unload)

    async def unloaded(self, version: str) -> None:
        """Wait until the engine is not unloading this version."""
        if version in self._unloading:
            await asyncio.wait((self._unloading[version],))

    async def close(self) -> None:
        """Wait a while for versions that are being unloaded; after that the engine's end unloads all."""
        self._closed = True
        if self._unloading:
            await asyncio.wait(self._unloading.values(), timeout=_LONGEST_UNLOAD_S)

    async def _unload(self, engine: Engine, manifest: Manifest) -> None:
        version = manifest.version
        try:
            try:
                await engine.unload(version)
            finally:  # else its model would be kept for ever
                await self._models.leave(manifest.model)
            await asyncio.to_thread(give_back_free_memory)
            _log.info("version_unloaded", extra={"fields": {"version": version}})
        except Exception:  # noqa: BLE001 - nobody waits for this task
            _log.exception("unload_failed", extra={"fields": {"version": version}})
        finally:
            del self._unloading[version]
