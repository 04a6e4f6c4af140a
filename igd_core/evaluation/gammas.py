"""Gamma by the length of a history, chosen on validation rows from the ranks of their targets.

Ranks and not likelihoods, because lists are what is served: log-linear scores under two gammas are no probabilities,
and cannot be compared without a sum over the catalogue for each row.

The one gamma for all lengths is that whose NDCG is surely highest: the lower end of its 95 % interval, drawn by title.
A title that many rows ask for lifts the mean of whatever happens to list it. On Books one title made half of the mean
of the model alone, which was the highest on validation rows and less than half of the scorer's on test rows
(docs/research/sets.md).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.evaluation.bootstrap import LEVEL, Interval, Resampling
from igd_core.evaluation.methods import Mixed
from igd_core.evaluation.metrics import NONE, discounted_gains
from igd_core.scorers.gamma import shown_gamma
from igd_core.scorers.gamma_file import ChosenGamma

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from igd_core.evaluation.ranks import MethodRanks
    from igd_core.scorers.gamma import Gamma, GammaSteps

STARTS = (0, 2, 3, 5, 10, 20, 50, 100)
"""Interactions at which a bucket of histories may begin."""
LEAST_ROWS = 200
"""In a bucket: with fewer on one side of a start, the buckets on its two sides are one."""
WHOLE_ROWS = 500
"""Rows' worth of all rows' mean that each bucket's rows are taken together with."""
_FOLDS = 5
_SERVED = re.compile(r"alpha=\S+ lp=0 beams=\d+ normalise=children( temperature=\S+)?")
"""Settings of a mixture that need nothing but the artifact and the model, which may be tuned at a temperature."""
_STANDARD_ERRORS = 1.96
"""From the middle of a 95 % interval to its ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Histories of one range of lengths.

    Attributes:
        least: interactions, of the shortest.
        rows: validation rows.
        gamma: chosen for it.
        ndcg: with that gamma, on the rows that chose it.
        ndcg_of_one: with the one gamma that is best over all rows.
    """

    least: int
    rows: int
    gamma: float
    ndcg: float
    ndcg_of_one: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GammaChoice:
    """The gamma to serve, and why.

    Attributes:
        setting: of the searches, without gamma: the one under which the best gamma has the highest ``low``.
        seen: whether items of the history could come back.
        mixture: how the scorer was mixed with the model.
        k: length of the lists that NDCG looks at.
        rows: with a history, and a target in the catalogue.
        gammas: that were tried, rising.
        ndcg: of each, over all rows.
        low: of each, the lower end of its 95 % interval, drawn by title.
        one: of the highest ``low``; of equal ones that of the highest NDCG, then the lowest gamma.
        buckets: by length of the history.
        gain: NDCG of a table less that of one gamma, both chosen on four fifths of the target titles and measured on
            the rest; 95 %, drawn by title.
    """

    setting: str
    seen: str
    mixture: str
    k: int
    rows: int
    gammas: tuple[float, ...]
    ndcg: tuple[float, ...]
    low: tuple[float, ...]
    one: float
    buckets: tuple[Bucket, ...]
    gain: Interval

    @property
    def gamma(self) -> Gamma:
        """The table where it gains a standard error or more on rows that did not choose it, else the one."""
        steps = _joined((each.least, each.gamma) for each in self.buckets)
        standard_error = (self.gain.high - self.gain.low) / (2 * _STANDARD_ERRORS)
        return steps if len(steps) > 1 and self.gain.value > standard_error else self.one

    def told(self) -> str:
        """As text for the terminal."""
        lines = [f"gamma, chosen by NDCG@{self.k} of {self.setting} {self.mixture}, seen items {self.seen}"]
        each = zip(self.gammas, self.ndcg, self.low, strict=True)
        lines.append("  " + "  ".join(f"{gamma:g}: {ndcg:.4f} (from {low:.4f})" for gamma, ndcg, low in each))
        if not _SERVED.fullmatch(self.setting):
            lines.append(
                "  a server makes such lists only where a request or a variant asks for them: by itself it scores "
                "mixtures over children, with every token in full and no length penalty"
            )
        if not max(self.low):
            lines.append("  too few rows: every lower end is 0, so the highest mean was taken")
        highest = self.gammas[int(np.argmax(self.ndcg))]
        if self.one != highest:
            lines.append(
                f"  {self.one:g} has the highest lower end (95 %, drawn by title), {highest:g} the highest mean"
            )
        if len(self.buckets) > 1:
            lines += [
                f"  from {each.least:>3} interactions on: gamma {each.gamma:<5g} NDCG {each.ndcg:.4f}, "
                f"with {self.one:g} {each.ndcg_of_one:.4f} ({each.rows:,} rows)"
                for each in self.buckets
            ]
            gain = f"{self.gain.value:+.4f} ({self.gain.low:+.4f} {self.gain.high:+.4f})"
            lines.append(f"  a table less one gamma, on rows that did not choose them: {gain}")
        return "\n".join([*lines, f"  gamma.json: {shown_gamma(self.gamma)}"])

    def to_json(self, *, scorer: str, artifact: str, rows_sha256: str) -> dict[str, Any]:
        """The content of ``gamma.json``; the arguments say what it was chosen for, and on."""
        chosen = ChosenGamma(gamma=self.gamma, mixture=self.mixture, scorer=scorer)  # type: ignore[arg-type]
        return {**chosen.to_json(), "artifact": artifact, "rows_sha256": rows_sha256, "choice": asdict(self)}


def choose_gamma(
    methods: Sequence[MethodRanks], lengths: NDArray[np.int64], targets: NDArray[np.int64], *, k: int, seed: int = 0
) -> GammaChoice | None:
    """Choose from ranks under several gammas; None where no setting has lists under two of them.

    Where a run has lists as servers make them by themselves, those choose: with seen items left out, over children,
    without a length penalty or a weight of forced tokens.

    Args:
        methods: ranks of the same rows.
        lengths: ``(rows,)``; interactions of each history.
        targets: ``(rows,)``; rows of one number ask for the same title, NONE is in no catalogue.
        k: length of the lists that NDCG looks at; lists may be shorter.
        seed: of the folds and the interval.
    """
    usable = (lengths > 0) & (targets != NONE)
    if not usable.any():
        return None
    _, targets = np.unique(targets[usable], return_inverse=True)
    families = _families(methods)
    families = {name: each for name, each in families.items() if name[1] == "excluded"} or families
    families = {name: each for name, each in families.items() if _SERVED.fullmatch(name[0])} or families
    best: GammaChoice | None = None
    for (setting, seen, mixture), by_gamma in families.items():
        gammas = np.array(sorted(by_gamma))
        gains = np.column_stack([discounted_gains(by_gamma[gamma].titles[usable], k) for gamma in gammas.tolist()])
        table = _Table.of(lengths[usable], gains, targets, seed)
        one = table.one
        if best is not None and (table.low[one], gains[:, one].mean()) <= max(zip(best.low, best.ndcg, strict=True)):
            continue
        best = GammaChoice(
            setting=setting,
            seen=seen,
            mixture=mixture,
            k=k,
            rows=len(targets),
            gammas=tuple(gammas.tolist()),
            ndcg=tuple(gains.mean(axis=0).tolist()),
            low=tuple(table.low.tolist()),
            one=float(gammas[one]),
            buckets=table.buckets(lengths[usable], gains, gammas),
            gain=_gain(lengths[usable], gains, targets, seed),
        )
    return best


def _families(methods: Sequence[MethodRanks]) -> dict[tuple[str, str, str], dict[float, MethodRanks]]:
    """Methods that differ in gamma alone, at least two of them: by setting, seen and mixture, then by gamma."""
    parsed = [(Mixed.of(method.name), method) for method in methods]
    mixed = dict.fromkeys(
        (name.setting, method.seen, name.mixture) for name, method in parsed if name.mixture is not None
    )
    found = {
        (setting, seen, mixture): {
            name.gamma: method
            for name, method in parsed
            if (name.setting, method.seen) == (setting, seen) and name.mixture in {mixture, None}
        }
        for setting, seen, mixture in mixed
    }
    return {key: by_gamma for key, by_gamma in found.items() if len(by_gamma) > 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """Columns of gains by length of the history.

    Attributes:
        starts: ``(buckets,)`` int64, rising from 0.
        columns: ``(buckets,)`` int64; of each bucket that with the highest lower end over the bucket's rows together
            with WHOLE_ROWS of the mean over all; ``one`` where it is as high.
        one: the column with the highest ``low``; of equal ones that of the highest mean, then the first.
        low: ``(columns,)``; the lower end of each column's 95 % interval over all rows, drawn by title.
    """

    starts: NDArray[np.int64]
    columns: NDArray[np.int64]
    one: int
    low: NDArray[np.float64]

    @staticmethod
    def of(lengths: NDArray[np.int64], gains: NDArray[np.float64], targets: NDArray[np.int64], seed: int) -> _Table:
        starts = [0]
        for start in STARTS[1:]:
            before, after = (lengths >= starts[-1]) & (lengths < start), lengths >= start
            if min(before.sum(), after.sum()) >= LEAST_ROWS:
                starts.append(start)
        bucket = np.searchsorted(starts, lengths, side="right") - 1
        titles = int(targets.max()) + 1
        sums = np.zeros((titles, len(starts), gains.shape[1] + 1))  # gains, and rows last
        np.add.at(sums, (targets, bucket), np.column_stack([gains, np.ones(len(gains))]))
        # Titles are drawn by their sums, and so with all their rows.
        drawn = titles * Resampling(seed=seed).means(sums.reshape(titles, -1)).reshape(-1, *sums.shape[1:])
        whole = drawn.sum(axis=1, keepdims=True)
        mean = whole[..., :-1] / whole[..., -1:]
        low = _lower_end(mean)[0]
        one = max(range(len(low)), key=lambda column: (low[column], gains[:, column].mean(), -column))
        pooled = _lower_end((drawn[..., :-1] + WHOLE_ROWS * mean) / (drawn[..., -1:] + WHOLE_ROWS))
        columns = np.where(np.isclose(pooled.max(axis=1), pooled[:, one], rtol=1e-9), one, pooled.argmax(axis=1))
        return _Table(starts=np.array(starts), columns=columns, one=one, low=low)

    def column(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """The column for each of ``lengths``."""
        return self.columns[np.searchsorted(self.starts, lengths, side="right") - 1]

    def buckets(
        self, lengths: NDArray[np.int64], gains: NDArray[np.float64], gammas: NDArray[np.float64]
    ) -> tuple[Bucket, ...]:
        bucket = np.searchsorted(self.starts, lengths, side="right") - 1
        return tuple(
            Bucket(
                least=start,
                rows=int((bucket == at).sum()),
                gamma=float(gammas[column]),
                ndcg=float(gains[bucket == at, column].mean()),
                ndcg_of_one=float(gains[bucket == at, self.one].mean()),
            )
            for at, (start, column) in enumerate(zip(self.starts.tolist(), self.columns.tolist(), strict=True))
        )


def _lower_end(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the 95 % interval, over the first axis."""
    low: NDArray[np.float64] = np.quantile(draws, (1 - LEVEL) / 2, axis=0)
    return low


def _gain(lengths: NDArray[np.int64], gains: NDArray[np.float64], targets: NDArray[np.int64], seed: int) -> Interval:
    """What a table gains over one gamma, on rows whose titles chose neither."""
    titles = int(targets.max()) + 1
    fold = (np.random.default_rng(seed).permutation(titles) % _FOLDS)[targets]
    difference = np.zeros(len(targets))
    for held_out in range(min(_FOLDS, titles)):
        rows = fold == held_out
        if rows.all():  # of a single title nothing can be held out
            break
        others = np.unique(targets[~rows], return_inverse=True)[1]
        table = _Table.of(lengths[~rows], gains[~rows], others, seed)
        at = np.flatnonzero(rows)
        difference[at] = gains[at, table.column(lengths[at])] - gains[at, table.one]
    draws = Resampling(seed=seed, groups=targets).means(difference[:, None])
    return Interval.of(float(difference.mean()), draws[:, 0])


def _joined(steps: Iterable[tuple[int, float]]) -> GammaSteps:
    """Steps without those that change nothing."""
    kept: list[tuple[int, float]] = []
    for least, gamma in steps:
        if not kept or kept[-1][1] != gamma:
            kept.append((least, gamma))
    return tuple(kept)
