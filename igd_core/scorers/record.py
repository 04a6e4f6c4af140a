"""What a manifest says of its scorer, and from there to the scorer itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from igd_core.errors import CatalogueError
from igd_core.scorers.counting import neighbour_rows, transition_rows
from igd_core.scorers.ease import ease_rows
from igd_core.scorers.gamma import Gamma, checked_gamma
from igd_core.scorers.rows import MAX_ENTRIES
from igd_core.scorers.sparse import SparseScorer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from igd_core.scorers.rows import SparseRows

ScorerKind: TypeAlias = Literal["transitions", "neighbours", "ease"]
KINDS: tuple[ScorerKind, ...] = get_args(ScorerKind)
Mixture: TypeAlias = Literal["log-linear", "linear"]
MIXTURES: tuple[Mixture, ...] = get_args(Mixture)
MIN_BACKOFF = 1e-6
"""Less would leave popularity no mass beside large counts, and an item without entries none at all."""
MAX_BACKOFF = 1e6
MIN_RIDGE, MAX_RIDGE, USUAL_RIDGE = 1e-3, 1e6, 500.0
USUAL_DECAY: dict[ScorerKind, float] = {"transitions": 0.25, "neighbours": 1.0, "ease": 0.9}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerOptions:
    """Choices of a scorer that become part of the artifact.

    Attributes:
        kind: ``transitions``, what followed what; ``neighbours``, what the same people chose; or ``ease``, what best
            predicts one choice from all others.
        decay: 0..1, what an earlier item of a history counts of the one after it; None for 0.25 of transitions, 1 of
            neighbours and 0.9 of ease.
        backoff: 1e-6 to 1e6, what popularity counts as beside the weights: transitions, or similarities.
        most: entries kept of an item, the strongest, 1 to 10,000.
        ridge: 1e-3 to 1e6, of ease alone: how strongly its weights are drawn to 0; None for 500.
        gamma: 0..1, weight of the scorer in a search when a request names none; or one for each length of history.
        mixture: how a search mixes it with the model when a request names none.
    """

    kind: ScorerKind
    decay: float | None = None
    backoff: float = 1.0
    most: int = 200
    ridge: float | None = None
    gamma: Gamma = 0.0
    mixture: Mixture = "log-linear"

    def record(self, entries: int) -> ScorerRecord:
        """What the manifest says of it, with so many entries.

        Raises:
            CatalogueError: a value out of range.
        """
        if not 1 <= self.most <= MAX_ENTRIES:
            raise CatalogueError(f"scorer.most is {self.most}; 1 to {MAX_ENTRIES} can be")
        if self.ridge is not None and self.kind != "ease":
            raise CatalogueError(f"scorer.ridge is {self.ridge!r}; {self.kind} has none, ease has")
        decay = USUAL_DECAY.get(self.kind, 1.0) if self.decay is None else self.decay
        return ScorerRecord(
            kind=self.kind,
            decay=float(decay),
            backoff=float(self.backoff),
            gamma=self.gamma if isinstance(self.gamma, tuple) else float(self.gamma),
            mixture=self.mixture,
            entries=entries,
            ridge=float(self._ridge) if self.kind == "ease" else None,
        )

    @property
    def _ridge(self) -> float:
        return USUAL_RIDGE if self.ridge is None else self.ridge

    def rows(self, sequences: Sequence[NDArray[np.int32]], *, num_items: int) -> SparseRows:
        """Count what people chose; ``sequences`` hold the item rows of each, oldest first.

        Raises:
            CatalogueError: more items than this kind can take.
        """
        if self.kind == "ease":
            return ease_rows(sequences, num_items=num_items, most=self.most, ridge=self._ridge)
        count = {"transitions": transition_rows, "neighbours": neighbour_rows}[self.kind]
        return count(sequences, num_items=num_items, most=self.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerRecord:
    """The scorer of an artifact.

    Attributes:
        kind: what its weights are: ``transitions``, ``neighbours``, cosine similarities, or ``ease``.
        decay: what an earlier item of a history counts of the one after it, 0..1.
        backoff: what popularity counts as beside the weights, 1e-6 to 1e6.
        gamma: weight of the scorer in a search when a request names none, 0..1; or by the interactions of the
            history, ``[[0, 0.8], [5, 0.5]]``: 0.8 of up to four, 0.5 from five on.
        mixture: how a search mixes it with the model when a request names none: ``log-linear`` or ``linear``.
        entries: of its arrays.
        ridge: how strongly the weights of ``ease`` were drawn to 0, 1e-3 to 1e6; left out of other kinds.
    """

    kind: ScorerKind
    decay: float
    backoff: float
    gamma: Gamma
    mixture: Mixture
    entries: int
    ridge: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise CatalogueError(f"scorer.kind is {self.kind!r}; one of {', '.join(KINDS)}")
        if self.mixture not in MIXTURES:
            raise CatalogueError(f"scorer.mixture is {self.mixture!r}; one of {', '.join(MIXTURES)}")
        if type(self.entries) is not int:
            raise CatalogueError(f"scorer.entries is {self.entries!r}; an integer is needed")
        ranges = [("decay", 0.0, 1.0), ("backoff", MIN_BACKOFF, MAX_BACKOFF)]
        if self.kind == "ease":
            ranges.append(("ridge", MIN_RIDGE, MAX_RIDGE))
        elif self.ridge is not None:
            raise CatalogueError(f"scorer.ridge is {self.ridge!r}; {self.kind} has none")
        for name, least, most in ranges:
            value = getattr(self, name)
            if type(value) not in {int, float} or not least <= value <= most:  # NaN fails this too
                raise CatalogueError(f"scorer.{name} is {value!r}; {least:g} to {most:g} can be")
        try:
            object.__setattr__(self, "gamma", checked_gamma(self.gamma))  # JSON has lists
        except ValueError as error:
            raise CatalogueError(f"scorer.gamma {error}") from None

    def to_json(self) -> dict[str, Any]:
        """What the manifest holds: all but what this kind does not have."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def scorer(self, rows: SparseRows, *, sha256: str) -> SparseScorer:
        """The scorer of these arrays, whose file has that hash."""
        fingerprint = f"{self.kind} {float(self.decay)!r} {float(self.backoff)!r} {sha256}"
        return SparseScorer(rows=rows, decay=self.decay, backoff=self.backoff, fingerprint=fingerprint)
