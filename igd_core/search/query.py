"""A `Query` as callers write it, and the `ResolvedQuery` in which nothing is left open.

A query may leave out alpha, which the catalogue then gives; beams are raised to the number of items; a prompt shows
only the end of a history. `ResolvedQuery.of` settles all that once. The cache key, the cost, the search, popularity and
the response all read the settled values, so they cannot disagree.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING

from igd_core.catalogue.conditions import Condition
from igd_core.errors import QueryError
from igd_core.limits import MAX_BEAMS, MAX_K, MAX_LENGTH_PENALTY, MAX_TEMPERATURE, MIN_TEMPERATURE
from igd_core.release import RELEASE
from igd_core.scorers.gamma import gamma_after
from igd_core.scorers.options import MIXTURES
from igd_core.search.normalisation import NORMALISATIONS
from igd_core.search.prior import NO_PRIOR, Mixing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.artifact import Artifact
    from igd_core.catalogue.conditions import Conditions
    from igd_core.ids import ItemIndex
    from igd_core.scorers.mass import ItemScorer
    from igd_core.scorers.options import Mixture
    from igd_core.search.engine import Engine
    from igd_core.search.normalisation import Normalise


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One request for recommendations.

    Attributes:
        history: item rows, oldest first; the prompt's template decides how many of them it shows.
        k: items wanted, 1..100 and at most the catalogue's size.
        beams: width of the search, 1..200, raised to ``k`` where smaller; None for the artifact's.
        alpha: rebalancing towards decisive tokens, 0..1; None takes the artifact's.
        normalise: over what probabilities are normalised, ``vocabulary`` or ``children``; None takes ``children`` where
            an item scorer is mixed in and ``forced_weight`` is 1, else what the model was tuned for.
        temperature: divides the logits, in (0, 10]; None takes what the model was tuned for (`Normalisation.settled`).
        length_penalty: 0 (D3, IGD) or up to 2; 1 is BIGRec.
        forced_weight: 0..1, what forced tokens count (see `BeamSearch`); 1 is the method, 0 scores decisions alone.
            Means nothing with ``children``, where they have probability 1.
        gamma: weight of the item scorer, 0..1; None takes the artifact's, which may depend on how many items
            ``history`` has, and 0 where it holds no scorer.
        mixture: how it is mixed with the model, ``log-linear`` or ``linear`` (`igd_core.search.prior`); None takes the
            artifact's. ``linear`` is of probabilities over children, so it settles ``normalise`` where that is None;
            the artifact's gives way to ``log-linear`` where ``normalise`` is ``vocabulary``.
        exclude_seen: leave out items of the whole ``history``.
        exclude_seen_titles: with ``exclude_seen``, leave out items of the same path or title too.
        exclude: further items to leave out.
        allow: the only items that may come back; None for all.
        attributes: conditions on items' attributes, all of which must hold (`igd_core.catalogue.conditions`).
        explain: whether items of the model come back with their tokens.
        timeout_s: seconds after which DeadlineExceeded is raised; None for no limit.
    """

    history: Sequence[ItemIndex]
    k: int = 10
    beams: int | None = None
    alpha: float | None = None
    normalise: Normalise | None = None
    temperature: float | None = None
    length_penalty: float = 0.0
    forced_weight: float = 1.0
    gamma: float | None = None
    mixture: Mixture | None = None
    exclude_seen: bool = True
    exclude_seen_titles: bool = True
    exclude: Sequence[ItemIndex] = ()
    allow: Sequence[ItemIndex] | None = None
    attributes: Conditions = field(default_factory=dict)
    explain: bool = True
    timeout_s: float | None = None

    def barred(self, artifact: Artifact) -> tuple[int, ...]:
        """Item rows that must not come back, ascending: ``exclude``, and items that count as seen."""
        if not self.exclude_seen:
            return tuple(sorted({*self.exclude}))
        seen = artifact.of_same_path_or_title(self.history) if self.exclude_seen_titles else self.history
        return tuple(sorted({*self.exclude, *seen}))


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedQuery:
    """Everything that an answer depends on, and nothing else: equal ones have equal answers.

    Sets are sorted and without repetitions, numbers are floats where they may be, and defaults are filled in. Of the
    history it holds what the prompt shows, and what must not come back.

    Attributes:
        version: of the catalogue.
        model: fingerprint of the model, its adapter included: never a name, which may mean other weights tomorrow. None
            if the engine has no such adapter, so that only popularity can answer.
        shown: item rows that the prompt shows, oldest first: the history's window without ``left_out``. If empty,
            popularity answers.
        left_out: how many of the window's oldest items the model's context has no room for.
        k: items wanted.
        beams: width of the search, at least ``k``.
        alpha: rebalancing towards decisive tokens.
        normalise: over what probabilities are normalised.
        temperature: divides the logits.
        length_penalty: the exponent of a path's length.
        forced_weight: of forced tokens; 1 where they have probability 1 anyway.
        gamma: weight of the item scorer.
        mixture: how it is mixed with the model; ``log-linear`` where gamma is 0.
        scorer: fingerprint of the item scorer; None where gamma is 0.
        barred: item rows that must not come back, ascending.
        allowed: the only item rows that may come back, ascending; None for all.
        conditions: on attributes, by name.
        explain: whether items come back with their tokens.
        adapter: the engine's name of ``model``'s adapter; None for the model itself. Not compared: two names of one
            content are the same.
    """

    version: str
    model: str | None
    shown: tuple[ItemIndex, ...]
    left_out: int
    k: int
    beams: int
    alpha: float
    normalise: Normalise
    temperature: float
    length_penalty: float
    forced_weight: float
    gamma: float
    mixture: Mixture
    scorer: str | None
    barred: tuple[int, ...]
    allowed: tuple[int, ...] | None
    conditions: tuple[tuple[str, Condition], ...]
    explain: bool
    adapter: str | None = field(default=None, compare=False)

    @staticmethod
    def of(
        query: Query,
        artifact: Artifact,
        engine: Engine,
        *,
        adapter: str | None = None,
        scorer: ItemScorer | None = None,
    ) -> ResolvedQuery:
        """Fill in defaults and check ranges; 10 us for a history of ten items.

        Args:
            query: as it was asked.
            artifact: that answers.
            engine: that answers.
            adapter: which of the engine's, if one.
            scorer: the artifact's, or another in its place; None where there is none.

        Raises:
            QueryError: a value out of range, a gamma or a linear mixture without a scorer, or a linear mixture of
                scores over the vocabulary; names the field.
        """
        check_query(query, artifact)
        mixing = _mixing(query, artifact, scorer)
        manifest, history = artifact.manifest, query.history
        tuned = engine.identity.normalisation(adapter)
        scored = tuned.settled(_normalise(query, mixing), query.temperature)
        left_out = artifact.num_left_out(history, engine.context_tokens)
        return ResolvedQuery(
            version=artifact.version,
            model=engine.identity.fingerprints.get(adapter),
            shown=tuple(manifest.template.window(history)[left_out:]),
            left_out=left_out,
            k=query.k,
            beams=max(manifest.beams if query.beams is None else query.beams, query.k),
            alpha=_canonical(manifest.alpha if query.alpha is None else query.alpha),
            normalise=scored.normalise,
            temperature=_canonical(scored.temperature),
            length_penalty=_canonical(query.length_penalty),
            forced_weight=1.0 if scored.normalise == "children" else _canonical(query.forced_weight),
            gamma=mixing.gamma,
            mixture=mixing.mixture,
            scorer=scorer.fingerprint if scorer is not None and mixing.gamma else None,
            barred=query.barred(artifact),
            allowed=None if query.allow is None else tuple(sorted({*query.allow})),
            conditions=tuple(sorted(query.attributes.items(), key=itemgetter(0))),
            explain=query.explain,
            adapter=adapter,
        )

    @property
    def asks_about_forced(self) -> bool:
        """Whether the model must score forced tokens."""
        return self.normalise == "vocabulary" and self.forced_share != 0

    @property
    def mixing(self) -> Mixing:
        """How much of the item scorer goes in, and how."""
        return Mixing(gamma=self.gamma, mixture=self.mixture)

    @property
    def forced_share(self) -> float:
        """What the log-probability of a forced token is multiplied with, the model's share in the mixture included."""
        return self.forced_weight * self.mixing.model_weight

    def key(self) -> str:
        """The result cache's key: a hash of every field that counts, and of this release; 64 hexadecimal digits."""
        return hashlib.sha256(_ENCODER.encode((RELEASE, *_compared(self))).encode()).hexdigest()


def _mixing(query: Query, artifact: Artifact, scorer: ItemScorer | None) -> Mixing:
    if scorer is None:
        lacking = f"and this version of catalogue {artifact.manifest.name!r} holds no item scorer"
        if query.gamma:
            raise QueryError("gamma", f"{query.gamma}, {lacking}")
        if query.mixture == "linear" and query.gamma is None:
            raise QueryError("mixture", f"linear, {lacking}")
        return NO_PRIOR
    own = artifact.manifest.scorer
    usual_gamma = 0.0 if own is None else gamma_after(own.gamma, len(query.history))
    gamma = usual_gamma if query.gamma is None else query.gamma
    usual = NO_PRIOR.mixture if own is None or query.normalise == "vocabulary" else own.mixture
    mixture = query.mixture or usual
    return Mixing(gamma=_canonical(gamma), mixture=mixture) if gamma else NO_PRIOR


def _normalise(query: Query, mixing: Mixing) -> Normalise | None:
    """Over what to normalise; None for what the model was tuned for.

    Where an item scorer is mixed in: over children, unless the query says otherwise. A scorer knows nothing of how
    titles are spelled, and lists were worse where the model's knowledge of it counted (docs/research/accuracy.md).
    """
    if mixing.mixture == "linear" and query.normalise == "vocabulary":
        raise QueryError("mixture", "linear is of probabilities over children, and normalise is 'vocabulary'")
    weighs_forced = query.forced_weight != 1.0 and mixing.mixture != "linear"
    return "children" if mixing.gamma and query.normalise is None and not weighs_forced else query.normalise


# Every field that counts, also those added later. Another release may score, round or encode otherwise.
_compared = attrgetter(*(each.name for each in fields(ResolvedQuery) if each.compare))
_ENCODER = json.JSONEncoder(default=Condition.canonical)


def _canonical(value: float) -> float:
    return float(value) + 0.0  # -0.0 becomes 0.0


def check_query(query: Query, artifact: Artifact) -> None:
    """Check that every value is in range; needs no model.

    Raises:
        QueryError: names the field, the value and the range.
    """
    num_items = len(artifact.catalogue)
    _require_range("k", query.k, 1, min(MAX_K, num_items))
    if query.beams is not None:
        _require_range("beams", query.beams, 1, MAX_BEAMS)
    if query.alpha is not None:
        _require_range("alpha", query.alpha, 0.0, 1.0)
    if query.normalise is not None and query.normalise not in NORMALISATIONS:
        raise QueryError("normalise", f"{query.normalise!r} is not one of {', '.join(NORMALISATIONS)}")
    if query.temperature is not None:
        _require_range("temperature", query.temperature, MIN_TEMPERATURE, MAX_TEMPERATURE)
    _require_range("length_penalty", query.length_penalty, 0.0, MAX_LENGTH_PENALTY)
    _require_range("forced_weight", query.forced_weight, 0.0, 1.0)
    if query.gamma is not None:
        _require_range("gamma", query.gamma, 0.0, 1.0)
    if query.mixture is not None and query.mixture not in MIXTURES:
        raise QueryError("mixture", f"{query.mixture!r} is not one of {', '.join(MIXTURES)}")
    for name, items in (("history", query.history), ("exclude", query.exclude), ("allow", query.allow or ())):
        if items and not (min(items) >= 0 and max(items) < num_items):
            wrong = next(item for item in items if not 0 <= item < num_items)
            raise QueryError(name, f"item row {wrong} is not in the catalogue of {num_items}")


def _require_range(name: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:  # NaN fails this too
        raise QueryError(name, f"{value} is not in {lowest}..{highest}")
