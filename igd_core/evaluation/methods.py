"""The methods that an evaluation compares: decoding settings and baselines, with seen items allowed or excluded."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from igd_core.errors import InputError
from igd_core.limits import MAX_BEAMS, MAX_LENGTH_PENALTY
from igd_core.scorers.gamma import gamma_after, shown_gamma
from igd_core.search.normalisation import Normalisation
from igd_core.search.prior import NO_PRIOR, Mixing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.scorers.gamma import GammaSteps
    from igd_core.scorers.gamma_file import ChosenGamma
    from igd_core.scorers.options import Mixture

Seen = Literal["allowed", "excluded"]
_PLAIN = Normalisation()
_BY_SUM = re.compile(
    r"alpha=(?P<alpha>\S+) lp=0 beams=\d+( normalise=\S+)?( temperature=\S+)?(?P<gamma> gamma=\S+)?( mixture=\S+)?"
)
_MIXED = re.compile(r" gamma=(?P<gamma>[0-9.e+-]+)(?: mixture=(?P<mixture>[a-z-]+))?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method's name in reports, and whether its lists may have items of the history."""

    name: str
    seen: Seen

    @property
    def key(self) -> str:
        """Unique among the methods of a run."""
        return f"{self.name} seen={self.seen}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingSetting:
    """The settings of one search.

    Attributes:
        alpha: strength of the rebalancing, 0..1.
        length_penalty: 0 ranks by the sum of token scores, 1 by their mean.
        beams: width of the search, and length of its list.
        seen: whether items of the history, and others of the same title, are allowed.
        forced_weight: weight of forced tokens. 1 is the method; 0 scores a title by its decisions alone, and is not
            from the literature.
        scored: over what probabilities are normalised, and at which temperature.
        mixing: how much of the artifact's item scorer goes in, and how.
        by_length: gamma by the length of the history, in the place of ``mixing``'s; empty for that one.
        alone: the same as ``scored``, after histories with a gamma of 0 in ``by_length``; None for ``scored`` itself.
    """

    alpha: float
    length_penalty: float
    beams: int
    seen: Seen
    forced_weight: float = 1.0
    scored: Normalisation = _PLAIN
    mixing: Mixing = NO_PRIOR
    by_length: GammaSteps = ()
    alone: Normalisation | None = None

    def scored_after(self, interactions: int) -> Normalisation:
        """Over what probabilities are normalised after a history of so many interactions."""
        return self.scored if self.alone is None or self.mixing_after(interactions).gamma else self.alone

    def mixing_after(self, interactions: int) -> Mixing:
        """How much of the item scorer goes in after a history of so many interactions."""
        if not self.by_length:
            return self.mixing
        gamma = gamma_after(self.by_length, interactions)
        return replace(self.mixing, gamma=gamma) if gamma else NO_PRIOR

    @property
    def mixes(self) -> bool:
        """Whether an item scorer goes in, after histories of some length at least."""
        return bool(self.mixing.gamma or any(gamma for _, gamma in self.by_length))

    @property
    def name(self) -> str:
        """Everything but ``seen``: ``alpha=0.2 lp=0 beams=10``, and what else is not the method's own.

        Possible are ``forced=0``, ``normalise=children``, ``temperature=0.7``, ``gamma=0.3`` or
        ``gamma=0:0.8,5:0.5`` by the length of the history, ``mixture=linear``.
        """
        parts = [f"alpha={self.alpha:g} lp={self.length_penalty:g} beams={self.beams}"]
        if self.forced_weight != 1:
            parts.append(f"forced={self.forced_weight:g}")
        if self.scored.normalise != _PLAIN.normalise:
            parts.append(f"normalise={self.scored.normalise}")
        if self.scored.temperature != 1:
            parts.append(f"temperature={self.scored.temperature:g}")
        if self.by_length or self.mixing.gamma:
            parts.append(f"gamma={shown_gamma(self.by_length or self.mixing.gamma)}")
        if self.mixing.mixture != NO_PRIOR.mixture:
            parts.append(f"mixture={self.mixing.mixture}")
        return " ".join(parts)

    @property
    def method(self) -> Method:
        """The method that reports its lists."""
        return Method(name=self.name, seen=self.seen)

    @property
    def known_as(self) -> str:
        """The name in the literature; empty if there is none."""
        if self.forced_weight != 1 or self.scored != _PLAIN or self.mixes:
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
    """Every combination, each once. Normalised over children, the weight of forced tokens makes no difference.

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


def with_mixings(
    settings: Sequence[DecodingSetting], *, gammas: Sequence[float], mixtures: Sequence[Mixture]
) -> list[DecodingSetting]:
    """Each setting with each mixture of an item scorer, each once: with gamma 0 there is but one.

    A linear mixture is of probabilities over the children of a node, so other settings go without.

    Raises:
        InputError: a gamma is out of range, or no setting is left for a linear mixture.
    """
    _require("gammas", gammas, 0.0, 1.0)
    mixings = dict.fromkeys(
        Mixing(gamma=float(gamma), mixture=mixture) if gamma else NO_PRIOR for mixture in mixtures for gamma in gammas
    )
    over_children = [each for each in settings if each.scored.normalise == "children"]
    if "linear" in mixtures and not over_children:
        raise InputError("mixtures: linear is of probabilities over the children of a node: --normalise children")
    return [
        replace(each, mixing=mixing)
        for mixing in mixings
        for each in (over_children if mixing.mixture == "linear" else settings)
    ]


def with_chosen(settings: Sequence[DecodingSetting], chosen: ChosenGamma) -> list[DecodingSetting]:
    """Each setting, without gamma as yet, with the one that was chosen on other rows.

    Raises:
        InputError: its mixture is linear, and no setting is of probabilities over children.
    """
    if not isinstance(chosen.gamma, tuple):
        return with_mixings(settings, gammas=[chosen.gamma], mixtures=[chosen.mixture])
    usable = with_mixings(settings, gammas=[1.0], mixtures=[chosen.mixture])
    mixing = Mixing(mixture=chosen.mixture)
    return list(dict.fromkeys(replace(each, mixing=mixing, by_length=chosen.gamma) for each in usable))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """What the name of a method says of gamma.

    Attributes:
        setting: the name without it.
        gamma: 0 where it names none.
        mixture: None where gamma is 0, and so any.
    """

    setting: str
    gamma: float
    mixture: str | None

    @staticmethod
    def of(name: str) -> Mixed:
        """Inverse of `DecodingSetting.name`, of names without a table.

        >>> Mixed.of("alpha=0 lp=0 beams=10 gamma=0.3 mixture=linear")
        Mixed(setting='alpha=0 lp=0 beams=10', gamma=0.3, mixture='linear')
        """
        found = _MIXED.search(name)
        if found is None:
            return Mixed(setting=name, gamma=0.0, mixture=None)
        mixture = found["mixture"] or NO_PRIOR.mixture
        return Mixed(setting=name[: found.start()], gamma=float(found["gamma"]), mixture=mixture)


def ranks_by_sum(name: str) -> bool:
    """Whether a method's name is of a search that ranks titles by the sum of all its tokens' scores.

    So do D3 and IGD, and either over children or mixed with an item scorer. BIGRec, decisions alone over the vocabulary
    and baselines do not.

    >>> [ranks_by_sum(f"alpha=0 {each} beams=10") for each in ("lp=0", "lp=1")]
    [True, False]
    """
    return _BY_SUM.fullmatch(name) is not None


def is_plain(name: str) -> bool:
    """Whether such a search has alpha 0 and no item scorer: what the model says by itself."""
    found = _BY_SUM.fullmatch(name)
    return found is not None and found["alpha"] == "0" and found["gamma"] is None


def _require(name: str, values: Sequence[float], lowest: float, highest: float) -> None:
    for value in values:
        if not lowest <= value <= highest:  # NaN fails this too
            raise InputError(f"{name}: {value} is not in {lowest:g}..{highest:g}")
