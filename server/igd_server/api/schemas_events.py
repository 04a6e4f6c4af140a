"""Requests and responses on users' events."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field, PlainValidator

from igd_core.event_kinds import KIND, UNSAID_KIND
from igd_core.store.events import MAX_EVENT_ID_CHARS, MAX_POSITION, MAX_REQUEST_ID_CHARS, MAX_VALUE
from igd_core.timestamps import EARLIEST_S, NotAnInstant, instant_of
from igd_server.api.schemas import PRINTABLE, AnyUserId, ItemId, RequestWarning, UserId, _Request, _Response

MAX_EVENTS = 1000
_MAX_SHOWN = 64


def _milliseconds(value: object) -> int:
    """Since 1970-01-01 UTC; `Histories` compares with its clock."""
    try:
        return instant_of(value).us // 1000
    except NotAnInstant as error:
        raise ValueError(f"{_shown(value)} {error}") from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


Timestamp = Annotated[
    int,
    PlainValidator(
        _milliseconds,
        json_schema_input_type=Annotated[int, Field(ge=EARLIEST_S)] | Annotated[float, Field(ge=EARLIEST_S)] | datetime,
    ),
]


class UserEvent(_Request):
    """A user's interaction with an item."""

    event_id: Annotated[str, Field(min_length=1, max_length=MAX_EVENT_ID_CHARS, pattern=PRINTABLE)] | None = Field(
        default=None,
        description="Unique within the user, among events that make a history and among the others: an event that is "
        "sent again is not recorded again. Made of user, item, timestamp and kind when absent.",
    )
    user_id: UserId
    item_id: Annotated[ItemId, Field(pattern=PRINTABLE)] = Field(
        description="Of any catalogue; recorded even if none has it now."
    )
    timestamp: Timestamp = Field(
        description="When it happened: ISO 8601 with a zone, or a number since 1970 whose size tells its unit "
        "(seconds, milliseconds, microseconds or nanoseconds). From 1990 to one day ahead of the server's clock."
    )
    kind: Annotated[str, Field(pattern=KIND)] | None = Field(
        default=None,
        description=f"What the user did: one of the kinds that the server knows (`IGD_EVENT_KINDS`); `{UNSAID_KIND}` "
        "when absent.",
        examples=["buy"],
    )
    value: Annotated[float, Field(ge=-MAX_VALUE, le=MAX_VALUE)] | None = Field(
        default=None, description="Of the kind's own meaning, such as stars of a rating or the price of a purchase."
    )
    position: Annotated[int, Field(ge=1, le=MAX_POSITION)] | None = Field(
        default=None, description="The rank at which the item was shown, from 1."
    )
    request_id: Annotated[str, Field(pattern=rf"^[A-Za-z0-9._-]{{1,{MAX_REQUEST_ID_CHARS}}}$")] | None = Field(
        default=None,
        description="Of the answer that showed the item: an event of some kinds (`IGD_SUCCESS_KINDS`) counts as a "
        "success of that answer's variant, if the answer was to the same user or to nobody in particular.",
    )


class EventsRequest(_Request):
    """Events of one user or of several, in any order; of events of one time, the first was first."""

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
                {
                    "events": [
                        {
                            "user_id": "u-1",
                            "item_id": "172",
                            "timestamp": "2026-01-31T12:05:00Z",
                            "kind": "buy",
                            "value": 12.99,
                            "position": 3,
                            "request_id": "018d5c0a-7f",
                        }
                    ]
                },
            ]
        }
    )

    events: Annotated[list[UserEvent], Field(min_length=1, max_length=MAX_EVENTS)]


class UserRequest(_Request):
    """The user who is meant."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": "u-1"}]})

    user_id: AnyUserId = Field(description="Also one that new events may not have, as `..`.")


class EventsRecorded(_Response):
    """All events are recorded."""

    request_id: str
    accepted: int = Field(description="Events that were new, and that there was room for.")
    duplicates: int = Field(
        description="Events that changed nothing: recorded before, or no later than the oldest of as many as are kept "
        "of a user (`IGD_HISTORY_MAX_EVENTS`)."
    )
    warnings: list[RequestWarning] | None = None
