"""``GET /v1/items`` and ``GET /v1/items/{item_id}``."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from igd_core.catalogue.items import Catalogue
from igd_core.ids import ItemIndex
from igd_core.search.fairness import Turn
from igd_server.api.problems import (
    DEADLINE_EXCEEDED,
    ENGINE_UNAVAILABLE,
    INTERNAL_ERROR,
    INVALID_FIELD,
    ITEM_NOT_FOUND,
    OVERLOADED,
)
from igd_server.api.schemas_catalogues import CatalogueChoice, Item, ItemPage, ItemSearch
from igd_server.catalogues.deployment import Deployment
from igd_server.http.access import caller_of
from igd_server.http.context import context_of, refusal
from igd_server.http.routes.documented import ACCESS, KEYED, problems
from igd_server.http.routes.strict_routes import StrictRoute
from igd_server.recommend.admission import Admission

_SEARCHES_AT_ONCE = 2  # leave cores to the model
_MOST_WAITING = 64


def items_router(deployment: Deployment, *, timeout_s: float) -> APIRouter:
    """Both routes. Searches wait for their turn, at most ``timeout_s``; callers take turns."""
    router = APIRouter(tags=["items"], route_class=StrictRoute, dependencies=KEYED)
    # No metrics: those of admission are the model's, by which servers are scaled.
    searching = Admission(_SEARCHES_AT_ONCE, _MOST_WAITING)

    @router.get(
        "/v1/items",
        summary="Find items by title",
        response_model_exclude_none=True,
        responses=problems(INVALID_FIELD, *ACCESS, INTERNAL_ERROR, ENGINE_UNAVAILABLE, OVERLOADED, DEADLINE_EXCEEDED),
    )
    async def find_items(search: Annotated[ItemSearch, Query()], request: Request) -> ItemPage:
        served = deployment.served(search.catalogue)
        # One more than asked for shows whether there is a next page.
        async with searching.slot(timeout_s, Turn(callers=(caller_of(request.scope),))):
            found = await asyncio.to_thread(
                served.titles.find, search.query, limit=search.limit + 1, offset=search.offset
            )
        return ItemPage(
            request_id=context_of(request.scope).request_id,
            items=[_item(served.catalogue, row) for row in found[: search.limit]],
            next_offset=search.offset + search.limit if len(found) > search.limit else None,
        )

    # A path parameter that may contain slashes: an item id may.
    @router.get(
        "/v1/items/{item_id:path}",
        summary="One item",
        response_model=Item,
        responses=problems(ITEM_NOT_FOUND, INVALID_FIELD, *ACCESS, INTERNAL_ERROR, ENGINE_UNAVAILABLE),
    )
    async def read_item(
        item_id: Annotated[str, Path(examples=["50"])], request: Request, catalogue: CatalogueChoice | None = None
    ) -> Item | Response:
        served = deployment.served(catalogue)
        row = served.catalogue.index_of(item_id)
        if row is None:
            return refusal(request.scope, ITEM_NOT_FOUND, f"no item {item_id[:64]!r}", field="item_id")
        return _item(served.catalogue, row)

    return router


def _item(catalogue: Catalogue, row: ItemIndex) -> Item:
    attributes = {name: column[row] for name, column in catalogue.metadata.items()}
    return Item(
        item_id=catalogue.item_ids[row],
        title=catalogue.titles[row],
        interactions=int(catalogue.frequency[row]),
        attributes={name: list(value) if isinstance(value, tuple) else value for name, value in attributes.items()},
    )
