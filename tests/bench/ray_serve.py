"""Prompts that replicas of Ray Serve have already: `python tests/bench/ray_serve.py --artifact DIR`.

Two replicas serve the demo's model on a real Ray, in the environment of `make batch`. People ask, go on by one item,
ask again, and so on, each with their id in ``X-User-Id``; once with the router that `igd_server.ray_serve` takes, which
keeps them on a replica, once with Ray's round-robin router. Printed: which share of prompt tokens was in a replica's
cache, as answers tell it, and the answer to the README's request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from factories import EOS, tiny_checkpoint, tokenizer_definition  # noqa: E402 - from tests/, by the line above
from ray_site import RaySite, ray_site  # noqa: E402

from igd_core.artifact import load_artifact  # noqa: E402
from igd_core.catalogue.tokenization import TitleTokenizer  # noqa: E402
from igd_core.tuning.shipped import shipped_model  # noqa: E402

ROUTERS = {
    "kept": "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",
    "round robin": "ray.serve.experimental.round_robin_router.RoundRobinRouter",
}
README = {"history": ["50", "172", "181"], "k": 3}


async def visits(url: str, given: argparse.Namespace, items: list[str]) -> dict[str, Any]:
    """Everybody asks, again and again, with one item more each time."""
    rng = np.random.default_rng(given.seed)
    histories = [list(rng.choice(items, size=rng.integers(5, 15), replace=False)) for _ in range(given.people)]
    first, later = np.zeros(2, dtype=int), np.zeros(2, dtype=int)
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        places = asyncio.Semaphore(2)

        async def ask(person: int) -> np.ndarray:
            body = {"history": histories[person], "k": 10, "timeout_ms": 60_000, "fallback": False}
            async with places:
                answer = await client.post("/v1/recommendations", json=body, headers={"X-User-Id": f"person-{person}"})
            timings = answer.raise_for_status().json()["timings"]
            return np.array([timings["prompt_tokens"], timings["cached_tokens"]])

        for visit in range(given.visits):
            order = rng.permutation(given.people)  # in one order, turns about a ring would keep people on a replica too
            for tokens in await asyncio.gather(*map(ask, order)):
                if visit:
                    later += tokens
                else:
                    first += tokens
            for history in histories:
                history.append(str(rng.choice(items)))
    return {"first_visit": round(first[1] / first[0], 3), "later_visits": round(later[1] / later[0], 3)}


def measure(given: argparse.Namespace, router: str) -> dict[str, Any]:
    """One router, on a Ray of its own: a proxy that runs keeps the router that it has."""
    definition = tokenizer_definition()
    tokenizer, artifact = TitleTokenizer(definition, EOS), load_artifact(given.artifact)
    with (
        tempfile.TemporaryDirectory() as root,
        ray_site(Path(root), definition, tokenizer, tiny_checkpoint("llama-fp32", tokenizer)) as site,
    ):
        name = asyncio.run(published(site, given.artifact))
        site.args |= {"model": str(given.model), "catalogues": name, "cache_bytes": str(given.cache_bytes)}
        site.deploy(deployment={"request_router_config": {"request_router_class": ROUTERS[router]}})
        site.until(site.ready, "it serves")
        time.sleep(given.settle_s)  # the other one starts at the same time
        shares = asyncio.run(visits(site.url, given, list(artifact.catalogue.item_ids)))
        answer = httpx.post(f"{site.url}/v1/recommendations", json=README, timeout=120).json()
        return {"router": router, **shares, "readme": [item["title"] for item in answer["items"]]}


async def published(site: RaySite, folder: Path) -> str:
    """Publish an artifact; the catalogue's name."""
    name = load_artifact(folder).manifest.name
    async with site.store() as store:
        await store.activate(name, await store.add(folder, catalogue=name))
    return name


def main() -> None:
    """Measure; a line of JSON for each router."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True, help="what `igd demo` has built")
    parser.add_argument("--model", type=Path, default=shipped_model("ml-100k-small-llama"))
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--visits", type=int, default=4)
    parser.add_argument("--cache-bytes", type=int, default=2**28, help="of each replica")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settle-s", type=float, default=15.0)
    parser.add_argument("--router", choices=ROUTERS, action="append", help="default: both")
    given = parser.parse_args()
    for router in given.router or ROUTERS:
        print(json.dumps(measure(given, router)), flush=True)  # noqa: T201 - what it is for


if __name__ == "__main__":
    main()
