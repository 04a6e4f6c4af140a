"""The identity of a model: whatever its answers depend on. Engines with equal fingerprints compute the same.

Caches use the fingerprint, never the name: a name may mean other weights tomorrow.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from igd_core.errors import EngineError
from igd_core.search.normalisation import Normalisation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FINGERPRINT_LENGTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """What a model's answers depend on, besides catalogue and request.

    Attributes:
        name: of the checkpoint, for people; not part of a fingerprint.
        engine: ``tree``, ``vllm``, ``fake``.
        runtime: data type, precision of products, kind of device, releases of libraries.
        precision: of products, where an engine can choose: ``fp32`` or ``bf16``. The fingerprint has it by ``runtime``.
        checkpoint: sha256 over its files: weights, configuration and tokenizer.
        adapters: sha256 over each adapter's files, by the name that requests use.
        merged: sha256 over the files of the adapter that is merged into the model itself; empty if none is. Its
            fingerprint is that of the same adapter under a name.
        normalisations: what the model (under None) and its adapters were tuned for, if their files say so. The
            fingerprint covers those files.
        fingerprints: of the model itself under None, and of each adapter on it; 16 hexadecimal digits.
    """

    name: str
    engine: str
    runtime: str
    checkpoint: str
    adapters: Mapping[str, str] = field(default_factory=dict)
    merged: str = ""
    precision: str = ""
    normalisations: Mapping[str | None, Normalisation] = field(default_factory=dict)
    fingerprints: Mapping[str | None, str] = field(init=False)

    def __post_init__(self) -> None:
        made: dict[str | None, str] = {None: self._hash(self.merged)}
        made |= {adapter: self._hash(content) for adapter, content in self.adapters.items()}
        object.__setattr__(self, "fingerprints", made)

    def fingerprint(self, adapter: str | None = None) -> str:
        """Fingerprint of the model, or of the model with this adapter.

        Raises:
            EngineError: there is no such adapter.
        """
        require_adapter(adapter, self.adapters)
        return self.fingerprints[adapter]

    def normalisation(self, adapter: str | None = None) -> Normalisation:
        """The normalisation that the model, or its adapter, was tuned for; the method's own if no file says so."""
        return self.normalisations.get(adapter, Normalisation())

    def _hash(self, adapter: str) -> str:
        parts = json.dumps([self.engine, self.runtime, self.checkpoint, adapter])
        return hashlib.sha256(parts.encode()).hexdigest()[:FINGERPRINT_LENGTH]

    @classmethod
    def unshared(cls, name: str, *, engine: str, adapters: Iterable[str] = ()) -> Self:
        """Identity of a model made in memory: different from every other, in any process."""
        return cls(
            name=name,
            engine=engine,
            runtime="",
            checkpoint=secrets.token_hex(32),
            adapters={adapter: secrets.token_hex(32) for adapter in adapters},
        )


def require_adapter(name: str | None, adapters: Mapping[str, object]) -> None:
    """Refuse an adapter that the engine was not started with; None names the model itself.

    Raises:
        EngineError: there is no such adapter.
    """
    if name is not None and name not in adapters:
        raise EngineError(f"adapter {name!r}: this engine has {', '.join(adapters) or 'none'}")
