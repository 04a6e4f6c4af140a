"""What a manifest says of its scorer, and from there to the scorer itself."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from igd_core.errors import CatalogueError
from igd_core.scorers.counting import neighbour_rows, transition_rows
from igd_core.scorers.ease import ease_rows
from igd_core.scorers.gamma import Gamma, checked_gamma
from igd_core.scorers.network import NetworkPart, NetworkRecord
from igd_core.scorers.options import (
    KINDS,
    MAX_BACKOFF,
    MAX_RIDGE,
    MIN_BACKOFF,
    MIN_RIDGE,
    MIXTURES,
    USUAL_DECAY,
    USUAL_MOST,
    USUAL_RIDGE,
    Mixture,
    ScorerKind,
    ScorerOptions,
)
from igd_core.scorers.rows import SparseRows
from igd_core.scorers.sasrec import SASRecScorer
from igd_core.scorers.sparse import SparseScorer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from igd_core.catalogue.items import Catalogue

ScorerPart: TypeAlias = SparseRows | NetworkPart
"""What a scorer's file holds."""


def check_options(options: ScorerOptions) -> None:
    """Refuse what cannot be made, before anything is read.

    Raises:
        CatalogueError: a kind without what makes it, or a setting that this kind does not have.
    """
    if (options.maker is None) == (options.kind in _MADE):
        raise CatalogueError(
            f"scorer.maker is {options.maker!r}; {' and '.join(_MADE)} need one, other kinds have none"
        )
    if options.kind == "sasrec":
        ScorerRecord.of(options, network=_SMALLEST)
    else:
        ScorerRecord.of(options, 0)


def make_part(options: ScorerOptions, catalogue: Catalogue, sequences: Sequence[NDArray[np.int32]]) -> ScorerPart:
    """Count, train or bring what the scorer's file holds.

    Args:
        options: that `check_options` took.
        catalogue: whose items.
        sequences: of each person, item rows, oldest first.

    Raises:
        CatalogueError: more items than this kind can take.
        InputError: too little to train on.
    """
    if options.maker is not None:
        made: ScorerPart = options.maker(catalogue, sequences)
        return made
    most = USUAL_MOST if options.most is None else options.most
    if options.kind == "ease":
        ridge = USUAL_RIDGE if options.ridge is None else options.ridge
        return ease_rows(sequences, num_items=len(catalogue), most=most, ridge=ridge)
    count = {"transitions": transition_rows, "neighbours": neighbour_rows}[options.kind]
    return count(sequences, num_items=len(catalogue), most=most)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerRecord:
    """The scorer of an artifact. What a kind does not have is left out.

    Attributes:
        kind: ``transitions``, ``neighbours``, ``ease``, ``sasrec``, or ``given``, weights that somebody brought.
        decay: what an earlier item of a history counts of the one after it, 0..1; all but ``sasrec``.
        backoff: what popularity counts as beside the weights, 1e-6 to 1e6; all but ``sasrec``.
        gamma: weight of the scorer in a search when a request names none, 0..1; or by the interactions of the
            history, ``[[0, 0.8], [5, 0.5]]``: 0.8 of up to four, 0.5 from five on.
        mixture: how a search mixes it with the model when a request names none: ``log-linear`` or ``linear``.
        entries: of its arrays; all but ``sasrec``.
        ridge: how strongly the weights of ``ease`` were drawn to 0, 1e-3 to 1e6.
        network: of ``sasrec``: width, layers, heads, length, temperature and background.
    """

    kind: ScorerKind
    gamma: Gamma
    mixture: Mixture
    decay: float | None = None
    backoff: float | None = None
    entries: int | None = None
    ridge: float | None = None
    network: NetworkRecord | None = None

    @classmethod
    def of(
        cls, options: ScorerOptions, entries: int | None = None, *, network: NetworkRecord | None = None
    ) -> ScorerRecord:
        """What the manifest says of weights with so many entries, or of a network.

        Raises:
            CatalogueError: a setting that this kind does not have.
        """
        settings = {
            "decay": USUAL_DECAY.get(options.kind) if options.decay is None else options.decay,
            "backoff": 1.0 if options.backoff is None and options.kind != "sasrec" else options.backoff,
            "ridge": USUAL_RIDGE if options.ridge is None and options.kind == "ease" else options.ridge,
        }
        return cls(
            kind=options.kind,
            gamma=options.gamma,
            mixture=options.mixture,
            entries=entries,
            network=network,
            **settings,
        )

    @classmethod
    def of_part(cls, options: ScorerOptions, part: ScorerPart) -> ScorerRecord:
        """What the manifest says of what was made."""
        if isinstance(part, NetworkPart):
            return cls.of(options, network=part.network)
        return cls.of(options, len(part.scorer_item))

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise CatalogueError(f"scorer.kind is {self.kind!r}; one of {', '.join(KINDS)}")
        if self.mixture not in MIXTURES:
            raise CatalogueError(f"scorer.mixture is {self.mixture!r}; one of {', '.join(MIXTURES)}")
        for name, kinds in _HAVE.items():
            if self.kind not in kinds and getattr(self, name) is not None:
                raise CatalogueError(f"scorer.{name} is {getattr(self, name)!r}; {self.kind} has none")
        if self.kind == "sasrec":
            self._check_network()
        elif type(self.entries) is not int:
            raise CatalogueError(f"scorer.entries is {self.entries!r}; an integer is needed")
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if self.kind in _HAVE[name] and (type(value) not in {int, float} or not least <= value <= most):  # NaN too
                raise CatalogueError(f"scorer.{name} is {value!r}; {least:g} to {most:g} can be")
        try:
            object.__setattr__(self, "gamma", checked_gamma(self.gamma))  # JSON has lists
        except ValueError as error:
            raise CatalogueError(f"scorer.gamma {error}") from None

    def _check_network(self) -> None:
        network: object = self.network
        if isinstance(network, dict):  # JSON
            object.__setattr__(self, "network", NetworkRecord(**network))
        elif not isinstance(network, NetworkRecord):
            raise CatalogueError(f"scorer.network is {network!r}; the sizes of a network are needed")

    def to_json(self) -> dict[str, Any]:
        """What the manifest holds: all but what this kind does not have."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def num_values(self, num_items: int) -> int:
        """How many numbers of four bytes its file holds for so many items."""
        if self.network is not None:
            return sum(math.prod(shape) for shape in self.network.shapes(num_items).values())
        return num_items + 1 + 2 * (self.entries or 0)

    def scorer(self, part: ScorerPart, *, sha256: str) -> SparseScorer | SASRecScorer:
        """The scorer of these arrays, whose file has that hash.

        Raises:
            CatalogueError: they are another kind's.
        """
        if isinstance(part, NetworkPart) and part.network == self.network:
            settings = " ".join(f"{value!r}" for value in asdict(part.network).values())
            return SASRecScorer(part=part, fingerprint=f"{self.kind} {settings} {sha256}")
        if isinstance(part, SparseRows) and self.decay is not None and self.backoff is not None:
            fingerprint = f"{self.kind} {float(self.decay)!r} {float(self.backoff)!r} {sha256}"
            return SparseScorer(rows=part, decay=self.decay, backoff=self.backoff, fingerprint=fingerprint)
        raise CatalogueError(f"scorer: arrays of another kind than {self.kind}")


_MADE: tuple[ScorerKind, ...] = ("sasrec", "given")
_SUMMED: tuple[ScorerKind, ...] = ("transitions", "neighbours", "ease", "given")
_HAVE: dict[str, tuple[ScorerKind, ...]] = {
    "decay": _SUMMED,
    "backoff": _SUMMED,
    "entries": _SUMMED,
    "ridge": ("ease",),
    "network": ("sasrec",),
}
_RANGES = {"decay": (0.0, 1.0), "backoff": (MIN_BACKOFF, MAX_BACKOFF), "ridge": (MIN_RIDGE, MAX_RIDGE)}
_SMALLEST = NetworkRecord(width=1, layers=1, heads=1, length=1, temperature=1.0, background=1.0)
