"""A Python client of the server's HTTP API; needs httpx (extra ``client``, and part of ``server``)."""

from igd_core.client.answers import (
    Event,
    Forgotten,
    Impression,
    Item,
    Known,
    KnownEvent,
    Recommended,
    Recorded,
    Token,
    Warned,
)
from igd_core.client.calls import RecommendationClient

__all__ = [
    "Event",
    "Forgotten",
    "Impression",
    "Item",
    "Known",
    "KnownEvent",
    "RecommendationClient",
    "Recommended",
    "Recorded",
    "Token",
    "Warned",
]
