"""What a manifest says of its scorer, and from there to the scorer itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from igd_core.errors import CatalogueError
from igd_core.scorers.counting import neighbour_rows, transition_rows
from igd_core.scorers.ease import ease_rows
from igd_core.scorers.gamma import Gamma, checked_gamma
from igd_core.scorers.network import NetworkPart, NetworkRecord
from igd_core.scorers.rows import MAX_ENTRIES, SparseRows
from igd_core.scorers.sasrec import SASRecScorer
from igd_core.scorers.sparse import SparseScorer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from igd_core.catalogue.items import Catalogue

ScorerKind: TypeAlias = Literal["transitions", "neighbours", "ease", "sasrec", "given"]
KINDS: tuple[ScorerKind, ...] = get_args(ScorerKind)
Mixture: TypeAlias = Literal["log-linear", "linear"]
MIXTURES: tuple[Mixture, ...] = get_args(Mixture)
MIN_BACKOFF = 1e-6
"""Less would leave popularity no mass beside large counts, and an item without entries none at all."""
MAX_BACKOFF = 1e6
MIN_RIDGE, MAX_RIDGE, USUAL_RIDGE = 1e-3, 1e6, 500.0
USUAL_DECAY: dict[ScorerKind, float] = {"transitions": 0.25, "neighbours": 1.0, "ease": 0.7, "given": 1.0}
"""Of every kind that has one: of those that sum weights between items."""

ScorerPart: TypeAlias = SparseRows | NetworkPart
"""What a scorer's file holds."""
Maker: TypeAlias = "Callable[[Catalogue, Sequence[NDArray[np.int32]]], ScorerPart]"
"""Makes it of a catalogue, and of what each person chose: item rows, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerOptions:
    """Choices of a scorer that become part of the artifact.

    Attributes:
        kind: ``transitions``, what followed what; ``neighbours``, what the same people chose; ``ease``, what best
            predicts one choice from all others; ``sasrec``, a transformer over item ids; or ``given``, any weights.
        decay: 0..1, what an earlier item of a history counts of the one after it; None for 0.25 of transitions, 0.7 of
            ease and 1 of neighbours and given weights. Sasrec has none.
        backoff: 1e-6 to 1e6, what popularity counts as beside the weights; None for 1. Sasrec has none.
        most: entries kept of an item, the strongest, 1 to 10,000; counted kinds.
        ridge: 1e-3 to 1e6, of ease alone: how strongly its weights are drawn to 0; None for 500.
        gamma: 0..1, weight of the scorer in a search when a request names none; or one for each length of history.
        mixture: how a search mixes it with the model when a request names none.
        maker: of ``sasrec`` trains the network, of ``given`` brings the weights; None for kinds that are counted.
    """

    kind: ScorerKind
    decay: float | None = None
    backoff: float | None = None
    most: int = 200
    ridge: float | None = None
    gamma: Gamma = 0.0
    mixture: Mixture = "log-linear"
    maker: Maker | None = None

    def check(self) -> None:
        """Refuse what cannot be, before anything is read.

        Raises:
            CatalogueError: names the setting and its value.
        """
        if not 1 <= self.most <= MAX_ENTRIES:
            raise CatalogueError(f"scorer.most is {self.most}; 1 to {MAX_ENTRIES} can be")
        if (self.maker is None) == (self.kind in _MADE):
            raise CatalogueError(
                f"scorer.maker is {self.maker!r}; {' and '.join(_MADE)} need one, other kinds have none"
            )
        if self.kind == "sasrec":
            self.record(network=_SMALLEST)
        else:
            self.record(0)

    def make(self, catalogue: Catalogue, sequences: Sequence[NDArray[np.int32]]) -> ScorerPart:
        """Count, train or bring what the scorer's file holds.

        Args:
            catalogue: whose items.
            sequences: of each person, item rows, oldest first.

        Raises:
            CatalogueError: more items than this kind can take.
            InputError: too little to train on.
        """
        if self.maker is not None:
            return self.maker(catalogue, sequences)
        if self.kind == "ease":
            ridge = USUAL_RIDGE if self.ridge is None else self.ridge
            return ease_rows(sequences, num_items=len(catalogue), most=self.most, ridge=ridge)
        count = {"transitions": transition_rows, "neighbours": neighbour_rows}[self.kind]
        return count(sequences, num_items=len(catalogue), most=self.most)

    def record_of(self, part: ScorerPart) -> ScorerRecord:
        """What the manifest says of what was made."""
        if isinstance(part, NetworkPart):
            return self.record(network=part.network)
        return self.record(len(part.scorer_item))

    def record(self, entries: int | None = None, *, network: NetworkRecord | None = None) -> ScorerRecord:
        """What the manifest says of weights with so many entries, or of a network.

        Raises:
            CatalogueError: a value out of range, or one that this kind does not have.
        """
        settings = {
            "decay": USUAL_DECAY.get(self.kind) if self.decay is None else self.decay,
            "backoff": 1.0 if self.backoff is None and self.kind != "sasrec" else self.backoff,
            "ridge": USUAL_RIDGE if self.ridge is None and self.kind == "ease" else self.ridge,
        }
        return ScorerRecord(
            kind=self.kind,
            gamma=self.gamma if isinstance(self.gamma, tuple) else float(self.gamma),
            mixture=self.mixture,
            entries=entries,
            network=network,
            **{name: None if value is None else float(value) for name, value in settings.items()},
        )


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
