"""What is compared: decoding settings, and baselines, each with seen items allowed or excluded."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from igd_core.errors import InputError
from igd_core.search.normalisation import Normalisation
from igd_core.search.query import MAX_BEAMS, MAX_LENGTH_PENALTY

if TYPE_CHECKING:
    from collections.abc import Sequence

Seen = Literal["allowed", "excluded"]
_PLAIN = Normalisation()


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A name under which lists are reported, and whether items of the history may stand in them."""

    name: str
    seen: Seen

    @property
    def key(self) -> str:
        """Unique among the methods of a run."""
        return f"{self.name} seen={self.seen}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingSetting:
    """One way to search.

    Attributes:
        alpha: weight of the rebalancing, 0..1.
        length_penalty: 0 ranks by summed score, 1 by its mean over tokens.
        beams: width of the search, and length of the list it gives.
        seen: whether items of the history, and what reads like one of them, may come back.
        forced_weight: of tokens that stand alone below their node. 1 is the method; 0 scores a title by its decisions
            alone, and is not from the literature.
        scored: over what probabilities are normalised, and at which temperature.
    """

    alpha: float
    length_penalty: float
    beams: int
    seen: Seen
    forced_weight: float = 1.0
    scored: Normalisation = _PLAIN

    @property
    def name(self) -> str:
        """Everything but ``seen``: ``alpha=0.2 lp=0 beams=10``, and what else is not the method's own.

        That may be ``forced=0``, ``normalise=children``, ``temperature=0.7``.
        """
        parts = [f"alpha={self.alpha:g} lp={self.length_penalty:g} beams={self.beams}"]
        if self.forced_weight != 1:
            parts.append(f"forced={self.forced_weight:g}")
        if self.scored.normalise != _PLAIN.normalise:
            parts.append(f"normalise={self.scored.normalise}")
        if self.scored.temperature != 1:
            parts.append(f"temperature={self.scored.temperature:g}")
        return " ".join(parts)

    @property
    def method(self) -> Method:
        """What its lists are reported as."""
        return Method(name=self.name, seen=self.seen)

    @property
    def known_as(self) -> str:
        """What the literature calls it; empty where it has no name."""
        if self.forced_weight != 1 or self.scored != _PLAIN:
            return ""
        if self.alpha > 0:
            return "IGD" if self.length_penalty == 0 else ""
        return {0.0: "D3", 1.0: "BIGRec"}.get(self.length_penalty, "")


def decoding_settings(
    *,
    alphas: Sequence[float],
    length_penalties: Sequence[float],
    beams: Sequence[int],
    seen: Sequence[Seen],
    forced_weights: Sequence[float] = (1.0,),
    scored: Sequence[Normalisation] = (_PLAIN,),
) -> list[DecodingSetting]:
    """Every combination, each once; normalised over children, forced tokens have but one weight.

    Raises:
        InputError: a list is empty, or a value is out of range.
    """
    lists = {"alphas": alphas, "length-penalties": length_penalties, "beams": beams, "forced-weights": forced_weights}
    for name, given in lists.items():
        if not given:
            raise InputError(f"{name}: at least one value is needed")
    _require("alphas", alphas, 0.0, 1.0)
    _require("length-penalties", length_penalties, 0.0, MAX_LENGTH_PENALTY)
    _require("beams", beams, 1, MAX_BEAMS)
    _require("forced-weights", forced_weights, 0.0, 1.0)
    combinations = itertools.product(scored, seen, beams, forced_weights, length_penalties, alphas)
    return list(
        dict.fromkeys(
            DecodingSetting(
                alpha=float(alpha),
                length_penalty=float(penalty),
                beams=width,
                seen=each,
                forced_weight=1.0 if way.normalise == "children" else float(forced),
                scored=way,
            )
            for way, each, width, forced, penalty, alpha in combinations
        )
    )


def _require(name: str, values: Sequence[float], lowest: float, highest: float) -> None:
    for value in values:
        if not lowest <= value <= highest:  # NaN fails this too
            raise InputError(f"{name}: {value} is not in {lowest:g}..{highest:g}")
