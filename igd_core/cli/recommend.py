"""`igd recommend`: one history, ranked items, and every number behind them."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from igd_core.checked_settings import Flag
from igd_core.cli.flags import add_flags, read
from igd_core.cli.query import QueryFlags, check
from igd_core.errors import QueryError
from igd_core.search.normalisation import Normalisation

if TYPE_CHECKING:
    import argparse

    from igd_core.artifact import Artifact
    from igd_core.catalogue.attributes import AttributeIndex
    from igd_core.engines.open import OpenEngine
    from igd_core.ids import ItemIndex
    from igd_core.search.query import Query
    from igd_core.search.recommender import RankedItem, Recommendation

_ADAPTER = "adapter"


class RecommendFlags(QueryFlags):
    """What `igd recommend` is asked."""

    history: Annotated[str, Flag(metavar="ID,ID,...")] = Field(default="", description="oldest first")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd recommend`."""
    parser = subparsers.add_parser("recommend", help="recommend for one history")
    add_flags(parser, RecommendFlags)
    parser.add_argument(
        "--json", action="store_true", help="prompt token ids, items, and every token's log-probability"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, recommend once, print."""
    from igd_core.artifact import load_artifact
    from igd_core.engines.open import open_engine
    from igd_core.engines.tuned_prompt import why_untuned

    asked = read(args, RecommendFlags)
    artifact = load_artifact(asked.artifact)
    query, index = asked.query(artifact, parse_history(asked.history, artifact))
    if asked.k is None:
        query = _as_many_as_can_come_back(query, artifact, index)
    check(query, artifact)  # before the model is loaded: bad input answers at once
    options = asked.engine_options()
    if asked.adapter is not None:
        options = replace(options, adapters={_ADAPTER: asked.adapter})
    opened = open_engine(options)
    adapter = None if asked.adapter is None else _ADAPTER
    answer = asyncio.run(_recommend(artifact, opened, query, adapter))
    untuned = why_untuned(opened.tuned.get(adapter), artifact) if answer.source == "model" else None
    if untuned is not None:
        print(f"warning: {untuned}; its ranking says little", file=sys.stderr)
    asked_for = query.normalise or query.temperature or not answer.query.gamma  # else the mixture settles it
    if answer.source == "model" and asked_for and (other := _scored_otherwise(answer, opened, adapter)) is not None:
        print(f"note: {other}", file=sys.stderr)
    if args.json:
        print(json.dumps(to_json(answer, artifact, opened, adapter=adapter) | {"untuned": untuned}))
        return 0
    for warning in _warnings(answer, opened):
        print(f"warning: {warning['detail']}", file=sys.stderr)
    for rank, found in enumerate(answer.items, start=1):
        probability = "" if found.probability is None else f"{found.probability:>9.4%}  "
        print(f"{rank:>3}  {found.score:>9.4f}  {probability}{artifact.catalogue.titles[found.item]}")
    return 0


def _scored_otherwise(answer: Recommendation, opened: OpenEngine, adapter: str | None) -> str | None:
    """How the model was asked otherwise than it was tuned; None where it was not, or where nothing tells."""
    tuned = opened.tuned.get(adapter)
    asked = Normalisation(normalise=answer.query.normalise, temperature=answer.query.temperature)
    if tuned is None or asked == tuned.scored:
        return None
    return f"scores are normalised over {asked}; the model was tuned for {tuned.scored}"


def _as_many_as_can_come_back(query: Query, artifact: Artifact, index: AttributeIndex | None) -> Query:
    """The query with a ``k`` of 10, or of what it admits where that is less, which is said; 1 where that is nothing."""
    from igd_core.search.recommender import admitted

    count = admitted(query, artifact, index)
    if count >= query.k:
        return query
    if not count:
        print("note: no item can come back: the filter and the history leave none", file=sys.stderr)
        return replace(query, k=1)
    items = "1 item" if count == 1 else f"{count} items"
    print(f"note: {items} can come back, so --k is {count} instead of {query.k}", file=sys.stderr)
    return replace(query, k=count)


def parse_history(text: str, artifact: Artifact) -> list[ItemIndex]:
    """Item rows of comma-separated ids.

    Raises:
        QueryError: an id that the catalogue does not have.
    """
    rows = []
    for item_id in filter(None, (part.strip() for part in text.split(","))):
        row = artifact.catalogue.index_of(item_id)
        if row is None:
            raise QueryError("history", f"item {item_id!r} is not in catalogue {artifact.manifest.name!r}")
        rows.append(row)
    return rows


def to_json(
    answer: Recommendation, artifact: Artifact, opened: OpenEngine, *, adapter: str | None = None
) -> dict[str, Any]:
    """Everything an outsider needs to compute the scores again; ``adapter`` is the one it was ranked with."""
    return {
        "version": answer.query.version,
        "model": opened.engine.model_id,
        "model_fingerprint": opened.engine.identity.fingerprint(adapter),
        "source": answer.source,
        "normalise": answer.query.normalise,
        "temperature": answer.query.temperature,
        "gamma": answer.query.gamma,
        "mixture": answer.query.mixture,
        "warnings": _warnings(answer, opened),
        "prompt_token_ids": list(answer.prompt_ids),
        "items": [_item_json(rank, found, artifact, opened) for rank, found in enumerate(answer.items, start=1)],
        "stats": asdict(answer.stats),
    }


def _warnings(answer: Recommendation, opened: OpenEngine) -> list[dict[str, Any]]:
    """What of the request is not in the answer, as the server says it."""
    left_out = answer.query.left_out
    if not left_out:
        return []
    detail = (
        f"the oldest {left_out} of the items that a prompt shows do not fit into the model's "
        f"{opened.engine.context_tokens} tokens and were left out"
    )
    if answer.source == "popularity":
        detail += "; nothing is left to ask the model about, so popularity answers"
    return [{"code": "history-shortened", "detail": detail, "field": "history", "count": left_out}]


def _item_json(rank: int, found: RankedItem, artifact: Artifact, opened: OpenEngine) -> dict[str, Any]:
    catalogue = artifact.catalogue
    texts = opened.tokenizer.token_texts(catalogue.texts[found.item], [token.token_id for token in found.tokens])
    return {
        "item_id": catalogue.item_ids[found.item],
        "title": catalogue.titles[found.item],
        "rank": rank,
        "score": found.score,
        "probability": found.probability,
        "duplicates": [catalogue.item_ids[item] for item in found.duplicates],
        "tokens": [{"text": text, **asdict(token)} for text, token in zip(texts, found.tokens, strict=True)],
    }


async def _recommend(artifact: Artifact, opened: OpenEngine, query: Query, adapter: str | None) -> Recommendation:
    from igd_core.search.recommender import Recommender

    try:
        await opened.engine.load(artifact)
        return await Recommender(artifact, opened.engine).recommend(query, adapter=adapter)
    finally:
        await opened.engine.close()
