"""One interaction of a user, as stores keep it."""

from __future__ import annotations

from dataclasses import dataclass

MAX_EVENT_ID_CHARS = 128
MAX_USER_ID_CHARS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One interaction of a user.

    Attributes:
        event_id: the sender's, unique within the user; sending it again changes nothing.
        item_id: as in the catalogue; not checked, catalogues change.
        timestamp_ms: milliseconds since 1970-01-01 UTC, of the interaction itself.
    """

    event_id: str
    item_id: str
    timestamp_ms: int
