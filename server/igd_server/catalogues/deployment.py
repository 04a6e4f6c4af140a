"""What this process serves, from start to end: loading, ready, replacing versions, closing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import socket
import time
from typing import TYPE_CHECKING

from igd_core.artifact import load_artifact
from igd_core.cancellation import cancel_and_wait
from igd_core.errors import EngineClosed, EngineError, QueryError, StoreError
from igd_core.models import igd_home
from igd_core.store.memory import MemoryStore
from igd_server.catalogues.attempts import Attempts
from igd_server.catalogues.fleet import FleetMember, TrialRules
from igd_server.catalogues.following import LiveCatalogue, log_failed_look
from igd_server.catalogues.heap import keep_giving_back_free_memory
from igd_server.catalogues.models import Models
from igd_server.catalogues.opening import Loader, OpenedModel, open_model, warmed
from igd_server.catalogues.served import LoadedVersions, ServedCatalogue
from igd_server.catalogues.version_folder import VersionFolder
from igd_server.observe.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.store.base import ArtifactStore
    from igd_server.settings import Settings

__all__ = ["Deployment", "ServedCatalogue"]

_LISTEN_AGAIN_S = 1.0
_LOOK_AT_ENGINE_S = 1.0
_GIVE_BACK_S = 30.0
_NOT_STARTED = "the server could not start"
_ENGINE_FAILED = "the engine has failed"
_MAX_HOST_CHARS = 100
_LEASE_S = 10.0
_LEASE_POLLS = 10

_log = logging.getLogger("igd.server")


class Deployment:
    """Holds what all requests read: the served version of each catalogue.

    The catalogues are the one in a directory (``Settings.artifact``), which never changes, or those of the store
    (``Settings.catalogues``), which follow their pointers.

    Attributes:
        failure: why the server failed, if it did: the model or the directory's artifact could not be loaded, or the
            engine failed while serving, after which this process cannot serve any more.
        on_failure: called when that happens.
        on_ready: called once, when every catalogue is served or cannot be served now.
        draining: the server is stopping: not ready, but still answering.
        started: the model is loaded, and every catalogue has been looked at once, successfully or not.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: ArtifactStore | None = None,
        metrics: Metrics | None = None,
        open_model: Callable[[Settings], OpenedModel] = open_model,
        read_artifact: Callable[[Path], Artifact] = load_artifact,
    ) -> None:
        """Loads nothing yet. Both callables may block; the caller closes the store."""
        self._settings = settings
        self._store = store or MemoryStore()
        self._metrics = metrics or Metrics()
        self._open_model = open_model
        self._read_artifact = read_artifact
        self._models: Models | None = None
        self._versions: LoadedVersions | None = None
        self._fixed: ServedCatalogue | None = None
        self._live: dict[str, LiveCatalogue] = {}
        self._following: list[asyncio.Task[None]] = []
        self._closed = False
        self._announced = False
        self._started = 0.0
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.on_ready: Callable[[], None] = lambda: None
        self.draining = False
        self.started = False

    async def start(self) -> None:
        """Load and warm; returns when every catalogue has been tried. An error is kept in ``failure``."""
        self._started = time.monotonic()
        try:
            if self._settings.artifact is not None:
                await self._start_fixed(self._settings.artifact)
            else:
                await self._start_live()
        except Exception as error:  # noqa: BLE001 - whoever runs the server decides what a failed start means
            self._fail(error)
            return
        self.started = True
        if self._models is not None:
            await self._models.settle()
            self._following.append(asyncio.create_task(self._watch_engine(self._models)))
        self._following.append(asyncio.create_task(keep_giving_back_free_memory(_GIVE_BACK_S)))
        self._announce()

    @property
    def catalogue_names(self) -> Sequence[str]:
        """Names of all catalogues, served or not, the default one first; a directory's after it is loaded."""
        return self._settings.catalogues if self._fixed is None else (self._fixed.name,)

    @property
    def serving(self) -> Mapping[str, ServedCatalogue]:
        """The catalogues that are served now, by name, the default one first."""
        if self._fixed is not None:
            return {self._fixed.name: self._fixed}
        return {name: live.served for name, live in self._live.items() if live.served is not None}

    @property
    def models(self) -> Models | None:
        """The models of this process; None before the first is being opened."""
        return self._models

    @property
    def current(self) -> ServedCatalogue | None:
        """The default catalogue; None until it is warm."""
        names = self.catalogue_names
        return self.serving.get(names[0]) if names else None

    def live(self, name: str) -> LiveCatalogue | None:
        """A catalogue that follows the store; None before the model is loaded, and for a directory's."""
        return self._live.get(name)

    def why_not_ready(self) -> str | None:
        """Why the server is not ready; None while it is.

        It is ready when the default catalogue is served, and the others are served or cannot be served now.
        """
        if self._closed or self.draining:
            return "the server is stopping"
        served = self.current
        if served is None:
            return self._why_not_served(None) if self.failure is None else _NOT_STARTED
        if not served.recommender.engine.stats().healthy:
            return _ENGINE_FAILED
        pending = (name for name, live in self._live.items() if not live.concluded)
        return next((self._why_not_served(name) for name in pending), None)

    def served(self, name: str | None = None) -> ServedCatalogue:
        """The version served now under ``name``, or by default; requests that use the engine call `lease`.

        Raises:
            QueryError: no catalogue has this name.
            EngineError: no version of it is served (yet).
        """
        names = self.catalogue_names
        if name is not None and names and name not in names:
            raise QueryError("catalogue", f"no catalogue {name[:64]!r}; this server has: {', '.join(names)}")
        served = self.current if name is None else self.serving.get(name)
        if served is None:
            raise EngineError(self._why_not_served(name) if self.failure is None else _NOT_STARTED)
        return served

    @contextlib.contextmanager
    def lease(self, name: str | None = None) -> Iterator[ServedCatalogue]:
        """The version served now; it stays in the engine until the block ends, even if another one takes over.

        Raises:
            QueryError: no catalogue has this name.
            EngineError: no version of it is served (yet).
        """
        served = self.served(name)
        versions = self._versions
        if versions is None or versions.join(served.version) is None:
            raise EngineError(f"catalogue version {served.version!r} is not loaded")
        try:
            yield served
        finally:
            versions.leave(served.version)

    async def close(self) -> None:
        """Stop following, and close the engine."""
        self._closed = True
        _log.info("stopping")
        await cancel_and_wait(self._following)
        for live in self._live.values():
            await live.close(engine_failed=isinstance(self.failure, EngineClosed))
        if self._versions is not None:
            await self._versions.close()
        if self._models is not None:
            await self._models.close()

    async def _start_fixed(self, directory: Path) -> None:
        artifact = await asyncio.to_thread(self._read_artifact, directory)
        models, versions = await self._start_model(None)
        model = await models.join(artifact.manifest.model)
        fixed = await warmed(artifact, model, name=artifact.manifest.name)
        versions.add(fixed)
        self._fixed = fixed

    async def _start_live(self) -> None:
        parent = self._settings.cache_dir or igd_home() / "artifacts"
        models, versions = await self._start_model(parent)
        fleet = FleetMember(
            store=self._store,
            loader=Loader(models, versions, self._read_artifact),
            versions=versions,
            models=models,
            metrics=self._metrics,
            holder=_holder(),
            poll_s=self._settings.poll_s,
            rules=_rules(self._settings),
        )
        state = self._settings.state_dir or parent
        self._live = {
            name: LiveCatalogue(name, VersionFolder(parent / name), Attempts(state / name / ".attempts"), fleet)
            for name in self._settings.catalogues
        }
        self._following.append(asyncio.create_task(self._listen()))
        looks = [asyncio.Event() for _ in self._live]
        for live, looked in zip(self._live.values(), looks, strict=True):
            self._following.append(asyncio.create_task(self._follow(live, looked)))
        for looked in looks:
            await looked.wait()

    async def _start_model(self, parent: Path | None) -> tuple[Models, LoadedVersions]:
        models = self._models = Models(
            lambda: self._open_model(self._settings),
            store=self._store,
            parent=parent,
            max_bytes=self._settings.max_model_bytes,
            adapters=_adapters_wanted(self._settings),
        )
        await models.start()
        self._versions = LoadedVersions(models)
        return models, self._versions

    async def _watch_engine(self, models: Models) -> None:
        while models.healthy:  # noqa: ASYNC110 - engines tell nobody
            await asyncio.sleep(_LOOK_AT_ENGINE_S)
        self._fail(EngineClosed(_ENGINE_FAILED))

    def _fail(self, error: Exception) -> None:
        self.failure = error
        self.on_failure()

    async def _follow(self, live: LiveCatalogue, looked: asyncio.Event) -> None:
        while True:
            try:
                await live.follow_once()
                if self._models is not None:  # the server's own has no version to take it along
                    await self._models.close_unused()
            except Exception:  # noqa: BLE001 - nobody would follow the pointer any more
                log_failed_look(live.name)
            looked.set()
            self._announce()
            await live.wait_for_next_look()

    async def _listen(self) -> None:
        """Wake catalogues whose pointer moved, as the store reports; polling finds what it does not report."""
        while True:
            try:
                async for name in self._store.changes():
                    if name in self._live:
                        self._live[name].wake()
            except StoreError as error:
                _log.debug("not_listening", extra={"fields": {"detail": str(error)}})
            except Exception:  # noqa: BLE001 - catalogues look by themselves meanwhile
                _log.exception("listening_failed")
            await asyncio.sleep(_LISTEN_AGAIN_S)

    def _why_not_served(self, name: str | None) -> str:
        live = self._live.get(self._settings.catalogues[0] if name is None else name) if self._live else None
        if live is None:
            return "the model and the catalogue are being loaded"
        refusal = next(iter(live.refusals), None)
        if live.waiting is not None:
            return f"catalogue {live.name!r}: waits for {live.waiting}"
        if refusal is not None:
            return f"catalogue {live.name!r}: version {refusal.version} cannot be served ({refusal.reason})"
        return f"catalogue {live.name!r}: {live.trouble or 'being loaded'}"

    def remarks(self) -> Sequence[str]:
        """Versions that are published and not served, and how bf16 compares, for the readiness probe."""
        engines = (served.recommender.engine.stats() for served in self.serving.values())
        precisions = (f"precision {each.precision}: {each.precision_told}" for each in engines if each.precision_told)
        refused = [
            f"catalogue {name!r}: version {refusal.version} is refused ({refusal.reason}), {served} is served"
            for name, live in self._live.items()
            if live.served is not None
            and (served := live.served.version) != live.published
            and (refusal := live.refusals.of(live.published or "")) is not None
        ]
        return [*refused, *dict.fromkeys(precisions)]

    def _announce(self) -> None:
        """Log once that recommendations are served, and call ``on_ready``."""
        if self._announced or self.why_not_ready() is not None:
            return
        self._announced = True
        self.on_ready()
        served = self.serving
        first = next(iter(served.values()))
        model, engine = first.model, first.recommender.engine.stats()
        how = {
            "forward": engine.forward,
            "why_forward": engine.why_forward,
            "precision": engine.precision,
            "precision_told": engine.precision_told,
        }
        _log.info(
            "ready",
            extra={
                "fields": {
                    "catalogues": {name: catalogue.version for name, catalogue in served.items()},
                    "model": model.name,
                    "model_fingerprint": model.fingerprint(),
                    "adapters": {adapter: model.fingerprint(adapter) for adapter in model.adapters},
                    "engine": model.engine,
                    "runtime": model.runtime,
                    **{name: told for name, told in how.items() if told},
                    "checkpoint_sha256": model.checkpoint,
                    "published_models": {name: each.artifact.manifest.model for name, each in served.items()},
                    "items": sum(len(catalogue.catalogue) for catalogue in served.values()),
                    "seconds": round(time.monotonic() - self._started, 3),
                }
            },
        )


def _adapters_wanted(settings: Settings) -> dict[str, list[str]]:
    """Adapters that variants name, by the catalogue that they are for."""
    wanted: dict[str, list[str]] = {}
    for variant in settings.variants:
        if variant.adapter is not None and (names := settings.catalogues):
            wanted.setdefault(variant.catalogue or names[0], []).append(variant.adapter)
    return wanted


def _holder() -> str:
    """This process's name in the store; random, since a restarted container has the same host name and process id."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())
    return f"{host[:_MAX_HOST_CHARS]}:{os.getpid()}:{secrets.token_hex(3)}"


def _rules(settings: Settings) -> TrialRules:
    return TrialRules(
        seconds=settings.trial_s,
        answers=settings.trial_answers,
        hold=settings.canary,
        spread_s=settings.takeover_spread_s,
        lease_s=_LEASE_S + _LEASE_POLLS * settings.poll_s,
    )
