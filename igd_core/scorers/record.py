"""What a manifest says of its scorer, and from there to the scorer itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from igd_core.errors import CatalogueError
from igd_core.scorers.counting import neighbour_rows, transition_rows
from igd_core.scorers.gamma import Gamma, checked_gamma
from igd_core.scorers.rows import MAX_ENTRIES
from igd_core.scorers.sparse import SparseScorer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from igd_core.scorers.rows import SparseRows

ScorerKind: TypeAlias = Literal["transitions", "neighbours"]
KINDS: tuple[ScorerKind, ...] = get_args(ScorerKind)
Mixture: TypeAlias = Literal["log-linear", "linear"]
MIXTURES: tuple[Mixture, ...] = get_args(Mixture)
MIN_BACKOFF = 1e-6
"""Less would leave popularity no mass beside large counts, and an item without entries none at all."""
MAX_BACKOFF = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerOptions:
    """Choices of a scorer that become part of the artifact.

    Attributes:
        kind: ``transitions``, what followed what; or ``neighbours``, what the same people chose.
        decay: 0..1, what an earlier item of a history counts of the one after it; None for 0.25 of transitions and 1
            of neighbours.
        backoff: 1e-6 to 1e6, what popularity counts as beside the weights: transitions, or similarities.
        most: entries kept of an item, the strongest, 1 to 10,000.
        gamma: 0..1, weight of the scorer in a search when a request names none; or one for each length of history.
        mixture: how a search mixes it with the model when a request names none.
    """

    kind: ScorerKind
    decay: float | None = None
    backoff: float = 1.0
    most: int = 200
    gamma: Gamma = 0.0
    mixture: Mixture = "log-linear"

    def record(self, entries: int) -> ScorerRecord:
        """What the manifest says of it, with so many entries.

        Raises:
            CatalogueError: a value out of range.
        """
        if not 1 <= self.most <= MAX_ENTRIES:
            raise CatalogueError(f"scorer.most is {self.most}; 1 to {MAX_ENTRIES} can be")
        usual = 0.25 if self.kind == "transitions" else 1.0
        decay = usual if self.decay is None else self.decay
        return ScorerRecord(
            kind=self.kind,
            decay=float(decay),
            backoff=float(self.backoff),
            gamma=self.gamma if isinstance(self.gamma, tuple) else float(self.gamma),
            mixture=self.mixture,
            entries=entries,
        )

    def rows(self, sequences: Sequence[NDArray[np.int32]], *, num_items: int) -> SparseRows:
        """Count what people chose; ``sequences`` hold the item rows of each, oldest first."""
        count = {"transitions": transition_rows, "neighbours": neighbour_rows}[self.kind]
        return count(sequences, num_items=num_items, most=self.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerRecord:
    """The scorer of an artifact.

    Attributes:
        kind: what its weights are: ``transitions``, or ``neighbours``, cosine similarities.
        decay: what an earlier item of a history counts of the one after it, 0..1.
        backoff: what popularity counts as beside the weights, 1e-6 to 1e6.
        gamma: weight of the scorer in a search when a request names none, 0..1; or by the interactions of the
            history, ``[[0, 0.8], [5, 0.5]]``: 0.8 of up to four, 0.5 from five on.
        mixture: how a search mixes it with the model when a request names none: ``log-linear`` or ``linear``.
        entries: of its arrays.
    """

    kind: ScorerKind
    decay: float
    backoff: float
    gamma: Gamma
    mixture: Mixture
    entries: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise CatalogueError(f"scorer.kind is {self.kind!r}; one of {', '.join(KINDS)}")
        if self.mixture not in MIXTURES:
            raise CatalogueError(f"scorer.mixture is {self.mixture!r}; one of {', '.join(MIXTURES)}")
        if type(self.entries) is not int:
            raise CatalogueError(f"scorer.entries is {self.entries!r}; an integer is needed")
        for name, least, most in (("decay", 0.0, 1.0), ("backoff", MIN_BACKOFF, MAX_BACKOFF)):
            value = getattr(self, name)
            if type(value) not in {int, float} or not least <= value <= most:  # NaN fails this too
                raise CatalogueError(f"scorer.{name} is {value!r}; {least:g} to {most:g} can be")
        try:
            object.__setattr__(self, "gamma", checked_gamma(self.gamma))  # JSON has lists
        except ValueError as error:
            raise CatalogueError(f"scorer.gamma {error}") from None

    def scorer(self, rows: SparseRows, *, sha256: str) -> SparseScorer:
        """The scorer of these arrays, whose file has that hash."""
        fingerprint = f"{self.kind} {float(self.decay)!r} {float(self.backoff)!r} {sha256}"
        return SparseScorer(rows=rows, decay=self.decay, backoff=self.backoff, fingerprint=fingerprint)
