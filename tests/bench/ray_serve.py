"""Prompts that replicas of Ray Serve have already: `python tests/bench/ray_serve.py --artifact DIR`.

Two replicas serve the demo's model on a real Ray, in the environment of `make batch`. People ask, go on by one item,
ask again, and so on, each with their id in ``X-User-Id``; once with the router that `igd_server.ray_serve` takes, which
keeps them on a replica, once with Ray's round-robin router. Printed: which share of prompt tokens was in a replica's
cache, as answers tell it, and the answer to the README's request.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import sys
import tempfile
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
    """Everybody asks in turn, again and again, with one item more each time."""
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
            for tokens in await asyncio.gather(*map(ask, range(given.people))):
                if visit:
                    later += tokens
                else:
                    first += tokens
            for history in histories:
                history.append(str(rng.choice(items)))
    return {"first_visit": round(first[1] / first[0], 3), "later_visits": round(later[1] / later[0], 3)}


def two_serve(site: RaySite, before: set[int]) -> bool:
    """Whether two replicas answer that were not there before."""
    found = set()
    for number in range(12):
        answer = httpx.get(f"{site.url}/metrics", headers={"x-user-id": f"look-{number}"}, timeout=120).text
        found |= {line for line in answer.splitlines() if line.startswith("process_start_time_seconds")}
    return len(found) == 2 and not before & {each.pid for each in site.replicas()}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Both routers, one after the other."""
    definition = tokenizer_definition()
    tokenizer, artifact = TitleTokenizer(definition, EOS), load_artifact(given.artifact)
    with (
        tempfile.TemporaryDirectory() as root,
        ray_site(Path(root), definition, tokenizer, tiny_checkpoint("llama-fp32", tokenizer)) as site,
    ):
        name = asyncio.run(published(site, given.artifact))
        site.args |= {"model": str(given.model), "catalogues": name, "cache_bytes": str(given.cache_bytes)}
        result: dict[str, Any] = {}
        for router, path in ROUTERS.items():
            before = {each.pid for each in site.replicas()} if site.process else set()
            routing = {"request_router_config": {"request_router_class": path}}
            site.deploy(deployment=routing, grace_s=str(30 + len(before)))  # another setting: new replicas
            site.until(site.ready, "it serves")
            site.until(functools.partial(two_serve, site, before), "two replicas")
            result[router] = asyncio.run(visits(site.url, given, list(artifact.catalogue.item_ids)))
        answer = httpx.post(f"{site.url}/v1/recommendations", json=README, timeout=120).json()
        return {**result, "readme": [item["title"] for item in answer["items"]]}


async def published(site: RaySite, folder: Path) -> str:
    """Publish an artifact; the catalogue's name."""
    name = load_artifact(folder).manifest.name
    async with site.store() as store:
        await store.activate(name, await store.add(folder, catalogue=name))
    return name


def main() -> None:
    """Measure; the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True, help="what `igd demo` has built")
    parser.add_argument("--model", type=Path, default=shipped_model("ml-100k-small-llama"))
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--visits", type=int, default=4)
    parser.add_argument("--cache-bytes", type=int, default=2**28, help="of each replica")
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(measure(parser.parse_args())))  # noqa: T201 - what it is for


if __name__ == "__main__":
    main()
