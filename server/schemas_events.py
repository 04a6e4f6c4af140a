"""Users' events over the wire."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import ConfigDict, Field, PlainValidator

from igd_core.store.base import MAX_EVENT_ID_CHARS
from server.schemas import PRINTABLE, ItemId, RequestWarning, UserId, _Request, _Response

MAX_EVENTS = 1000
MAX_TIMESTAMP_MS = 253_402_300_799_999
"""The last millisecond of the year 9999."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _milliseconds(value: object) -> int:
    """Since 1970-01-01 UTC."""
    if isinstance(value, str):
        if not _RFC_3339.fullmatch(value):
            raise ValueError("expected a time as RFC 3339 has it, 2026-01-31T12:00:00Z, or milliseconds since 1970")
        try:
            value = (datetime.fromisoformat(value.upper()) - _EPOCH) // timedelta(milliseconds=1)
        except ValueError as error:
            raise ValueError(str(error)) from None
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("expected a time as RFC 3339 has it, or whole milliseconds since 1970")  # noqa: TRY004 - pydantic's
    if not 0 <= value <= MAX_TIMESTAMP_MS:
        raise ValueError("expected a time from 1970 to 9999")
    return value


Timestamp = Annotated[
    int,
    PlainValidator(_milliseconds, json_schema_input_type=Annotated[int, Field(ge=0, le=MAX_TIMESTAMP_MS)] | datetime),
]


class UserEvent(_Request):
    """A user's interaction with an item."""

    event_id: Annotated[str, Field(min_length=1, max_length=MAX_EVENT_ID_CHARS, pattern=PRINTABLE)] | None = Field(
        default=None,
        description="Unique within the user: an event that is sent again is not recorded again. Made of user, item "
        "and timestamp when absent.",
    )
    user_id: UserId
    item_id: Annotated[ItemId, Field(pattern=PRINTABLE)] = Field(
        description="Of any catalogue; recorded even if none has it now."
    )
    timestamp: Timestamp = Field(
        description="When it happened, RFC 3339 or milliseconds since 1970; at most a day ahead of the server's clock."
    )
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,160}$")] | None = Field(
        default=None, description="Of the answer that showed the item: counts as a success of that answer's variant."
    )


class EventsRequest(_Request):
    """Interactions, of one user or of many, in any order."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"events": [{"user_id": "u-1", "item_id": "50", "timestamp": "2026-01-31T12:00:00Z"}]},
                {
                    "events": [
                        {"event_id": "c-17", "user_id": "u-1", "item_id": "172", "timestamp": 1769860800000},
                        {"event_id": "c-18", "user_id": "u-2", "item_id": "50", "timestamp": 1769860801500},
                    ]
                },
            ]
        }
    )

    events: Annotated[list[UserEvent], Field(min_length=1, max_length=MAX_EVENTS)]


class EventsRecorded(_Response):
    """All events are recorded."""

    request_id: str
    accepted: int = Field(description="Events that were new.")
    duplicates: int = Field(description="Events that had been recorded before.")
    warnings: list[RequestWarning] | None = None
