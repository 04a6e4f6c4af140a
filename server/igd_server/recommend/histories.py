"""Users' histories in the store: record events, read item ids."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from igd_core.errors import QueryError
from igd_core.event_kinds import UNSAID_KIND
from igd_core.store.events import Event
from igd_core.timestamps import iso_of, latest_us
from igd_server.recommend.kinds import EventKinds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from igd_server.api.schemas_events import UserEvent
    from igd_server.recommend.store_guard import StoreGuard

_USERS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """How many of the events are new, and how many changed nothing: stored before, or older than all that are kept."""

    accepted: int
    duplicates: int


class Histories:
    """Histories in the store. All methods raise StoreUnavailable if the store does not answer."""

    def __init__(
        self, store: StoreGuard, *, kinds: EventKinds | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """``kinds``: those of events, as `EventKinds` has them; ``clock`` gives seconds since 1970."""
        self._store = store
        self._kinds = kinds or EventKinds()
        self._clock = clock

    async def record(self, events: Sequence[UserEvent]) -> Recorded:
        """Store all events. After an error some may be stored; sending all of them again records none twice.

        Raises:
            QueryError: a timestamp too far ahead, a kind that this server does not know; nothing is stored.
        """
        latest = latest_us(self._clock()) // 1000
        by_user: dict[tuple[str, bool], list[Event]] = {}
        for position, event in enumerate(events):
            if event.timestamp > latest:
                raise QueryError(
                    f"events[{position}].timestamp",
                    f"{iso_of(event.timestamp)} is more than a day ahead of the server's clock",
                )
            kind = self._kinds.checked(event.kind, f"events[{position}].kind")
            by_user.setdefault((event.user_id, kind in self._kinds.history), []).append(_stored(event, kind))
        places = asyncio.Semaphore(_USERS_AT_ONCE)

        async def append(user_id: str, makes_history: bool, of_user: Sequence[Event]) -> int:
            async with places:
                add = self._store.append if makes_history else self._store.append_others
                return await add(user_id, of_user)

        # Wait for every append, so that one failure does not abandon the others half-way.
        outcomes = await asyncio.gather(
            *(append(*whose, of_user) for whose, of_user in by_user.items()), return_exceptions=True
        )
        accepted = 0
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            accepted += outcome
        return Recorded(accepted=accepted, duplicates=len(events) - accepted)

    async def item_ids(self, user_id: str, *, by: float) -> list[str]:
        """The user's items, oldest first; ``by``: a time of the event loop after which they come too late."""
        return self._kinds.item_ids(await self._store.history(user_id, by=by))


def _stored(event: UserEvent, kind: str) -> Event:
    return Event(
        event_id=event.event_id or _event_id(event, kind),
        item_id=event.item_id,
        timestamp_ms=event.timestamp,
        kind=kind,
        value=event.value,
        position=event.position,
        request_id=event.request_id,
    )


def _event_id(event: UserEvent, kind: str) -> str:
    """Of user, item and time; and of the kind, unless it is that of all events before they had kinds."""
    same = json.dumps([event.user_id, event.item_id, event.timestamp, *([] if kind == UNSAID_KIND else [kind])])
    return hashlib.sha256(same.encode()).hexdigest()[:32]
