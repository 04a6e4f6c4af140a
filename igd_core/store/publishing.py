"""Publish: a catalogue's version with the model that it is to be served with, in one step for servers."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from igd_core.artifact import Manifest
from igd_core.artifact.manifest import MAX_MANIFEST_BYTES
from igd_core.errors import ArtifactError, InputError
from igd_core.store.bundles import MANIFEST
from igd_core.store.names import MODELS, not_stored, require_catalogue_name, require_version
from igd_core.store.published_models import staged

if TYPE_CHECKING:
    from igd_core.store.base import ArtifactStore
    from igd_core.store.published_models import ModelManifest

_PUBLISHING_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A folder to publish as a model, and its manifest (`igd_core.engines.published`)."""

    directory: Path
    manifest: ModelManifest


ModelChoice: TypeAlias = "ModelFolder | str | Literal['kept', 'own']"
"""A folder; the version of a published model; that of the catalogue's current version; or the server's own model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What has been published: the ``model`` is a version, or None for the server's own."""

    catalogue: str
    version: str
    model: str | None


async def publish(
    store: ArtifactStore,
    *,
    artifact: Path | None,
    catalogue: str | None = None,
    model: ModelChoice = "kept",
    activate: bool = True,
) -> Published:
    """Store a version, and its model if that is new, and let servers take it.

    Args:
        store: to publish into.
        artifact: what `igd build` wrote; None takes the catalogue's current version.
        catalogue: the name to publish it under; by default the artifact's own.
        model: what it is to be served with.
        activate: move the pointer, too.

    Raises:
        InputError: nothing is published under this name, or no such model.
        ArtifactError: truncated, altered or foreign, or made with another tokenizer than the model's.
        StoreError: nothing is visible of it.
    """
    if artifact is None:
        if catalogue is None:
            raise InputError("artifact: give --artifact DIR, or --catalogue NAME for the version that is current there")
        with tempfile.TemporaryDirectory(prefix="igd-publish-") as scratch:
            current = await store.current(catalogue)
            if current is None:
                raise InputError(f"catalogue: nothing is published under {catalogue!r}; give --artifact DIR")
            artifact = await store.fetch(catalogue, current, Path(scratch))
            return await publish(store, artifact=artifact, catalogue=catalogue, model=model, activate=activate)
    manifest = await asyncio.to_thread(_manifest_of, artifact)
    name = require_catalogue_name(catalogue or manifest.name)
    if isinstance(model, ModelFolder) and model.manifest.kind == "checkpoint":
        _require_tokenizer(manifest, model.manifest)
    chosen = await _stored_model(store, name, model)
    if manifest.model == chosen:
        version = await store.add(artifact, catalogue=name)
    else:
        bound = replace(manifest, model=chosen)
        with staged(artifact, list(manifest.parts), bound.to_bytes()) as folder:
            version = await store.add(folder, catalogue=name)
    if activate:
        await store.activate(name, version)
    return Published(catalogue=name, version=version, model=chosen)


async def _stored_model(store: ArtifactStore, catalogue: str, model: ModelChoice) -> str | None:
    """The version of the model, which is in the store now and stays there until the catalogue's version names it."""
    if isinstance(model, ModelFolder):
        with staged(model.directory, list(model.manifest.parts), model.manifest.to_bytes()) as folder:
            version = await store.add(folder)
    elif model == "own":
        return None
    elif model == "kept":
        kept = next((each.model for each in await store.versions(catalogue) if each.is_current), None)
        if kept is None:
            return None
        version = kept
    else:
        version = require_version(model)
    holder = f"publisher:{os.getpid()}:{secrets.token_hex(3)}"
    await store.hold(MODELS, version, holder, _PUBLISHING_S)
    if version not in {stored.version for stored in await store.versions(MODELS)}:
        raise not_stored(MODELS, version)
    return version


def _require_tokenizer(artifact: Manifest, model: ModelManifest) -> None:
    if artifact.tokenizer_sha256 != model.tokenizer_sha256:
        raise ArtifactError(
            f"tokenizer: the artifact was built with {artifact.tokenizer_sha256[:12]}, model {model.name} has "
            f"{model.tokenizer_sha256[:12]}; build the artifact with the model's tokenizer"
        )


def _manifest_of(artifact: Path) -> Manifest:
    try:
        with (artifact / MANIFEST).open("rb") as file:
            return Manifest.from_bytes(file.read(MAX_MANIFEST_BYTES + 1))
    except FileNotFoundError:
        raise ArtifactError(f"{artifact / MANIFEST}: not found; is this an artifact's directory?") from None
    except OSError as error:
        raise ArtifactError(f"{artifact / MANIFEST}: {error.strerror}") from None
