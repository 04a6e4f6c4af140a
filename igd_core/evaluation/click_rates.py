"""Click rates of a server's variants, from an export: how often an answer led to a success, and how variants differ.

A variant's rate is the share of its answers that at least one success followed: an event of such a kind, of the same
user, that names the answer and an item which it showed. Answers of one person are not independent, so intervals are
over people: the rate is a ratio of two sums over them, and its variance is that of its linear approximation (the delta
method: Deng et al., arXiv 1803.06336, section 3). The normal distribution that it supposes needs numbers, so below
`LEAST_PEOPLE` people, or `LEAST_ANSWERS` answers with or without a success, a variant has no interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from igd_core.datasets.export_format import SCHEMAS
from igd_core.errors import DataError
from igd_core.evaluation.bootstrap import Interval

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from igd_core.datasets.export_format import StoreExport, Table

LEAST_PEOPLE = 30
LEAST_ANSWERS = 10
_Z = 1.959964  # of the normal distribution's middle 95 %
_ANSWER = ["user_id", "request_id"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantClicks:
    """What became of a variant's answers.

    Attributes:
        variant: its name; empty for answers of a server without variants.
        versions: of catalogues that its answers were of, as ``catalogue/version``, sorted.
        people: who got an answer.
        answers: all of them, those by popularity too.
        by_popularity: of these, those that popularity ranked.
        successes: answers that a success followed.
        rate: ``successes / answers``.
        interval: of the rate, 95 %; None where there is too little to say.
        difference: the rate less the base variant's, with its interval; None for the base, and with too little to say.
    """

    variant: str
    versions: tuple[str, ...]
    people: int
    answers: int
    by_popularity: int
    successes: int
    rate: float
    interval: Interval | None
    difference: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """Answers given from ``since`` on and before ``until``; None has no end."""

    since: datetime | None = None
    until: datetime | None = None


def click_rates(
    export: StoreExport, *, kinds: Collection[str], period: Period, base: str | None = None
) -> Sequence[VariantClicks]:
    """The rates of all variants, the base first, then by name.

    Args:
        export: checked.
        kinds: of events that are a success.
        period: which answers count; events count whenever they come.
        base: what the others are compared with; the first by name when None.

    Raises:
        DataError: no answer of the period is on record, none is of the base, or a file cannot be read.
    """
    answers = _answers(export, kinds, period)
    variants = np.array(answers.column("variant").fill_null("").to_pylist(), dtype=object)
    names = sorted(set(variants))
    if not names:
        raise DataError(
            f"export: {export.folder} has no answer of this time on record; servers record answers to users "
            "with IGD_IMPRESSIONS=true"
        )
    base = names[0] if base is None else base
    if base not in names:
        raise DataError(f"base: no answer of a variant {base!r} is on record; there are: {', '.join(map(repr, names))}")
    people, person = np.unique(np.array(answers.column("user_id").to_pylist(), dtype=object), return_inverse=True)
    success = answers.column("success").to_numpy().astype(np.float64)
    source = np.array(answers.column("source").to_pylist(), dtype=object)
    version = np.array(answers.column("version").to_pylist(), dtype=object)
    found = []
    of_base: _Rate | None = None
    for name in [base, *(name for name in names if name != base)]:
        own = variants == name
        rate = _Rate.of(person[own], success[own], len(people))
        found.append(
            VariantClicks(
                variant=name,
                versions=tuple(sorted(set(version[own]))),
                people=rate.people,
                answers=int(own.sum()),
                by_popularity=int((source[own] == "popularity").sum()),
                successes=int(success[own].sum()),
                rate=rate.value,
                interval=rate.interval(),
                difference=None if of_base is None else rate.less(of_base),
            )
        )
        of_base = of_base or rate
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rate:
    """A ratio of sums over people.

    Attributes:
        value: the ratio.
        parts: ``(all people,)`` float64, what each adds to its error: 0 for those without an answer.
        people: with an answer.
        is_told: whether there is enough of it for an interval.
    """

    value: float
    parts: NDArray[np.float64]
    people: int
    is_told: bool

    @staticmethod
    def of(person: NDArray[np.intp], success: NDArray[np.float64], everybody: int) -> _Rate:
        answers = np.bincount(person, minlength=everybody).astype(np.float64)
        successes = np.bincount(person, weights=success, minlength=everybody)
        total, won = answers.sum(), successes.sum()
        people = int((answers > 0).sum())
        value = float(won / total)
        return _Rate(
            value=value,
            parts=(successes - value * answers) / total,
            people=people,
            is_told=people >= LEAST_PEOPLE and min(won, total - won) >= LEAST_ANSWERS,
        )

    def interval(self) -> Interval | None:
        margin = _margin(self.parts, self.people)
        return self._around(self.value, margin, floor=0.0) if self.is_told else None

    def less(self, other: _Rate) -> Interval | None:
        """The difference; people who had answers of both variants count in both, so that they do not count twice."""
        margin = _margin(self.parts - other.parts, min(self.people, other.people))
        told = self.is_told and other.is_told
        return self._around(self.value - other.value, margin, floor=-1.0) if told else None

    @staticmethod
    def _around(value: float, margin: float, *, floor: float) -> Interval:
        return Interval(value=value, low=max(floor, value - margin), high=min(1.0, value + margin))


def _margin(parts: NDArray[np.float64], people: int) -> float:
    return _Z * float(np.sqrt((parts**2).sum() * people / max(1, people - 1)))


def _answers(export: StoreExport, kinds: Collection[str], period: Period) -> pa.Table:
    """A row an answer: user_id, variant, source, version (with its catalogue), success."""
    shown = _read(
        export, "impressions", (*_ANSWER, "timestamp", "catalogue", "version", "variant", "source", "item_id")
    )
    for bound, keeps in ((period.since, pc.greater_equal), (period.until, pc.less)):
        if bound is not None:
            shown = shown.filter(keeps(shown.column("timestamp"), pa.scalar(bound, pa.timestamp("ms", "UTC"))))
    version = pc.binary_join_element_wise(shown.column("catalogue"), shown.column("version"), "/")
    shown = shown.drop_columns(["catalogue", "version"]).append_column("version", version)
    events = _read(export, "events", (*_ANSWER, "item_id", "kind"))
    events = events.filter(pc.is_in(events.column("kind"), value_set=pa.array(sorted(kinds), pa.string())))
    chosen = events.join(shown.select([*_ANSWER, "item_id"]), [*_ANSWER, "item_id"], join_type="inner")
    followed = chosen.select(_ANSWER).group_by(_ANSWER).aggregate([])
    followed = followed.append_column("success", pa.array(np.ones(followed.num_rows, dtype=np.bool_)))
    answers = shown.group_by([*_ANSWER, "variant", "source", "version"]).aggregate([])
    answers = answers.join(followed, _ANSWER, join_type="left outer").combine_chunks()
    success = answers.column("success").fill_null(False)
    return answers.set_column(answers.column_names.index("success"), "success", success)


def _read(export: StoreExport, table: Table, columns: Sequence[str]) -> pa.Table:
    schema = pa.schema([SCHEMAS[table].field(name) for name in columns])
    try:
        parts = [pq.ParquetFile(path).read(columns=list(columns), use_threads=False) for path in export.files[table]]
        return pa.concat_tables([part.select(list(columns)).cast(schema) for part in parts] or [schema.empty_table()])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DataError(f"export: {export.folder / table}: {str(error).splitlines()[0]}") from None
