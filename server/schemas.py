"""What goes over the wire: every field with its bounds. Unknown fields are refused, and ``true`` is no 1."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, SkipValidation

from igd_core.attributes import AttributeValue
from igd_core.catalogue import MAX_ITEM_ID_CHARS
from igd_core.recommender import MAX_BEAMS, MAX_K, MAX_LENGTH_PENALTY, MAX_TEMPERATURE

MAX_HISTORY = 100_000
MAX_LIST = 100_000
MAX_BATCH = 256
MAX_TIMEOUT_MS = 600_000
MAX_FILTER_COLUMNS = 16
MAX_FILTER_VALUES = 100

Source: TypeAlias = Literal["model", "popularity"]
ItemId = Annotated[str, Field(min_length=1, max_length=MAX_ITEM_ID_CHARS)]


def _attribute_values(value: object) -> list[AttributeValue]:
    """One value is a list of one."""
    values = value if isinstance(value, list) else [value]
    if not 1 <= len(values) <= MAX_FILTER_VALUES:
        raise ValueError(f"{len(values)} values; 1 to {MAX_FILTER_VALUES} are taken")
    taken: list[AttributeValue] = [
        single
        for single in values
        if isinstance(single, (str, int)) or (isinstance(single, float) and math.isfinite(single))
    ]
    if len(taken) < len(values):
        raise ValueError("expected text, a number, a boolean, or a list of these")
    return taken


FilterValues = Annotated[
    list[AttributeValue],
    PlainValidator(_attribute_values, json_schema_input_type=AttributeValue | list[AttributeValue]),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True)


class RecommendationRequest(_Request):
    """A history, and how to rank what may follow it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"history": ["50", "172", "181"], "k": 5},
                {"history": ["50"], "k": 3, "filter": {"genres": ["Comedy", "Drama"]}, "alpha": 0.2, "explain": True},
            ]
        }
    )

    history: Annotated[list[ItemId], Field(max_length=MAX_HISTORY)] = Field(
        default=[],
        description="Item ids, oldest first. Unknown ones are skipped and counted in `warnings`; with none "
        "left, popularity answers. The server's own bound may be lower.",
    )
    k: Annotated[int, Field(ge=1, le=MAX_K)] = Field(
        default=10, description="Items wanted; at most as many as the catalogue has."
    )
    exclude_seen: bool = Field(default=True, description="Leave out the items of `history`.")
    exclude: Annotated[list[ItemId], Field(max_length=MAX_LIST)] = Field(
        default=[], description="Item ids to leave out."
    )
    allow: Annotated[list[ItemId], Field(max_length=MAX_LIST)] | None = Field(
        default=None, description="The only item ids that may come back; an empty list allows nothing."
    )
    filter: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=128)], FilterValues], Field(max_length=MAX_FILTER_COLUMNS)
    ] = Field(default={}, description="Attribute to a value or a list of values; an item has one of them in each.")
    alpha: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Rebalancing towards decisive tokens; the catalogue's own when absent."
    )
    beams: Annotated[int, Field(ge=1, le=MAX_BEAMS)] = Field(
        default=10, description="Width of the search; raised to `k` where smaller."
    )
    temperature: Annotated[float, Field(ge=0.01, le=MAX_TEMPERATURE)] = Field(
        default=1.0, description="Divides the logits."
    )
    length_penalty: Annotated[float, Field(ge=0, le=MAX_LENGTH_PENALTY)] = Field(
        default=0.0, description="0 ranks by summed log-probability, 1 by its mean over tokens."
    )
    explain: bool = Field(default=False, description="Return every token's log-probability, gain and weight.")
    timeout_ms: Annotated[int, Field(ge=1, le=MAX_TIMEOUT_MS)] | None = Field(
        default=None, description="Deadline; the server has a default and a maximum."
    )
    strict: bool = Field(default=False, description="Refuse unknown item ids with 422 instead of skipping them.")
    fallback: bool = Field(
        default=True,
        description="Answer with popularity when the deadline passes or the engine fails; else 504 or 503.",
    )


class BatchRequest(_Request):
    """Several requests, answered together."""

    # Checked one by one in the route, so that one bad request does not fail the others.
    requests: Annotated[list[SkipValidation[RecommendationRequest]], Field(min_length=1, max_length=MAX_BATCH)]


class ItemSearch(BaseModel):
    """Query parameters of the title search."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: Annotated[str, Field(max_length=200)] = Field(
        default="", description="Part of a title; case and accents do not count. Empty lists the most popular items."
    )
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    offset: Annotated[int, Field(ge=0, le=1000)] = 0


class ExplainedToken(_Response):
    """One token of an item's path."""

    token: str = Field(description="What it reads as; a part of a character reads as U+FFFD.")
    token_id: int
    logprob: float = Field(description="Nats, over the whole vocabulary, unweighted.")
    information_gain: float = Field(description="Nats by which the token narrows the catalogue down.")
    weight: float = Field(description="What the log-probability was multiplied with: 1 - alpha * g.")
    forced: bool = Field(description="Whether the catalogue left no other token here.")


class RecommendedItem(_Response):
    """A ranked item."""

    item_id: str
    title: str
    rank: int = Field(description="From 1.")
    score: float = Field(description="Weighted log-probability in nats; for popularity, the share of interactions.")
    duplicates: list[str] | None = Field(default=None, description="Other item ids that read the same.")
    explanation: list[ExplainedToken] | None = Field(default=None, description="With `explain`, from the model.")


class RequestWarning(_Response):
    """Something that was passed over, or why the model did not answer."""

    code: Literal["unknown-items", "deadline-exceeded", "engine-unavailable"]
    detail: str
    field: str | None = Field(default=None, description="The request's field it is about.")
    count: int | None = Field(default=None, description="How many values it is about.")
    sample: list[str] | None = Field(default=None, description="The first few of them.")


class Timings(_Response):
    """What the answer cost."""

    total_ms: float
    queue_ms: float = Field(description="Waiting for the model.")
    model_ms: float = Field(description="In the model.")
    rounds: int = Field(description="Calls of the model.")
    prompt_tokens: int
    cached_tokens: int = Field(description="Prompt tokens taken from an earlier prompt's cache.")
    model_tokens: int = Field(description="Tokens that went through the model.")


class RecommendationResponse(_Response):
    """Ranked items and who ranked them."""

    request_id: str
    catalogue: str
    version: str
    model: str
    source: Source
    items: list[RecommendedItem]
    warnings: list[RequestWarning] | None = None
    timings: Timings


class Problem(_Response):
    """RFC 9457 problem document."""

    type: str = Field(examples=["urn:igd:problem:invalid-field"])
    title: str
    status: int
    detail: str
    field: str | None = Field(default=None, description="The offending field.", examples=["history[3]"])
    request_id: str


class BatchResult(_Response):
    """Answer to one request of a batch: a recommendation when `status` is 200, else a problem."""

    status: int
    recommendation: RecommendationResponse | None = None
    problem: Problem | None = None


class BatchResponse(_Response):
    """Answers, in the order of the requests."""

    request_id: str
    results: list[BatchResult]


class Item(_Response):
    """An item of the catalogue."""

    item_id: str
    title: str
    interactions: int = Field(description="In the training data.")
    attributes: dict[str, str | int | float | bool | list[str] | None]


class ItemPage(_Response):
    """Items found, the most popular first; titles with a word that begins so come before those with it inside one."""

    request_id: str
    items: list[Item]
    next_offset: int | None = Field(default=None, description="Absent on the last page.")


class CatalogueInfo(_Response):
    """A catalogue being served."""

    name: str
    version: str
    model: str
    loaded_at: datetime
    items: int
    titles: int = Field(description="Distinct token paths.")
    cold_items: int = Field(description="Items without an interaction.")
    entropy_nats: float = Field(description="Of the prior over titles.")
    alpha: float = Field(description="Used when a request names none.")
    max_history: int = Field(description="Most items of a history that the model is shown.")
    attributes: list[str] = Field(description="What `filter` can name.")


class CatalogueList(_Response):
    """Catalogues being served; none while the server starts."""

    request_id: str
    catalogues: list[CatalogueInfo]


class Health(_Response):
    """The process answers."""

    status: Literal["ok", "ready"]
