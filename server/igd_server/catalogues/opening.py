"""Load the model of the settings into an engine, and catalogue versions into the model."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from igd_core.engines.tuned_prompt import why_untuned
from igd_core.errors import ArtifactError, EngineError, InputError, ModelError
from igd_core.limits import MAX_K
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender
from igd_server.catalogues.served import LoadedVersions, ServedCatalogue
from igd_server.catalogues.titles import TitleSearch
from igd_server.variants import Variant

if TYPE_CHECKING:
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.engines.open import EngineOptions
    from igd_core.engines.tuned_prompt import TunedPrompt
    from igd_core.search.engine import Engine
    from igd_core.store.published_models import ModelManifest
    from igd_server.catalogues.models import Models
    from igd_server.settings import Settings

_log = logging.getLogger("igd.server")
_WITHOUT = Variant(name="without")


def refuse_published(_folder: Path, manifest: ModelManifest, beside: Engine) -> OpenedModel:
    """For engines that were made from parts, as tests make them: they run the one model that they have.

    Raises:
        ModelError: always.
    """
    raise ModelError(
        f"model {manifest.version} ({manifest.name}): engine {beside.identity.engine!r} runs the one model that it was "
        "started with; published models need the embedded engine"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """An engine with its checkpoint.

    Attributes:
        engine: the engine that runs the checkpoint.
        token_texts: as `igd_core.catalogue.tokenization.TitleTokenizer.token_texts`.
        adapters: names of its adapters.
        tuned: what the model (under None) and each of its adapters were tuned on, if they say so.
        open_published: loads a published model beside an engine that is open; may block.
        leaves: whether it is closed while no version is served with it, and opened anew for the next one.
    """

    engine: Engine
    token_texts: Callable[[str, Sequence[int]], list[str]]
    adapters: tuple[str, ...] = ()
    tuned: Mapping[str | None, TunedPrompt | None] = field(default_factory=dict)
    open_published: Callable[[Path, ModelManifest, Engine], OpenedModel] = refuse_published
    leaves: bool = False


def open_model(settings: Settings) -> OpenedModel:
    """Load the checkpoint and start the engine. Blocking.

    Raises:
        ModelError: the checkpoint cannot be loaded, or not on this device; or the engine is not installed.
    """
    from transformers.utils import logging as transformers_logging

    from igd_core.engines.open import EngineOptions, open_engine

    transformers_logging.disable_progress_bar()  # a progress bar is not a line of JSON
    options = EngineOptions(
        model=settings.model,
        engine=settings.engine,
        device=settings.device,
        dtype=settings.dtype,
        forward=settings.forward,
        precision=settings.precision,
        cache_bytes=settings.cache_bytes,
        adapters=dict(settings.adapters),
        vllm=settings.vllm or {},
    )
    opened = open_engine(options)
    log_other_normalisations(settings, opened.tuned)
    embedded = settings.engine == "tree"
    own = None if embedded else opened.engine  # vLLM stays, and adapters join it
    return OpenedModel(
        engine=opened.engine,
        token_texts=opened.tokenizer.token_texts,
        adapters=tuple(dict(settings.adapters)),
        tuned=opened.tuned,
        open_published=functools.partial(_open_published, options, own),
        leaves=embedded,
    )


def _open_published(
    options: EngineOptions, own: Engine | None, folder: Path, manifest: ModelManifest, beside: Engine
) -> OpenedModel:
    """Load a published checkpoint, or the server's own with a published adapter. Blocking.

    ``own`` is the engine that published models join, where only one can.

    Raises:
        ModelError: it cannot be loaded, or is an adapter of another checkpoint than the server's.
    """
    from igd_core.engines.open import checkpoint_sha256, open_beside

    told = f"model {manifest.version} ({manifest.name})"
    adapter = manifest.kind == "adapter"
    if adapter and checkpoint_sha256(options.model) != manifest.base:
        raise ModelError(f"{told}: an adapter of another checkpoint than {options.model}, this server's own")
    model = options.model if adapter else folder
    alone = replace(options, model=model, adapters={}, name=manifest.name)
    try:
        opened = open_beside(alone, own or beside, merged=folder if adapter else None)
    except (ModelError, InputError) as error:
        raise ModelError(f"{told}: {error}") from None
    identity = opened.engine.identity
    if manifest.content != (identity.merged if adapter else identity.checkpoint):
        raise ModelError(f"{told}: its files have been altered on this disk")
    return OpenedModel(
        engine=opened.engine,
        token_texts=opened.tokenizer.token_texts,
        tuned=opened.tuned,
        open_published=functools.partial(_open_published, options, own),
        leaves=True,
    )


def log_other_normalisations(settings: Settings, tuned: Mapping[str | None, TunedPrompt | None]) -> None:
    """Warn of each variant, or of a server without any, that scores otherwise than its model was tuned for."""
    for variant in settings.variants or (_WITHOUT,):
        prompt = tuned.get(variant.adapter)
        if prompt is None:
            continue
        asked = prompt.scored.settled(variant.normalise or settings.normalise, variant.temperature)
        if asked != prompt.scored:
            told = {"variant": None if variant is _WITHOUT else variant.name, "adapter": variant.adapter}
            fields = told | {"asked": str(asked), "tuned_for": str(prompt.scored)}
            _log.warning("other_normalisation", extra={"fields": fields})


async def warmed(artifact: Artifact, model: OpenedModel, *, name: str) -> ServedCatalogue:
    """Load an artifact into the engine and recommend once; on an error the engine unloads it.

    Raises:
        ArtifactError: made for another tokenizer or model.
        EngineError: the engine cannot run it.
    """
    await model.engine.load(artifact)
    try:
        served = await asyncio.to_thread(_indexed, artifact, model, name)
        await _warm(served, model.adapters)
    except BaseException:
        await model.engine.unload(artifact.version)
        raise
    for adapter, why in served.untuned.items():
        fields = {"catalogue": name, "version": served.version, "adapter": adapter, "detail": why}
        _log.warning("model_untuned", extra={"fields": fields})
    return replace(served, loaded_at=datetime.now(UTC))


class Loader:
    """Loads versions from disk into the engine, each with its model, one at a time for all catalogues."""

    def __init__(self, models: Models, versions: LoadedVersions, read_artifact: Callable[[Path], Artifact]) -> None:
        """``read_artifact`` reads and verifies an artifact, and may block."""
        self._models = models
        self._versions = versions
        self._read_artifact = read_artifact
        self._turn = asyncio.Lock()

    async def load(self, name: str, version: str, directory: Path) -> ServedCatalogue:
        """Load the version in ``directory``, ready to be served under ``name``; the caller becomes one of its users.

        Raises:
            ArtifactError: damaged, foreign, or made for another tokenizer or model.
            ModelError: the model that it names cannot be loaded.
            EngineError: the engine cannot run it.
        """
        async with self._turn:
            served = self._versions.join(version)  # another catalogue may have loaded it meanwhile
            if served is None:
                artifact = await asyncio.to_thread(self._read_artifact, directory)
                if artifact.version != version:
                    raise ArtifactError(f"manifest.json: of version {artifact.version}, expected {version}")
                await self._versions.unloaded(version)
                served = await self._warmed(artifact, name)
                self._versions.add(served)
        return served

    async def _warmed(self, artifact: Artifact, name: str) -> ServedCatalogue:
        model = artifact.manifest.model
        opened = await self._models.join(model)
        try:
            return await warmed(artifact, opened, name=name)
        except BaseException:
            await self._models.leave(model)
            raise


def _indexed(artifact: Artifact, model: OpenedModel, name: str) -> ServedCatalogue:
    """Build the indexes of a version: seconds at a million items, so not on an event loop."""
    return ServedCatalogue(
        name=name,
        recommender=Recommender(artifact, model.engine),
        titles=TitleSearch(artifact.catalogue),
        token_texts=model.token_texts,
        attributes=dict(sorted(artifact.catalogue.types.items())),
        loaded_at=datetime.now(UTC),
        untuned={
            adapter: why for adapter, tuned in model.tuned.items() if (why := why_untuned(tuned, artifact)) is not None
        },
    )


async def _warm(served: ServedCatalogue, adapters: Sequence[str]) -> None:
    """Recommend once with a full history, by the model and by each of its adapters.

    Otherwise the first user would wait for caches to fill, or get scores that are not usable.

    Raises:
        EngineError: the model's scores are not usable.
    """
    num_items, most_shown = len(served.catalogue), served.artifact.manifest.template.max_history
    recommender = served.recommender
    popular = recommender.popular(recommender.resolve(Query(history=[], k=min(num_items, most_shown, MAX_K))))
    history = [item.item for item in popular.items]
    query = Query(history=history, k=min(10, num_items), exclude_seen=False)
    for adapter in (None, *adapters):
        answer = await recommender.recommend(query, adapter=adapter)
        if answer.source != "model":
            context = recommender.engine.context_tokens
            raise EngineError(
                f"no title of a history fits into the model's {context} tokens beside the longest path of the catalogue"
            )
