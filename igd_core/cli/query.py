"""Flags that say how a model is asked for recommendations, the same for one history and for many."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from igd_core.checked_settings import Directory, Flag, Share
from igd_core.cli.engine import EngineFlags
from igd_core.errors import QueryError
from igd_core.limits import Beams, LengthPenalty, Temperature, Wanted
from igd_core.scorers.options import Mixture
from igd_core.search.normalisation import Normalise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.artifact import Artifact
    from igd_core.catalogue.attributes import AttributeIndex
    from igd_core.ids import ItemIndex
    from igd_core.search.query import Query

DEFAULT_K = 10


def _json(value: object) -> object:
    """What a text means as JSON; what a file says stays as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(value)[:64]!r} is not JSON ({error})") from None


class QueryFlags(EngineFlags):
    """The artifact, the model, and how it is asked."""

    artifact: Directory = Field(description="what `igd build` wrote")
    model: Annotated[str, Flag(metavar="DIR")] = Field(description="checkpoint: a directory or a hub id")
    k: Wanted | None = Field(default=None, description="items wanted (default: 10, or as many as can come back)")
    beams: Beams | None = Field(default=None, description="width of the search (default: the artifact's)")
    alpha: Share | None = Field(default=None, description="0..1 (default: the artifact's)")
    normalise: Normalise | None = Field(
        default=None,
        description="what probabilities are normalised over (default: children where gamma is above 0, else what the "
        "model was tuned for)",
    )
    temperature: Temperature | None = Field(
        default=None, description="divides the logits (default: what the model or adapter was tuned for)"
    )
    length_penalty: LengthPenalty = Field(default=0.0, description="0 is the method; 1 is BIGRec's")
    forced_weight: Share = Field(default=1.0, description="what tokens without a sibling count, 0..1")
    gamma: Share | None = Field(
        default=None, description="weight of the artifact's item scorer, 0..1 (default: the artifact's)"
    )
    mixture: Mixture | None = Field(
        default=None, description="how it is mixed with the model (default: the artifact's)"
    )
    filter: Annotated[Any, BeforeValidator(_json), Flag(metavar="JSON")] = Field(
        default={},
        description='conditions on attributes, as {"genres": "Comedy", "year": {"gte": 1990}}: '
        "docs/reference/http-api.md",
    )
    exclude_seen: bool = Field(default=True, description="items of the history do not come back")
    exclude_seen_titles: bool = Field(
        default=True, description="other items that read like one of the history do not come back"
    )

    def query(self, artifact: Artifact, history: Sequence[ItemIndex]) -> tuple[Query, AttributeIndex | None]:
        """The query for a history, and the index of attributes if it has conditions; unknown values are told.

        Raises:
            QueryError: conditions that the catalogue's attributes cannot have.
        """
        from igd_core.catalogue.attributes import AttributeIndex
        from igd_core.catalogue.conditions import conditions_of
        from igd_core.search.query import Query

        index = AttributeIndex(artifact.catalogue.metadata, artifact.catalogue.types) if self.filter else None
        conditions = conditions_of(self.filter, artifact.catalogue.types)
        for unknown in index.unknown_values(conditions) if index else ():
            print(f"warning: filter.{unknown.attribute}: {unknown}", file=sys.stderr)
        query = Query(
            history=history,
            k=DEFAULT_K if self.k is None else self.k,
            beams=self.beams,
            alpha=self.alpha,
            normalise=self.normalise,
            temperature=self.temperature,
            length_penalty=self.length_penalty,
            forced_weight=self.forced_weight,
            gamma=self.gamma,
            mixture=self.mixture,
            exclude_seen=self.exclude_seen,
            exclude_seen_titles=self.exclude_seen_titles,
            attributes=conditions,
        )
        return query, index


def check(query: Query, artifact: Artifact) -> None:
    """Check a query before a model is loaded.

    Raises:
        QueryError: a value out of range, or a gamma or a linear mixture without a scorer; names the field.
    """
    from igd_core.search.query import check_query

    check_query(query, artifact)
    if artifact.scorer is not None:
        return
    lacking = "and the artifact holds no item scorer; `igd build --scorer` makes one"
    if query.gamma:
        raise QueryError("gamma", f"{query.gamma}, {lacking}")
    if query.mixture == "linear" and query.gamma is None:
        raise QueryError("mixture", f"linear, {lacking}")
