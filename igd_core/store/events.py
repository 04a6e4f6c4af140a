"""A user's interaction, as stores keep it."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from igd_core.event_kinds import UNSAID_KIND

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_EVENT_ID_CHARS = 128
MAX_USER_ID_CHARS = 256
MAX_REQUEST_ID_CHARS = 160
MAX_VALUE = 1e12
MAX_POSITION = 10_000

_BETWEEN = "\x1f"  # in no id: `igd_core.store.names.require_event`; `igd_core.store.redis.scripts` knows it too


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One interaction of a user.

    Attributes:
        event_id: the sender's, unique for the user; sending it again changes nothing.
        item_id: as in the catalogue; not checked, since catalogues change.
        timestamp_ms: when the interaction happened, milliseconds since 1970-01-01 UTC.
        kind: what the user did: `igd_core.event_kinds`.
        value: of the kind's own meaning, such as stars or a price.
        position: rank at which the item was shown, from 1.
        request_id: of the answer that showed the item.
        order: place among the user's events of the same time, as they were accepted: a store gives it, and says 0 for
            the first one and for those that were stored before there were orders. It is no part of what happened.
    """

    event_id: str
    item_id: str
    timestamp_ms: int
    kind: str = UNSAID_KIND
    value: float | None = None
    position: int | None = None
    request_id: str | None = None
    order: int = field(default=0, compare=False)

    @property
    def place(self) -> tuple[int, int, str]:
        """Events are sorted by it: by time, of one time as they were accepted."""
        return self.timestamp_ms, self.order, self.event_id

    def packed(self) -> str:
        """All but id and time as one text: the item id alone if there is nothing else to say, as it always was.

        Releases that know no kinds take any other text for an item that no catalogue has, and skip it; those that know
        no order pass over it.
        """
        said = (
            "" if self.kind == UNSAID_KIND else self.kind,
            self.value,
            self.position,
            self.request_id,
            self.order or None,
        )
        texts = ["" if each is None else str(each) for each in said]
        while texts and not texts[-1]:
            texts.pop()
        return _BETWEEN.join((self.item_id, *texts))

    @staticmethod
    def unpacked(event_id: str, timestamp_ms: int, text: str) -> Event:
        """The event that `packed` made ``text`` of; what a later release added to it is ignored.

        Raises:
            ValueError: nobody packed this.
        """
        if _BETWEEN not in text:
            return Event(event_id=event_id, item_id=text, timestamp_ms=timestamp_ms)
        item_id, kind, value, position, request_id, order, *_ = (*text.split(_BETWEEN), "", "", "", "")
        return Event(
            event_id=event_id,
            item_id=item_id,
            timestamp_ms=timestamp_ms,
            kind=kind or UNSAID_KIND,
            value=float(value) if value else None,
            position=int(position) if position else None,
            request_id=request_id or None,
            order=int(order) if order else 0,
        )


def joining(known: Mapping[str, Event], events: Sequence[Event], most: int) -> list[Event]:
    """Those of ``events``, one after another, that join a list which keeps the ``most`` latest; with their orders.

    What is known does not, nor what is no later than the oldest event of a list that is full: so an event that a full
    list has dropped cannot come back, and sending events again changes nothing, whatever their times are.

    Args:
        known: the list, by event id.
        events: in the order in which they were accepted.
        most: events that the list keeps.
    """
    times = sorted(event.timestamp_ms for event in known.values())
    orders: dict[int, int] = {}
    for event in known.values():
        orders[event.timestamp_ms] = max(orders.get(event.timestamp_ms, 0), event.order + 1)
    joined: dict[str, Event] = {}
    for event in events:
        at = event.timestamp_ms
        if event.event_id in known or event.event_id in joined or (len(times) >= most and at <= times[-most]):
            continue
        insort(times, at)
        order = orders.get(at, 0)
        orders[at] = order + 1
        joined[event.event_id] = event if event.order == order else replace(event, order=order)
    return list(joined.values())
