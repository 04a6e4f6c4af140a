"""What a manifest says of its scorer, and from there to the scorer itself."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from igd_core.errors import CatalogueError
from igd_core.scorers.blended import BlendedPart, BlendedScorer, name_prefix
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
    MOST_KINDS,
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
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from igd_core.catalogue.items import Catalogue

KindPart: TypeAlias = SparseRows | NetworkPart
ScorerPart: TypeAlias = KindPart | BlendedPart
"""What a scorer's file holds."""


def check_options(options: ScorerOptions) -> None:
    """Refuse what cannot be made, before anything is read.

    Raises:
        CatalogueError: a kind without what makes it, or a setting that this kind does not have.
    """
    for kind in options.kinds:
        if (kind in options.makers) != (kind in _MADE):
            known = sorted(options.makers)
            raise CatalogueError(f"scorer.makers are of {known}; {' and '.join(_MADE)} need one, other kinds have none")
    ScorerRecord.of(options, *(_SMALLEST if kind == "sasrec" else 0 for kind in options.kinds))


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
    most = USUAL_MOST if options.most is None else options.most
    ridge = USUAL_RIDGE if options.ridge is None else options.ridge
    parts = [_made(options, options.kind, catalogue, sequences, (most, ridge))]
    parts += [_made(options, kind, catalogue, sequences, (USUAL_MOST, USUAL_RIDGE)) for kind in options.also]
    return parts[0] if len(parts) == 1 else BlendedPart(parts=tuple(parts))


def _made(
    options: ScorerOptions,
    kind: ScorerKind,
    catalogue: Catalogue,
    sequences: Sequence[NDArray[np.int32]],
    counting: tuple[int, float],
) -> KindPart:
    most, ridge = counting
    if kind in options.makers:
        made: KindPart = options.makers[kind](catalogue, sequences)
        return made
    if kind == "ease":
        return ease_rows(sequences, num_items=len(catalogue), most=most, ridge=ridge)
    count = {"transitions": transition_rows, "neighbours": neighbour_rows}[kind]
    return count(sequences, num_items=len(catalogue), most=most)


@dataclass(frozen=True, slots=True, kw_only=True)
class KindRecord:
    """A scorer of one kind. What that kind does not have is left out.

    Attributes:
        kind: ``transitions``, ``neighbours``, ``ease``, ``sasrec``, or ``given``, weights that somebody brought.
        decay: what an earlier item of a history counts of the one after it, 0..1; all but ``sasrec``.
        backoff: what popularity counts as beside the weights, 1e-6 to 1e6; all but ``sasrec``.
        entries: of its arrays; all but ``sasrec``.
        ridge: how strongly the weights of ``ease`` were drawn to 0, 1e-3 to 1e6.
        network: of ``sasrec``: width, layers, heads, length, temperature and background.
    """

    kind: ScorerKind
    decay: float | None = None
    backoff: float | None = None
    entries: int | None = None
    ridge: float | None = None
    network: NetworkRecord | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise CatalogueError(f"scorer.kind is {self.kind!r}; one of {', '.join(KINDS)}")
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

    def _check_network(self) -> None:
        network: object = self.network
        if isinstance(network, dict):  # JSON
            object.__setattr__(self, "network", NetworkRecord(**network))
        elif not isinstance(network, NetworkRecord):
            raise CatalogueError(f"scorer.network is {network!r}; the sizes of a network are needed")

    def tensors(self, num_items: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each array of its part, by name."""
        if self.network is not None:
            return {name: ("F32", shape) for name, shape in self.network.shapes(num_items).items()}
        entries = (self.entries or 0,)
        return {
            "scorer_start": ("I32", (num_items + 1,)),
            "scorer_item": ("I32", entries),
            "scorer_weight": ("F32", entries),
        }

    def part(self, arrays: Mapping[str, NDArray[Any]]) -> KindPart:
        """What its file holds, of arrays as `tensors` says."""
        return SparseRows(**arrays) if self.network is None else NetworkPart(network=self.network, tensors=arrays)

    def scorer_of(self, part: KindPart, *, sha256: str) -> SparseScorer | SASRecScorer:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerRecord(KindRecord):
    """The scorer of an artifact: one kind, or the mean of several.

    Attributes:
        gamma: weight of the scorer in a search when a request names none, 0..1; or by the interactions of the
            history, ``[[0, 0.8], [5, 0.5]]``: 0.8 of up to four, 0.5 from five on.
        mixture: how a search mixes it with the model when a request names none: ``log-linear`` or ``linear``.
        also: further kinds, three at most; none is there twice.
        share: of the first kind in the mean; each of the others has an equal part of the rest.
    """

    gamma: Gamma
    mixture: Mixture
    also: tuple[KindRecord, ...] = ()
    share: float | None = None

    @classmethod
    def of(cls, options: ScorerOptions, *sizes: int | NetworkRecord) -> ScorerRecord:
        """What the manifest says of weights with so many entries, or of a network, for each kind.

        Raises:
            CatalogueError: a setting that a kind does not have.
        """
        said = {"decay": options.decay, "backoff": options.backoff, "ridge": options.ridge}
        first, *others = [_settings(kind, size) for kind, size in zip(options.kinds, sizes, strict=True)]
        first |= {name: value for name, value in said.items() if value is not None}
        share = options.share
        if others and share is None:
            share = 1 / (1 + len(others))
        return cls(
            **first,
            gamma=options.gamma,
            mixture=options.mixture,
            also=tuple(KindRecord(**other) for other in others),
            share=share,
        )

    @classmethod
    def of_part(cls, options: ScorerOptions, part: ScorerPart) -> ScorerRecord:
        """What the manifest says of what was made."""
        parts = part.parts if isinstance(part, BlendedPart) else (part,)
        return cls.of(
            options, *(each.network if isinstance(each, NetworkPart) else len(each.scorer_item) for each in parts)
        )

    def __post_init__(self) -> None:
        KindRecord.__post_init__(self)  # slots make another class of this one, which super() does not know
        if self.mixture not in MIXTURES:
            raise CatalogueError(f"scorer.mixture is {self.mixture!r}; one of {', '.join(MIXTURES)}")
        said: Sequence[Any] = self.also
        also = [KindRecord(**each) if isinstance(each, dict) else each for each in said]  # JSON
        object.__setattr__(self, "also", tuple(also))
        kinds = [self.kind, *(each.kind for each in also)]
        if len(kinds) > MOST_KINDS or len(set(kinds)) < len(kinds):
            raise CatalogueError(f"scorer.also: {', '.join(kinds)}; {MOST_KINDS} kinds at most, each once")
        share: object = self.share
        if also and (type(share) is not float or not 0.0 < share < 1.0):
            raise CatalogueError(f"scorer.share is {share!r}; above 0 and below 1 can be")
        if not also and share is not None:
            raise CatalogueError(f"scorer.share is {share!r}; a scorer of one kind has none")
        try:
            object.__setattr__(self, "gamma", checked_gamma(self.gamma))  # JSON has lists
        except ValueError as error:
            raise CatalogueError(f"scorer.gamma {error}") from None

    @property
    def kinds(self) -> tuple[KindRecord, ...]:
        """What is said of each kind, the first one first."""
        return (self, *self.also)

    @property
    def name(self) -> str:
        """Its kinds, as people are told: ``ease+sasrec``."""
        return "+".join(each.kind for each in self.kinds)

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each kind in the mean; they sum to 1."""
        share = 1.0 if self.share is None else self.share
        return (share, *((1.0 - share) / len(self.also) for _ in self.also))

    def to_json(self) -> dict[str, Any]:
        """What the manifest holds: all but what this kind does not have."""
        also = {"also": [_without_none(each) for each in asdict(self)["also"]]} if self.also else {}
        return {name: value for name, value in _without_none(asdict(self)).items() if name != "also"} | also

    def num_values(self, num_items: int) -> int:
        """How many numbers of four bytes its file holds for so many items."""
        return sum(math.prod(shape) for _, shape in self.tensors_of_all(num_items).values())

    def tensors_of_all(self, num_items: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each array of its file, by name."""
        return {
            f"{name_prefix(place)}{name}": layout
            for place, each in enumerate(self.kinds)
            for name, layout in each.tensors(num_items).items()
        }

    def part_of_all(self, arrays: Mapping[str, NDArray[Any]], num_items: int) -> ScorerPart:
        """What its file holds, of arrays as `tensors_of_all` says."""
        parts = tuple(
            each.part({name: arrays[f"{name_prefix(place)}{name}"] for name in each.tensors(num_items)})
            for place, each in enumerate(self.kinds)
        )
        return BlendedPart(parts=parts) if self.also else parts[0]

    def scorer(self, part: ScorerPart, *, sha256: str) -> SparseScorer | SASRecScorer | BlendedScorer:
        """The scorer of these arrays, whose file has that hash.

        Raises:
            CatalogueError: they are another kind's.
        """
        if not isinstance(part, BlendedPart):
            if self.also:
                raise CatalogueError(f"scorer: arrays of another kind than {self.name}")
            return self.scorer_of(part, sha256=sha256)
        if len(part.parts) != len(self.kinds):
            raise CatalogueError(f"scorer: arrays of {len(part.parts)} kinds for {self.name}")
        scorers = tuple(each.scorer_of(of, sha256=sha256) for each, of in zip(self.kinds, part.parts, strict=True))
        told = " ".join(f"{share!r} {each.fingerprint}" for share, each in zip(self.shares, scorers, strict=True))
        return BlendedScorer(scorers=scorers, shares=self.shares, fingerprint=f"{self.name} {told}")


def _settings(kind: ScorerKind, size: int | NetworkRecord) -> dict[str, Any]:
    """What a `KindRecord` is told of a kind that has its defaults."""
    if isinstance(size, NetworkRecord):
        return {"kind": kind, "network": size}
    ridge = {"ridge": USUAL_RIDGE} if kind == "ease" else {}
    return {"kind": kind, "decay": USUAL_DECAY.get(kind), "backoff": 1.0, "entries": size, **ridge}


def _without_none(said: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in said.items() if value is not None}


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
