"""Responses on what is known of a user."""

from __future__ import annotations

from pydantic import Field

from igd_server.api.schemas import AnswerSource, _Response


class KnownEvent(_Response):
    """An event on record."""

    event_id: str
    item_id: str
    timestamp: str = Field(description="When it happened: ISO 8601, in UTC.")
    kind: str
    history: bool = Field(description="Whether it is in the list that the user's history is made of.")
    value: float | None = None
    position: int | None = None
    request_id: str | None = None


class ShownItem(_Response):
    """An item of an answer on record."""

    item_id: str
    score: float


class KnownImpression(_Response):
    """An answer on record: what was shown to the user."""

    request_id: str
    timestamp: str = Field(description="When it was given: ISO 8601, in UTC.")
    catalogue: str
    version: str
    variant: str | None = None
    source: AnswerSource
    items: list[ShownItem] = Field(description="In the order of their ranks.")


class UserKnown(_Response):
    """Everything that is stored of a user."""

    request_id: str
    user_id: str
    events: list[KnownEvent] = Field(
        description="Oldest first; of one time, those of the history and then the others, each as they were accepted."
    )
    impressions: list[KnownImpression] = Field(description="Oldest first; empty unless the server keeps them.")
    precomputed: int = Field(description="Lists that were made for the user in advance.")
    answers: int = Field(
        description="Answers cached for the user, and notes by which events are matched with answers: both under keys "
        "that do not say whose they are. Those included that have ended lately."
    )


class Forgotten(_Response):
    """How much was deleted."""

    events: int
    impressions: int = Field(description="Answers on record.")
    answers: int = Field(description="Cached answers, and notes of answers.")
    precomputed: int = Field(description="Lists made in advance.")


class UserForgotten(_Response):
    """Nothing is stored of the user any more."""

    request_id: str
    forgotten: Forgotten
