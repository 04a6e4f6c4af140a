"""A user's interaction, as stores keep it."""

from __future__ import annotations

from dataclasses import dataclass

from igd_core.event_kinds import UNSAID_KIND

MAX_EVENT_ID_CHARS = 128
MAX_USER_ID_CHARS = 256
MAX_REQUEST_ID_CHARS = 160
MAX_VALUE = 1e12
MAX_POSITION = 10_000

_BETWEEN = "\x1f"  # in no id: `igd_core.store.names.require_event`


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
    """

    event_id: str
    item_id: str
    timestamp_ms: int
    kind: str = UNSAID_KIND
    value: float | None = None
    position: int | None = None
    request_id: str | None = None

    def packed(self) -> str:
        """All but id and time as one text: the item id alone if there is nothing else to say, as it always was.

        Releases that know no kinds take any other text for an item that no catalogue has, and skip it.
        """
        said = ("" if self.kind == UNSAID_KIND else self.kind, self.value, self.position, self.request_id)
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
        item_id, kind, value, position, request_id, *_ = (*text.split(_BETWEEN), "", "", "")
        return Event(
            event_id=event_id,
            item_id=item_id,
            timestamp_ms=timestamp_ms,
            kind=kind or UNSAID_KIND,
            value=float(value) if value else None,
            position=int(position) if position else None,
            request_id=request_id or None,
        )
