"""A user's interaction, as stores keep it."""

from __future__ import annotations

from dataclasses import dataclass

MAX_EVENT_ID_CHARS = 128
MAX_USER_ID_CHARS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One interaction of a user.

    Attributes:
        event_id: the sender's, unique for the user; sending it again changes nothing.
        item_id: as in the catalogue; not checked, since catalogues change.
        timestamp_ms: when the interaction happened, milliseconds since 1970-01-01 UTC.
    """

    event_id: str
    item_id: str
    timestamp_ms: int
