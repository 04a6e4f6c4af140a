"""Variants for A/B tests: each user always gets the same one."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, TypeAdapter, model_validator

from igd_core.limits import Beams, Temperature
from igd_core.scorers.gamma import Gamma, checked_gamma
from igd_core.scorers.options import Mixture
from igd_core.search.normalisation import Normalise

if TYPE_CHECKING:
    from collections.abc import Sequence

_BUCKETS = 1 << 64
_SHARE: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(ge=0, le=1)])


def _gamma(value: object) -> Gamma:
    """A number, or a number for each length of history; wrong ones are said in a sentence, not once for each kind."""
    return checked_gamma(value) if isinstance(value, (list, tuple)) else _SHARE.validate_python(value)


def _as_it_is(gamma: Gamma) -> Any:  # noqa: ANN401 - pydantic warns of steps that it writes by their type
    return gamma


class Variant(BaseModel):
    """A variant; None means the request's or the catalogue's own value.

    Attributes:
        name: in answers and metrics.
        weight: share of users, relative to the other variants'; 0 takes it out of the draw, requests may still name it.
        alpha: strength of the rebalancing, 0..1.
        beams: width of the search.
        forced_weight: what forced tokens count, 0..1.
        normalise: what probabilities are normalised over, ``vocabulary`` or ``children``.
        temperature: divides the logits.
        gamma: weight of the catalogue's item scorer, 0..1, or one for each length of history, as ``[[0, 0.8], [5,
            0.5]]`` (`igd_core.scorers.gamma`); without a scorer the variant goes without, with a warning.
        mixture: how it is mixed with the model, ``log-linear`` or ``linear``; the latter is of ``children``.
        catalogue: one of the server's catalogues.
        adapter: one of the engine's LoRA adapters.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    weight: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    beams: Beams | None = None
    forced_weight: Annotated[float, Field(ge=0, le=1)] | None = None
    normalise: Normalise | None = None
    temperature: Temperature | None = None
    gamma: Annotated[Gamma, PlainValidator(_gamma), PlainSerializer(_as_it_is)] | None = None
    mixture: Mixture | None = None
    catalogue: str | None = None
    adapter: str | None = None

    @model_validator(mode="after")
    def _linear_is_over_children(self) -> Self:
        if self.mixture == "linear" and self.normalise == "vocabulary":
            raise ValueError("mixture 'linear' is of probabilities over children, and normalise is 'vocabulary'")
        return self


def assign(user_id: str, variants: Sequence[Variant]) -> Variant:
    """The variant of a user: the weights divide the range of hashes into intervals, and the id's hash falls into one.

    Raising one variant's weight moves users to it and between no others but its neighbours in the list; the order of
    ``variants`` matters.
    """
    draw = int.from_bytes(hashlib.blake2b(user_id.encode(), digest_size=8).digest()) / _BUCKETS
    threshold = draw * sum(variant.weight for variant in variants)
    drawable = [variant for variant in variants if variant.weight]
    for variant in drawable:
        threshold -= variant.weight
        if threshold < 0:
            return variant
    return drawable[-1]
