"""The models in this process: the server's own, and published ones that versions of catalogues name.

A model is opened for the first version that is served with it, beside those that are open, and closed when the last
such version has left the engine. So for the time of a takeover two models are in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from igd_core.errors import ArtifactError, IGDError, ModelError
from igd_core.store.names import MODELS
from igd_core.store.published_models import ModelManifest
from igd_server.catalogues.heap import give_back_free_memory
from igd_server.catalogues.version_folder import VersionFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from igd_core.search.engine import EngineStats
    from igd_core.search.identity import ModelIdentity
    from igd_core.store.base import ArtifactStore
    from igd_server.catalogues.opening import OpenedModel

_log = logging.getLogger("igd.server")


class Models:
    """Opens models, and closes those that no loaded version is served with.

    A model is named by its version; None is the server's own, of ``Settings.model``. One model stays open at least.
    """

    def __init__(
        self,
        open_own: Callable[[], OpenedModel],
        *,
        store: ArtifactStore,
        parent: Path | None,
        max_bytes: int,
        adapters: Mapping[str, Sequence[str]],
    ) -> None:
        """Opens nothing yet.

        Args:
            open_own: loads the server's own model; may block.
            store: has the published ones.
            parent: the folder that they are fetched to, as catalogues' versions are; None if none can be.
            max_bytes: a larger model is not fetched.
            adapters: adapters of the server's own model that its variants name, by catalogue.
        """
        self._open_own = open_own
        self._store = store
        self._parent = parent
        self._folder = None if parent is None else VersionFolder(parent / MODELS)
        self._max_bytes = max_bytes
        self._adapters = adapters
        self._open: dict[str | None, OpenedModel] = {}
        self._users: Counter[str | None] = Counter()
        self._settles = False

    @property
    def healthy(self) -> bool:
        """Whether every open model can answer."""
        return all(model.engine.stats().healthy for model in self._open.values())

    @property
    def identities(self) -> list[ModelIdentity]:
        """Of the models that versions are served with."""
        return [model.engine.identity for key, model in self._open.items() if self._users[key]]

    def stats(self) -> EngineStats | None:
        """The state of all models together; None before the first is open."""
        found = [model.engine.stats() for model in self._open.values()]
        if not found:
            return None
        first = found[-1]
        return replace(  # their thread is one, and so are its queue and its passes
            first,
            sessions=sum(each.sessions for each in found),
            versions=tuple(version for each in found for version in each.versions),
            cache_bytes=sum(each.cache_bytes for each in found),
            passes_split=sum(each.passes_split for each in found),
        )

    async def start(self) -> None:
        """Open the server's own model.

        Raises:
            ModelError: it cannot be loaded.
        """
        self._open[None] = await asyncio.to_thread(self._open_own)

    async def settle(self) -> None:
        """From now on, close the server's own model too while no version is served with it."""
        self._settles = True
        await self.close_unused()

    async def close_unused(self) -> None:
        """Close the models that no version is served with, but for the last one."""
        while (found := self._pop_unused()) is not None:  # anew each time: while one closes, others join and leave
            key, opened = found
            name = opened.engine.model_id
            await opened.engine.close()
            await asyncio.to_thread(give_back_free_memory)
            _log.info("model_closed", extra={"fields": {"published_model": key, "model": name}})

    def check(self, catalogue: str, model: str | None) -> None:
        """Refuse a model that would leave a variant of the catalogue without its adapter.

        Raises:
            ModelError: names the adapters.
        """
        wanted = self._adapters.get(catalogue)
        if model is not None and wanted:
            raise ModelError(
                f"model {model}: variants name {', '.join(map(repr, wanted))}, adapters of this server's own model; "
                "publish the model under a catalogue of its own, and let a variant name that"
            )

    async def fetch(self, model: str | None) -> None:
        """Bring a published model to this machine, unless it is here already and complete.

        Raises:
            ModelError: larger than this server takes.
            ArtifactError: what is stored is incomplete or altered.
            InputError: it is not stored.
            StoreError: the store, or this disk, cannot do it now.
            OSError: this disk cannot take it.
        """
        if model is None or model in self._open or self._folder is None:
            return
        sizes = {stored.version: stored.size_bytes for stored in await self._store.versions(MODELS)}
        if sizes.get(model, 0) > self._max_bytes:
            raise ModelError(f"model {model}: {sizes[model]} bytes; max_model_bytes is {self._max_bytes}")
        await self._folder.fetch(self._store, MODELS, model)

    async def join(self, model: str | None) -> OpenedModel:
        """Become a user of a model, which is opened if need be; one caller at a time.

        Raises:
            ArtifactError: its files are not here, or altered.
            ModelError: it cannot be loaded, or not on this server.
        """
        opened = self._open.get(model)
        if opened is None:
            started = time.monotonic()
            opened = await asyncio.to_thread(self._opened, model)
            self._open[model] = opened
            facts = {"model": opened.engine.model_id, "model_fingerprint": opened.engine.identity.fingerprint()}
            seconds = round(time.monotonic() - started, 3)
            _log.info("model_opened", extra={"fields": {"published_model": model, **facts, "seconds": seconds}})
        self._users[model] += 1
        return opened

    async def leave(self, model: str | None) -> None:
        """Stop being a user; a model without users is closed."""
        self._users[model] -= 1
        await self.close_unused()

    async def close(self) -> None:
        """Close all models."""
        while self._open:  # a version that is still being unloaded may close its model meanwhile
            _, opened = self._open.popitem()
            await opened.engine.close()

    def prune(self) -> None:
        """Delete fetched models that no version on this disk names. Blocking.

        Raises:
            OSError: this disk cannot do it.
        """
        if self._folder is not None and self._parent is not None:
            self._folder.prune({*_named_in(self._parent), *(key for key in self._open if key is not None)})

    def _pop_unused(self) -> tuple[str | None, OpenedModel] | None:
        """Take a model that may be closed out of those that are open; None if there is none."""
        unused = [
            key
            for key, model in self._open.items()
            if not self._users[key] and model.leaves and (self._settles or key is not None)
        ]
        if unused and len(unused) == len(self._open):
            unused.remove(None if None in unused else unused[-1])
        return (unused[0], self._open.pop(unused[0])) if unused else None

    def _opened(self, model: str | None) -> OpenedModel:
        if model is None:
            return self._open_own()
        if self._folder is None:
            raise ModelError(f"model {model}: the version names it, and published models come from a store")
        folder = self._folder.path(model)
        try:
            manifest = ModelManifest.from_bytes((folder / "manifest.json").read_bytes())
        except OSError as error:
            raise ArtifactError(f"model {model}: {error.strerror}") from None
        if manifest.version != model:
            raise ArtifactError(f"model {model}: the folder holds {manifest.version}")
        beside = next(reversed(self._open.values()))
        return beside.open_published(folder, manifest, beside.engine)


def _named_in(parent: Path) -> set[str]:
    """Models that versions on this disk name."""
    named = set()
    for path in parent.glob("*/*/manifest.json"):
        with contextlib.suppress(OSError, ValueError, AttributeError, IGDError):
            named.add(json.loads(path.read_bytes()).get("model"))
    return {model for model in named if isinstance(model, str)}
