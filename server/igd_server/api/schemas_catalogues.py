"""Requests and responses on catalogues and their items."""

from datetime import datetime
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from igd_core.catalogue.attribute_types import BASE_TYPES, AttributeType, BaseType
from igd_core.scorers.options import Mixture
from igd_core.scorers.record import ScorerRecord
from igd_server.api.schemas import _Request, _Response

AttributeKind: TypeAlias = Literal["text", "number", "boolean", "list"]
_KINDS: dict[BaseType, AttributeKind] = {"integer": "number", "number": "number", "boolean": "boolean"}

CatalogueChoice = Annotated[str, Field(max_length=64, description="Which catalogue; the server's default when absent.")]


VersionRefusalReason: TypeAlias = Literal[
    "missing",
    "damaged",
    "format",
    "tokenizer",
    "vocabulary",
    "model",
    "engine",
    "unforeseen",
    "attempt-died",
    "canary",
    "faults",
]
"""Not stored; altered, truncated or inconsistent; of another format or release; made for another tokenizer or a larger
vocabulary than the model's; the published model that it names cannot be loaded, or not on this server; the engine
failed on it; a mistake of ours; an attempt to serve it here ended with the
process; the server that tried it first refused it or ended; its first answers failed."""


class ItemSearch(BaseModel):
    """Query parameters of the title search."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: Annotated[str, Field(max_length=200)] = Field(
        default="",
        description="Part of a title; case, accents and punctuation do not count, nor signs such as emoji beside "
        "words. Empty lists the most popular items.",
    )
    catalogue: CatalogueChoice | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    offset: Annotated[int, Field(ge=0, le=1000)] = 0


class Item(_Response):
    """An item of the catalogue."""

    item_id: str
    title: str
    interactions: int = Field(description="In the training data.")
    attributes: dict[str, str | int | float | bool | list[str | int | float | bool] | None]


class ItemPage(_Response):
    """Items found, the most popular first; titles with a word that begins with the query come before the others."""

    request_id: str
    items: list[Item]
    next_offset: int | None = Field(default=None, description="Absent on the last page.")


class Attribute(_Response):
    """An attribute that `filter` can name."""

    name: str
    kind: AttributeKind = Field(description="Coarser than `type`; `list`: each item has any number of values.")
    type: str = Field(
        description=f"What `filter` compares with: {', '.join(BASE_TYPES)}, or `list-of-` one of these. Dates and "
        "times are ISO 8601 text.",
        examples=["integer", "list-of-text"],
    )

    @staticmethod
    def of(name: str, kind: AttributeType) -> "Attribute":
        """The description of an attribute of this type."""
        coarse = _KINDS.get(kind.base, "text")
        return Attribute(name=name, kind="list" if kind.is_list else coarse, type=kind.name)


class ScorerInfo(_Response):
    """The item scorer of a catalogue's version, which requests mix in with `gamma`."""

    kind: str = Field(description="What it knows of items; several kinds with `+` between.", examples=["transitions"])
    gamma: float | list[tuple[int, float]] = Field(
        description="Used when neither request nor variant names one: a number, or `[[0, 0.8], [5, 0.5]]` for "
        "histories of 0 and of 5 interactions on."
    )
    mixture: Mixture = Field(description="Used when neither request nor variant names one.")

    @staticmethod
    def of(record: ScorerRecord) -> "ScorerInfo":
        """What the manifest says of it."""
        gamma = list(record.gamma) if isinstance(record.gamma, tuple) else record.gamma
        return ScorerInfo(kind=record.name, gamma=gamma, mixture=record.mixture)


class RefusedVersion(_Response):
    """A version that cannot be served; another version stays."""

    version: str
    reason: VersionRefusalReason
    detail: str
    refused_at: datetime


class CatalogueInfo(_Response):
    """A catalogue being served."""

    name: str
    version: str
    published: str | None = Field(default=None, description="The version that the store's pointer names, if known.")
    trouble: str | None = Field(default=None, description="Why the pointer cannot be followed now.")
    waiting: str | None = Field(default=None, description="What the version published waits for.")
    on_trial: bool = Field(default=False, description="The version served has not passed its trial yet.")
    refusals: list[RefusedVersion] = Field(description="Versions that could not be served, latest first.")
    model: str
    model_fingerprint: str = Field(description="Of the model's content, as in answers.")
    published_model: str | None = Field(
        default=None,
        description="Version of the published model that it is served with; absent: the server's own model.",
    )
    adapters: dict[str, str] = Field(description="Fingerprint of the model under each of its adapters, by name.")
    loaded_at: datetime
    items: int
    titles: int = Field(description="Distinct token paths.")
    cold_items: int = Field(description="Items without an interaction.")
    entropy_nats: float = Field(description="Of the prior over titles.")
    alpha: float = Field(description="Used when a request names none.")
    beams: int = Field(description="Width of the search when a request names none.")
    max_history: int = Field(description="Most items of a history that the model is shown.")
    scorer: ScorerInfo | None = Field(default=None, description="Absent where the version holds no item scorer.")
    attributes: list[Attribute]


class UnservedCatalogue(_Response):
    """A catalogue of which no version is served now."""

    name: str
    published: str | None = Field(default=None, description="The version that the store's pointer names, if known.")
    trouble: str | None = Field(default=None, description="Why the pointer cannot be followed now.")
    waiting: str | None = Field(default=None, description="What the version published waits for.")
    refusals: list[RefusedVersion] = Field(description="Versions that could not be served, latest first.")


class VariantInfo(_Response):
    """A variant that requests can name."""

    name: str
    weight: float = Field(description="Share of users, relative to the other variants'.")
    catalogue: str | None = Field(
        default=None, description="That it names; the request's or the default one if absent."
    )


class CatalogueList(_Response):
    """Catalogues of this server, the default one first."""

    request_id: str
    catalogues: list[CatalogueInfo] = Field(description="Being served; none while the server starts.")
    unserved: list[UnservedCatalogue] = Field(description="Following the store, with nothing to serve.")
    variants: list[VariantInfo] | None = Field(default=None, description="Absent where the server has none.")


class VariantClicks(VariantInfo):
    """What became of a variant's answers."""

    adapter: str | None = Field(default=None, description="The engine's LoRA adapter that it names.")
    answers: int = Field(description="Given by this process.")
    followed: int = Field(description="Answers that a success followed, as this process was told.")


class CacheCounts(_Response):
    """Where answers of the model were found, as `igd_result_lookups_total` counts them."""

    local: int = Field(description="In this process.")
    store: int = Field(description="In the store.")
    joined: int = Field(description="Being computed for another request at that moment.")
    miss: int = Field(description="Nowhere: the model computed them.")


class LogEvent(_Response):
    """An event of this process's log, or the same one several times in a row."""

    at: datetime = Field(description="When it came, the last time.")
    level: str
    event: str = Field(description="Its name, as in the reference of log events.")
    detail: str = Field(description="Its fields in one line, cut to 300 characters.")
    times: int


class Overview(CatalogueList):
    """What operators look at: what is served and refused, and what became of the answers."""

    following: list[str] = Field(
        description="Catalogues that follow the store: roll-back, reload and allow are theirs."
    )
    since: datetime = Field(description="Answers are counted from then on, when this process began.")
    clicks: list[VariantClicks] = Field(description="Of each variant; of all answers, with an empty name, without any.")
    cache: CacheCounts = Field(description="Since then.")
    events: list[LogEvent] = Field(
        description="The last 30 of this process's log, the latest first; those of single requests are left out."
    )


class RollbackRequest(_Request):
    """The version that a catalogue's pointer is to move to."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"version": "0123456789abcdef"}]})

    version: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = Field(
        default=None,
        description="When absent, the version that the pointer named before; one that a server did not come "
        "back from is passed by, unless it is named.",
    )


class PassedBy(_Response):
    """A version that a roll-back skipped."""

    version: str
    detail: str = Field(description="Why servers do not take it. Allow it, then name it, to go there.")


class PointerMoved(_Response):
    """The store's pointer has moved; every server of this catalogue follows it."""

    request_id: str
    catalogue: str
    version: str
    before: str | None = Field(default=None, description="The version that the pointer named.")
    passed_by: list[PassedBy] | None = Field(
        default=None, description="Versions that were current since `version`, and that a server died of."
    )
    not_taken: str | None = Field(
        default=None, description="Why servers do not take `version` and stay where they are, until it is allowed."
    )


class AllowRequest(_Request):
    """The version that servers may try again."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": "0123456789abcdef"}]})

    version: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class VersionAllowed(_Response):
    """Every server of this catalogue may try the version again."""

    request_id: str
    catalogue: str
    version: str


class ReloadRequest(_Request):
    """A request without fields."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}]})


class ReloadBegun(_Response):
    """The server reads the pointer now, and tries refused versions again."""

    request_id: str
    catalogue: str
