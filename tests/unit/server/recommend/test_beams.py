"""A catalogue says how wide a search is where neither request nor variant does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from factories import make_catalogue
from films import app_runner
from igd_server.variants import Variant

from igd_core.artifact import BuildOptions, build_artifact

if TYPE_CHECKING:
    from pathlib import Path

    from films import Run

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer

WIDE = 12


@pytest.fixture
def run_wide(films: Artifact, tokenizer: TitleTokenizer, tmp_path: Path) -> Run:
    return app_runner(replace(films, manifest=replace(films.manifest, beams=WIDE)), tokenizer, tmp_path)


async def test_the_catalogues_width_is_used_unless_the_request_or_its_variant_names_one(run_wide: Run) -> None:
    variants = (Variant(name="plain"), Variant(name="narrow", beams=2))
    async with run_wide(variants=variants, result_ttl_s=0) as running:

        async def found(**body: Any) -> Any:
            answer = (await running.recommend(history=["1", "3"], k=2, explain=True, **body)).json()
            return answer["items"]

        assert await found(variant="plain") == await found(variant="plain", beams=WIDE)
        assert await found(variant="narrow") == await found(variant="plain", beams=2)
        assert await found(variant="narrow", beams=WIDE) == await found(variant="plain")
        assert await found(variant="narrow") != await found(variant="plain")
        (catalogue,) = (await running.client.get("/v1/catalogues")).json()["catalogues"]
        assert catalogue["beams"] == WIDE


async def test_a_request_counts_by_the_width_of_its_catalogue(tokenizer: TitleTokenizer, tmp_path: Path) -> None:
    catalogue = make_catalogue(200)

    async def taken(own: int, **body: Any) -> int:
        artifact = build_artifact(catalogue, tokenizer, BuildOptions(max_history=1, beams=own))
        async with app_runner(artifact, tokenizer, tmp_path)(rate_limit="5/day") as running:
            answers = [await running.recommend(history=[catalogue.item_ids[0]], k=2, **body) for _ in range(6)]
        return [answer.status_code for answer in answers].count(200)

    assert await taken(10) == await taken(200, beams=10) == 5
    assert await taken(200) == await taken(10, beams=200) < 5
