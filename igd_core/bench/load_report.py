"""The report of a load run: counts, rates, and latencies from the planned arrival."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.bench.load import TIMED_OUT
from igd_core.bench.traffic import GOOD, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from igd_core.bench.load import LoadArrays

_BUCKETS = 600
_PERCENTILES = (50.0, 90.0, 99.0, 99.9)


def summary(requests: LoadArrays, seconds: float, deadline_s: float) -> dict[str, Any]:
    """Counts, rates, and latencies from the planned arrival, with the part spent waiting to be sent."""
    accepted, good = is_accepted(requests), is_good(requests, deadline_s)
    refused = (requests.status > 0) & ~accepted
    span = max(seconds, 1e-9)
    return {
        "requests": len(requests.planned),
        "statuses": _counts(requests.status, {0: "no answer", TIMED_OUT: "given up"}),
        "answers": {
            verdict.name.lower(): int(np.count_nonzero(requests.verdict == verdict))
            for verdict in Verdict
            if np.any(requests.verdict == verdict)
        },
        "accepted_per_s": round(float(np.count_nonzero(accepted)) / span, 2),
        "goodput_per_s": round(float(np.count_nonzero(good)) / span, 2),
        "latency_ms": {"accepted": percentiles(requests.latency_s[accepted])}
        | ({"refused": percentiles(requests.latency_s[refused])} if refused.any() else {}),
        "latency_from_sending_ms": percentiles(requests.service_s[accepted]),
        "sent_late_ms": percentiles(requests.lag_s[np.isfinite(requests.lag_s)]),
    }


def timeline(requests: LoadArrays, seconds: float, deadline_s: float) -> list[dict[str, Any]]:
    """The same by planned arrival, in steps of whole seconds, at most 600."""
    width = max(1, math.ceil(seconds / _BUCKETS))
    accepted, good, latencies_s = is_accepted(requests), is_good(requests, deadline_s), requests.latency_s
    edges = np.searchsorted(requests.planned, np.arange(math.ceil(seconds / width) + 1) * width)  # planned is ascending
    rows = []
    for index, (start, end) in enumerate(pairwise(edges.tolist())):
        here = slice(start, end)
        taken = accepted[here]
        latency_s, status = latencies_s[here], requests.status[here]
        p50, p99 = np.percentile(latency_s[taken], (50, 99)).tolist() if taken.any() else (None, None)
        rows.append(
            {
                "second": index * width,
                "seconds": width,
                "requests": end - start,
                "accepted": int(np.count_nonzero(taken)),
                "good": int(np.count_nonzero(good[here])),
                "refused": int(np.count_nonzero((status > 0) & ~taken)),
                "failed": int(np.count_nonzero(status <= 0)),
                "p50_ms": None if p50 is None else round(p50 * 1000, 3),
                "p99_ms": None if p99 is None else round(p99 * 1000, 3),
            }
        )
    return rows


def percentiles(seconds: NDArray[np.float64]) -> dict[str, float]:
    """p50 to p99.9, and the maximum, in milliseconds; empty for no values."""
    if not len(seconds):
        return {}
    values = np.percentile(seconds, _PERCENTILES).tolist()
    found = {f"p{rank:g}": round(value * 1000, 3) for rank, value in zip(_PERCENTILES, values, strict=True)}
    return found | {"max": round(float(seconds.max()) * 1000, 3)}


def is_accepted(requests: LoadArrays) -> NDArray[np.bool_]:
    """``(requests,)``: answered with 2xx."""
    return np.asarray((requests.status >= 200) & (requests.status < 300))


def is_good(requests: LoadArrays, deadline_s: float) -> NDArray[np.bool_]:
    """``(requests,)``: answered in time with what was asked for."""
    wanted = np.isin(requests.verdict, [int(verdict) for verdict in GOOD])
    return is_accepted(requests) & wanted & (requests.latency_s <= deadline_s)


def _counts(values: NDArray[np.int16], names: Mapping[int, str]) -> dict[str, int]:
    found, counts = np.unique(values, return_counts=True)
    return {names.get(value, str(value)): count for value, count in zip(found.tolist(), counts.tolist(), strict=True)}
