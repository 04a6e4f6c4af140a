"""What an item scorer is told, each setting once: flags of `igd build`, recipes and checks are made of this."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, Field

from igd_core.checked_settings import CheckedSettings, Flag, Share, Words
from igd_core.scorers.gamma import checked_gamma

ScorerKind: TypeAlias = Literal["transitions", "neighbours", "ease", "sasrec", "given"]
KINDS: tuple[ScorerKind, ...] = get_args(ScorerKind)
MOST_KINDS = 4
"""In one scorer."""
Mixture: TypeAlias = Literal["log-linear", "linear"]
MIXTURES: tuple[Mixture, ...] = get_args(Mixture)
MAX_ENTRIES, USUAL_MOST = 10_000, 200
MIN_BACKOFF = 1e-6
"""Less would leave popularity no mass beside large counts, and an item without entries none at all."""
MAX_BACKOFF = 1e6
MIN_RIDGE, MAX_RIDGE, USUAL_RIDGE = 1e-3, 1e6, 500.0
USUAL_GAMMA = 0.7
"""Validation rows chose it on six of eight data sets; on those of seven the mixture is above both of its parts, on
Books, where the model is weak, below the scorer (docs/research/sets.md)."""
MAX_EASE_ITEMS, EASE_BYTES_A_PAIR = 20_000, 32
"""Items that somebody chose, at most: the matrix, and what inverting it takes, are so many bytes a pair, 12.8 GB."""
USUAL_EASE_ITEMS = 10_000
"""Most chosen items for which the usual scorer holds EASE: 3.2 GB while it is made, and about a minute of one core."""
USUAL_DECAY: dict[ScorerKind, float] = {"transitions": 0.25, "neighbours": 1.0, "ease": 0.7, "given": 1.0}
"""Of every kind that has one: of those that sum weights between items."""
_Steps: TypeAlias = tuple[tuple[int, int | float], ...]
"""`GammaSteps` as they are written: a version's hash tells 1 from 1.0."""
Maker: TypeAlias = Callable[..., Any]
"""Takes the catalogue and what each person chose (item rows, oldest first), and returns a `ScorerPart`."""


class ScorerOptions(CheckedSettings):
    """Choices of a scorer that become part of the artifact.

    ``makers`` train the network of ``sasrec``, and bring the weights of ``given``; kinds that are counted have none.
    """

    kind: Annotated[ScorerKind, Flag(name="scorer")] = Field(
        description="make an item scorer of the interactions as well: what followed what, what the same people chose, "
        "EASE (what best predicts one choice from the others), a SASRec that is trained here, or the weights of "
        "--scorer-file"
    )
    also: Annotated[Words[ScorerKind], Flag(name="scorer_also", metavar="KIND,...")] = Field(
        default=(),
        max_length=MOST_KINDS - 1,
        description="further kinds, each with its defaults: the scorer's distribution is the mean of all",
    )
    share: Annotated[float, Field(gt=0, lt=1), Flag(name="scorer_share", metavar="S")] | None = Field(
        default=None,
        description="of the kind of --scorer in that mean; those of --scorer-also have the rest in equal parts "
        "(default: all have equal ones)",
    )
    decay: Annotated[Share, Flag(metavar="D")] | None = Field(
        default=None,
        description="what an earlier item of a history counts of the one after it (default: 0.25 of transitions, 0.7 "
        "of ease, 1 of neighbours and given)",
    )
    backoff: Annotated[float, Field(ge=MIN_BACKOFF, le=MAX_BACKOFF), Flag(metavar="B")] | None = Field(
        default=None,
        description="what popularity counts as beside transitions, similarities or weights (default: 1)",
    )
    most: Annotated[int, Field(ge=1, le=MAX_ENTRIES), Flag(name="scorer_entries")] | None = Field(
        default=None, description=f"most followers, neighbours or weights kept of an item (default: {USUAL_MOST})"
    )
    ridge: Annotated[float, Field(ge=MIN_RIDGE, le=MAX_RIDGE), Flag(metavar="L")] | None = Field(
        default=None,
        description=f"how strongly the weights of ease are drawn to 0 (default: {USUAL_RIDGE:g})",
    )
    gamma: Annotated[Share | _Steps, BeforeValidator(checked_gamma), Flag(name="gamma", shows_default=False)] = Field(
        default=USUAL_GAMMA,
        description=f"weight of the scorer in a search, of requests that name none (default: {USUAL_GAMMA:g})",
    )
    mixture: Annotated[Mixture, Flag(name="mixture")] = Field(
        default="log-linear", description="how it is mixed with the model, of requests that name none"
    )
    makers: Annotated[Mapping[str, Maker], Flag(exists=False)] = Field(default_factory=dict, exclude=True)

    @property
    def kinds(self) -> tuple[ScorerKind, ...]:
        """Every kind, that of ``kind`` first."""
        return (self.kind, *self.also)


def usual_scorer(chosen: int) -> ScorerOptions:
    """The scorer of whoever names none: the mean of transitions and EASE, which was best on most data sets.

    Args:
        chosen: distinct items in what people chose. Beyond `USUAL_EASE_ITEMS` it is transitions alone; the free memory
            has no say, so that equal files have equal versions on every machine.
    """
    return ScorerOptions(kind="transitions", also=("ease",) if chosen <= USUAL_EASE_ITEMS else ())
