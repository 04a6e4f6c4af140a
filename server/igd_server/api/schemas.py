"""Requests and responses: every field with its bounds. Unknown fields are refused, and ``true`` is not 1."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, SkipValidation
from typing_extensions import TypedDict

from igd_core.catalogue.conditions import MAX_FILTER_CHARS, MAX_FILTER_COLUMNS, MAX_FILTER_VALUES, shape_error
from igd_core.ids import MAX_ITEM_ID_CHARS
from igd_core.limits import Beams, LengthPenalty, Temperature, Wanted
from igd_core.scorers.options import Mixture
from igd_core.search.normalisation import Normalise
from igd_core.store.events import MAX_USER_ID_CHARS
from igd_server.api.user_ids import user_id_of

MAX_HISTORY = 100_000
MAX_LIST = 100_000
MAX_BATCH = 256
MAX_TIMEOUT_MS = 600_000
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]+$"

AnswerSource: TypeAlias = Literal["model", "popularity", "precomputed"]
WarningCode: TypeAlias = Literal[
    "unknown-items",
    "unknown-values",
    "deadline-exceeded",
    "engine-unavailable",
    "history-unavailable",
    "history-shortened",
    "model-untuned",
    "scorer-unavailable",
]
ItemId = Annotated[str, Field(min_length=1, max_length=MAX_ITEM_ID_CHARS)]
AnyUserId = Annotated[str, Field(min_length=1, max_length=MAX_USER_ID_CHARS, pattern=PRINTABLE)]
UserId = Annotated[AnyUserId, AfterValidator(user_id_of)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True)


FilterText = Annotated[str, Field(max_length=MAX_FILTER_CHARS)]
FilterValue: TypeAlias = FilterText | int | float | bool
FilterList = Annotated[list[FilterValue], Field(min_length=1, max_length=MAX_FILTER_VALUES)]


class FilterOperators(TypedDict, total=False):
    """What an item's values of one attribute must be; all operators named must hold, and one at least is named.

    Values are of the attribute's type: dates are ISO 8601 text, `2001-05-17`, times too, with a zone. A range on a list
    holds when one value of the item lies inside it.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, json_schema_extra={"minProperties": 1})  # type: ignore[misc]

    any_of: Annotated[FilterList, Field(description="The item has one of these.")]
    none_of: Annotated[FilterList, Field(description="The item has none of these; it may have no value at all.")]
    gte: Annotated[FilterValue, Field(description="A value of the item is this or greater.")]
    gt: Annotated[FilterValue, Field(description="A value of the item is greater than this.")]
    lte: Annotated[FilterValue, Field(description="A value of the item is this or less.")]
    lt: Annotated[FilterValue, Field(description="A value of the item is less than this.")]
    exists: Annotated[bool, Field(description="Whether the item has a value; an empty list is none.")]


def _well_formed(asked: object) -> object:
    """Check the shape of a filter; its values are checked against the catalogue later."""
    error = shape_error(asked)
    if error is not None:
        raise ValueError(error)
    return asked


FilterPart = Annotated[
    Any, PlainValidator(_well_formed, json_schema_input_type=FilterValue | FilterList | FilterOperators)
]


class RecommendationRequest(_Request):
    """A history, and how to rank what may follow it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"history": ["50", "172", "181"], "k": 5},
                {"history": ["50"], "k": 3, "filter": {"genres": ["Comedy", "Drama"]}, "alpha": 0.2, "explain": True},
                {"history": ["50"], "filter": {"genres": {"none_of": ["Horror"], "exists": True}}},
                {"user_id": "u-1", "k": 5},
            ]
        }
    )

    user_id: UserId | None = Field(
        default=None,
        description="Whose stored history to use where the request has no `history`; it also draws the variant.",
    )
    history: Annotated[list[ItemId], Field(max_length=MAX_HISTORY)] = Field(
        default=[],
        description="Item ids, oldest first. Unknown ones are skipped and counted in `warnings`; with none "
        "left, popularity answers. The server's own bound may be lower.",
    )
    catalogue: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="One of `/v1/catalogues`; the variant's or the server's default when absent."
    )
    variant: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="Answer as this variant does, whoever the user is; for tests."
    )
    k: Wanted = Field(default=10, description="Items wanted; at most as many as the catalogue has.")
    exclude_seen: bool = Field(default=True, description="Leave out the items of `history`.")
    exclude_seen_titles: bool | None = Field(
        default=None,
        description="With `exclude_seen`, leave out also other items that have the title of one of `history`, or are "
        "spelled like it for the model; the server's setting when absent, which is true unless it was changed.",
    )
    exclude: Annotated[list[ItemId], Field(max_length=MAX_LIST)] = Field(
        default=[], description="Item ids to leave out."
    )
    allow: Annotated[list[ItemId], Field(max_length=MAX_LIST)] | None = Field(
        default=None, description="The only item ids that may come back; an empty list allows nothing."
    )
    filter: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=128)], FilterPart], Field(max_length=MAX_FILTER_COLUMNS)
    ] = Field(
        default={},
        description="Attribute to a value, a list of values of which an item has one, or operators; all must hold. "
        "`/v1/catalogues` names the attributes and their types: a value of another type is refused, and one that no "
        "item has is named in `warnings`.",
    )
    alpha: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Rebalancing towards decisive tokens; the catalogue's own when absent."
    )
    beams: Beams | None = Field(
        default=None,
        description="Width of the search, raised to `k` where smaller; the catalogue's own when absent.",
    )
    normalise: Normalise | None = Field(
        default=None,
        description="What probabilities are normalised over: the whole `vocabulary`, or the `children` of each node of "
        "the catalogue's tree, so that they sum to 1 over its titles. When absent, what the variant or the server "
        "says; else `children` where an item scorer is mixed in and `forced_weight` is 1, and what the model was "
        "tuned for where none is.",
    )
    temperature: Temperature | None = Field(
        default=None,
        description="Divides the logits; what the model was tuned for when absent, which is 1 unless its files say "
        "otherwise.",
    )
    length_penalty: LengthPenalty = Field(
        default=0.0, description="0 ranks by summed log-probability, 1 by its mean over all tokens, forced ones too."
    )
    forced_weight: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="What tokens count that the catalogue leaves no choice about: 1 or the variant's when absent; 0 "
        "ranks titles by their decisions alone. Normalised over `children` they count nothing, whatever this is.",
    )
    gamma: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="Weight of the catalogue's item scorer in the search, 0 for the model alone. Above 0 it is "
        "refused where the catalogue's version holds no scorer. When absent it is the variant's or the catalogue's "
        "own, which may depend on the length of the history; the answer says what it was.",
    )
    mixture: Mixture | None = Field(
        default=None,
        description="How the scorer is mixed with the model: `log-linear`, a weighted sum of log-probabilities, or "
        "`linear`, of probabilities, which are then normalised over `children`. The variant's or the catalogue's own "
        "when absent.",
    )
    explain: bool = Field(default=False, description="Return every token's log-probability, gain and weight.")
    timeout_ms: Annotated[int, Field(ge=1, le=MAX_TIMEOUT_MS)] | None = Field(
        default=None, description="Deadline; the server has a default and a maximum."
    )
    strict: bool = Field(
        default=False,
        description="Refuse unknown item ids, and values in `filter` that no item has, with 422 instead of a warning; "
        "unknown items of a stored history are skipped.",
    )
    fallback: bool = Field(
        default=True,
        description="Answer with popularity when the deadline passes, the engine fails or the stored history cannot "
        "be read; else 504 or 503. Where the server has precomputed lists, the user's comes before popularity.",
    )


class BatchRequest(_Request):
    """Several requests, answered together."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"requests": [{"history": ["50", "172"], "k": 5}, {"user_id": "u-1", "k": 5}]}]}
    )

    # The route checks them one by one, so that a wrong request does not fail the others.
    requests: Annotated[list[SkipValidation[RecommendationRequest]], Field(min_length=1, max_length=MAX_BATCH)]


class ExplainedToken(_Response):
    """One token of an item's path."""

    token: str = Field(
        description="What it reads as: the tokens of an item join to the text that spells it. Of tokens that share a "
        "character the last one has it, and the others are empty."
    )
    token_id: int
    logprob: float | None = Field(
        default=None,
        description="Nats, unweighted, normalised as the request asks; absent where it counts nothing and was not "
        "computed.",
    )
    information_gain: float = Field(description="Nats by which the token narrows the catalogue down.")
    weight: float = Field(
        description="What the log-probability was multiplied with: 1 - alpha * g, or forced_weight if forced; times "
        "1 - gamma in a log-linear mixture."
    )
    forced: bool = Field(description="Whether the catalogue left no other token here.")
    prior_logprob: float | None = Field(
        default=None,
        description="With gamma above 0: the item scorer's log-probability of this token among its siblings, nats, of "
        "which gamma times goes into the score of a log-linear mixture.",
    )
    score: float | None = Field(
        default=None,
        description="With gamma above 0: what the token adds to the item's score, nats; with a length penalty divided, "
        "as that is, by the number of tokens to that power.",
    )


class RecommendedItem(_Response):
    """A ranked item."""

    item_id: str
    title: str
    rank: int = Field(description="From 1.")
    score: float = Field(description="Weighted log-probability in nats; for popularity, the share of interactions.")
    probability: float | None = Field(
        default=None,
        description="Of this title, by the model alone: before `alpha`, and whatever is left out. Over all titles of "
        "the catalogue it sums to 1; a title has one, whoever of its `duplicates` stands first. Only where scores are "
        "normalised over `children`.",
    )
    duplicates: list[str] | None = Field(default=None, description="Other item ids that read the same.")
    explanation: list[ExplainedToken] | None = Field(default=None, description="With `explain`, from the model.")


class RequestWarning(_Response):
    """Something that was passed over, or why the model did not answer."""

    code: WarningCode
    detail: str
    field: str | None = Field(default=None, description="The request's field it is about.")
    count: int | None = Field(default=None, description="How many values it is about.")
    sample: list[str] | None = Field(default=None, description="The first few of them.")


class Timings(_Response):
    """What the answer cost."""

    total_ms: float
    queue_ms: float = Field(description="Waiting for a place in the model, and in it for others' turns.")
    model_ms: float = Field(description="In the model.")
    rounds: int = Field(description="Calls of the model.")
    prompt_tokens: int
    cached_tokens: int = Field(description="Prompt tokens taken from an earlier prompt's cache.")
    model_tokens: int = Field(description="Tokens that went through the model.")


class PrecomputedOf(_Response):
    """When and with what a precomputed list was made."""

    made_at: str = Field(description="ISO 8601, in UTC.")
    age_s: float = Field(description="Seconds since then.")
    version: str = Field(description="Of the catalogue, as it was then.")
    model_fingerprint: str = Field(description="Of the model that ranked it.")


class RecommendationResponse(_Response):
    """Ranked items and who ranked them."""

    request_id: str
    catalogue: str
    version: str
    model: str
    model_fingerprint: str | None = Field(
        default=None,
        description="Of the model's content: weights, adapter, tokenizer, data type, precision and engine. `model` is "
        "a name, and may mean another model tomorrow; equal fingerprints mean equal models. Absent where the "
        "variant's adapter is.",
    )
    precision: str | None = Field(
        default=None,
        description="Of the model's products on a CPU: `fp32` or `bf16`. Absent where the data type says it all.",
    )
    variant: str | None = Field(default=None, description="Absent where the server has none.")
    source: AnswerSource = Field(
        description="Who ranked: the `model`; `popularity`; or the model at an earlier time, `precomputed`."
    )
    precomputed: PrecomputedOf | None = Field(default=None, description="Where `source` is `precomputed`.")
    normalise: Normalise | None = Field(
        default=None,
        description="Over what the model's probabilities in `score` were normalised. Absent where popularity or "
        "precomputed lists answer.",
    )
    gamma: float | None = Field(
        default=None,
        description="Weight that the catalogue's item scorer had: the request's, the variant's or the catalogue's own, "
        "which may depend on how many interactions the history has. Absent where the version holds no scorer, and "
        "where popularity or precomputed lists answer.",
    )
    mixture: Mixture | None = Field(default=None, description="How it was mixed with the model; with gamma above 0.")
    cached: bool = Field(
        description="Computed for an earlier request, or for another at the same time, that asked the same; "
        "`timings` are this request's own."
    )
    warnings: list[RequestWarning] | None = None
    timings: Timings
    items: list[RecommendedItem]


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


class Health(_Response):
    """The process answers."""

    status: Literal["ok", "started", "ready"]
    detail: str | None = Field(default=None, description="What is published and refused, though another is served.")
