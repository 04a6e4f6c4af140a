"""Users' histories in the store: record events, read item ids, forget users."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from igd_core.errors import QueryError
from igd_core.store.events import Event
from igd_core.timestamps import iso_of, latest_us
from igd_server.api.user_ids import forms_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from igd_server.api.schemas_events import UserEvent
    from igd_server.recommend.store_guard import StoreGuard

_USERS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """How many of the events are new, and how many were stored before."""

    accepted: int
    duplicates: int


class Histories:
    """Histories in the store. All methods raise StoreUnavailable if the store does not answer."""

    def __init__(self, store: StoreGuard, *, clock: Callable[[], float] = time.time) -> None:
        """``clock`` gives seconds since 1970."""
        self._store = store
        self._clock = clock

    async def record(self, events: Sequence[UserEvent]) -> Recorded:
        """Store all events. After an error some may be stored; sending all of them again records none twice.

        Raises:
            QueryError: a timestamp too far ahead; nothing is stored.
        """
        latest = latest_us(self._clock()) // 1000
        by_user: dict[str, list[Event]] = {}
        for position, event in enumerate(events):
            if event.timestamp > latest:
                raise QueryError(
                    f"events[{position}].timestamp",
                    f"{iso_of(event.timestamp)} is more than a day ahead of the server's clock",
                )
            by_user.setdefault(event.user_id, []).append(
                Event(event_id=_event_id(event), item_id=event.item_id, timestamp_ms=event.timestamp)
            )
        places = asyncio.Semaphore(_USERS_AT_ONCE)

        async def append(user_id: str, of_user: Sequence[Event]) -> int:
            async with places:
                return await self._store.append(user_id, of_user)

        # Wait for every append, so that one failure does not abandon the others half-way.
        outcomes = await asyncio.gather(
            *(append(user_id, of_user) for user_id, of_user in by_user.items()), return_exceptions=True
        )
        accepted = 0
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            accepted += outcome
        return Recorded(accepted=accepted, duplicates=len(events) - accepted)

    async def item_ids(self, user_id: str, *, by: float) -> list[str]:
        """The user's items, oldest first; ``by``: a time of the event loop after which they come too late."""
        return [event.item_id for event in await self._store.history(user_id, by=by)]

    async def forget(self, user_id: str) -> None:
        """Delete everything stored under the user's id, and under other forms of the same id."""
        for form in forms_of(user_id):
            await self._store.forget(form)


def _event_id(event: UserEvent) -> str:
    if event.event_id is not None:
        return event.event_id
    same = json.dumps([event.user_id, event.item_id, event.timestamp])
    return hashlib.sha256(same.encode()).hexdigest()[:32]
