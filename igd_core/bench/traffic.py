"""The requests of `igd bench serve`: recommendations for real histories, and events; and verdicts on the answers."""

from __future__ import annotations

import json
import random
import time
import uuid
from array import array
from collections import Counter, deque
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.artifact import load_artifact
from igd_core.datasets.sources import DEFAULT_READING, Reading
from igd_core.datasets.tables import read_table
from igd_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from igd_core.bench.http_pool import Answer, Target
    from igd_core.datasets.sources import Source

_MADE_UP = 10_000
_REPEATABLE = 256
_MAX_REASONS = 64


class Verdict(IntEnum):
    """The verdict on an answer."""

    MODEL = 0
    CACHED = 1
    POPULARITY = 2
    RECORDED = 3
    PROBLEM = 4
    UNEXPECTED = 5
    NO_ANSWER = 6


GOOD = (Verdict.MODEL, Verdict.CACHED, Verdict.RECORDED)
"""The request was answered as asked; what popularity or a precomputed list answers is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserHistory:
    """A user at one moment: item ids, oldest first, and the item chosen next."""

    user_id: str
    history: Sequence[str]
    next_item: str


def read_histories(path: Path | Source, reading: Reading = DEFAULT_READING) -> list[UserHistory]:
    """Read rows of `igd data prepare`: ``history_item_ids``, ``item_id`` and perhaps ``user_id``.

    Raises:
        DataError: the file or a column cannot be used.
        InputError: no row has a history.
    """
    table = read_table(path, reading)
    items = table.ids("item_id").to_pylist()
    users = table.ids("user_id").to_pylist() if "user_id" in table.columns else map(str, range(len(items)))
    rows = zip(users, table.id_lists("history_item_ids").to_pylist(), items, strict=True)
    table.faults.check()
    found = [
        UserHistory(user_id=f"bench-{user}", history=history, next_item=item)
        for user, history, item in rows
        if any(history)
    ]
    if not found:
        raise InputError(f"{table.name}: no row has a history")
    return found


def made_up_histories(artifact_dir: Path, *, seed: int) -> list[UserHistory]:
    """Histories of items drawn by popularity in an artifact, as long as a prompt shows at most.

    Raises:
        ArtifactError: there is no artifact.
    """
    artifact = load_artifact(artifact_dir, verify=False)
    rng = np.random.default_rng(seed)
    weight = artifact.catalogue.frequency + 1.0
    longest = artifact.manifest.template.max_history
    drawn = rng.choice(len(weight), size=(_MADE_UP, longest + 1), p=weight / weight.sum())
    lengths = rng.integers(1, longest + 1, size=_MADE_UP)
    item_ids = artifact.catalogue.item_ids
    return [
        UserHistory(
            user_id=f"bench-{row}",
            history=[item_ids[item] for item in items[:length]],
            next_item=item_ids[items[-1]],
        )
        for row, (items, length) in enumerate(zip(drawn.tolist(), lengths.tolist(), strict=True))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """The mix of requests.

    Attributes:
        body: fields of every recommendation request.
        events: share of arrivals that record an event instead of asking.
        users: share of recommendations asked by ``user_id`` alone.
        repeats: share of recommendations that repeat one of the last 256, which a result cache may know.
        keys: API keys, used in turn.
    """

    body: dict[str, Any]
    events: float = 0.0
    users: float = 0.0
    repeats: float = 0.0
    keys: Sequence[str] = ()


class HistoryTraffic:
    """Takes a random user for each request; counts why requests were not answered as asked.

    Attributes:
        reasons: number of answers by status and problem type, or by what went wrong.
    """

    def __init__(self, target: Target, histories: Sequence[UserHistory], mix: Mix, *, seed: int) -> None:
        self._target = target
        self._histories = histories
        self._mix = mix
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._recent: deque[bytes] = deque(maxlen=_REPEATABLE)
        self._is_event = array("b")
        self.reasons: Counter[str] = Counter()

    def request(self, number: int) -> bytes:
        """The request with this number."""
        mix, draw = self._mix, self._random.random
        is_event = draw() < mix.events
        self._is_event.append(is_event)
        key = mix.keys[number % len(mix.keys)] if mix.keys else None
        user = self._histories[self._random.randrange(len(self._histories))]
        if is_event:
            event = {
                "event_id": uuid.UUID(int=self._random.getrandbits(128)).hex,
                "user_id": user.user_id,
                "item_id": user.next_item,
                "timestamp": int(time.time() * 1000),
            }
            return self._target.message("POST", "/v1/events", _json({"events": [event]}), key=key)
        if self._recent and draw() < mix.repeats:
            body = self._recent[self._random.randrange(len(self._recent))]
        elif draw() < mix.users:
            body = _json({**mix.body, "user_id": user.user_id})
        else:
            body = _json({**mix.body, "history": user.history})
        self._recent.append(body)
        return self._target.message("POST", "/v1/recommendations", body, key=key)

    def judge(self, number: int, answer: Answer) -> int:
        """The `Verdict` on an answer."""
        if answer.status == 0:
            return self._note(answer.body.decode(errors="replace"), Verdict.NO_ANSWER)
        if answer.status == 200:
            verdict = Verdict.RECORDED if self._is_event[number] else _source(answer.body)
            return verdict if verdict is not None else self._note("200 without a source", Verdict.UNEXPECTED)
        if answer.content_type.startswith(b"application/problem+json"):
            try:
                kind = str(json.loads(answer.body)["type"]).rpartition(":")[2]
            except (ValueError, LookupError, TypeError):
                return self._note(f"{answer.status} with a broken problem document", Verdict.UNEXPECTED)
            return self._note(f"{answer.status} {kind}", Verdict.PROBLEM)
        return self._note(f"{answer.status} without a problem document", Verdict.UNEXPECTED)

    def _note(self, reason: str, verdict: Verdict) -> Verdict:
        if reason in self.reasons or len(self.reasons) < _MAX_REASONS:
            self.reasons[reason] += 1
        return verdict


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _source(body: bytes) -> Verdict | None:
    """The answer's source, found by searching: parsing each answer would cost more than sending its request."""
    if b'"source":"model"' in body:
        return Verdict.CACHED if b'"cached":true' in body else Verdict.MODEL
    stands_in = b'"source":"popularity"' in body or b'"source":"precomputed"' in body
    return Verdict.POPULARITY if stands_in else None
