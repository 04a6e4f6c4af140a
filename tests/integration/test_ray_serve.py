"""The server on a real Ray Serve with two replicas: answers, people, and what is published, killed, hung or changed.

What each fault cost is printed: ``pytest -s``.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from patience import PATIENCE_S
from ray_parts import require_ray
from ray_site import RaySite, ray_site
from served_load import Load, say

from igd_core.artifact import load_artifact
from igd_core.engines.open import EngineOptions, open_engine
from igd_core.ids import ItemIndex
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint

require_ray("serve")

pytestmark = pytest.mark.timeout(900)
USERS = [f"user-{number}" for number in range(11)]
SWAPPED_S = 25.0
SILENCE_S = 24


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    definition: dict[str, Any],
    tokenizer: TitleTokenizer,
    checkpoint_of: Callable[[str], Checkpoint],
) -> Iterator[RaySite]:
    """Two replicas that serve the first edition."""
    with ray_site(tmp_path_factory.mktemp("ray"), definition, tokenizer, checkpoint_of("llama-fp32")) as site:
        site.deploy()
        site.until(site.ready, "it serves")
        with httpx.Client(base_url=site.url, timeout=PATIENCE_S) as client:
            site.until(lambda: len(replicas_of(client)) == 2, "both replicas serve")
        yield site


@pytest.fixture
def client(site: RaySite) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site.url, timeout=PATIENCE_S) as client:
        yield client


def ask(client: httpx.Client, history: list[str], *, user: str | None = None) -> httpx.Response:
    body = {"history": history, "k": 3, "beams": 4}
    return client.post("/v1/recommendations", json=body, headers={} if user is None else {"x-user-id": user})


def replica_of(client: httpx.Client, user: str) -> tuple[float, float]:
    """Which replica a user has, by its process's start, and how many recommendations it has answered."""
    began = answers = 0.0
    for line in client.get("/metrics", headers={"x-user-id": user}).text.splitlines():
        name, _, value = line.rpartition(" ")
        if name == "process_start_time_seconds":
            began = float(value)
        elif name.startswith("igd_recommendations_total{"):
            answers += float(value)
    return began, answers


def replicas_of(client: httpx.Client) -> dict[float, str]:
    """A user of each replica, by its process's start."""
    return {replica_of(client, user)[0]: user for user in USERS}


def told(what: str, load: Load, since: float) -> None:
    """Statuses of a load, and the slowest answer, for the report."""
    statuses = Counter((answer.kind, answer.status) for answer in load.answers)
    slowest = max((answer for answer in load.answers if answer.at >= since - 1), key=lambda answer: answer.seconds)
    say(f"{what}: {dict(sorted(statuses.items()))}; slowest {slowest.seconds:.2f} s ({slowest.status})")


def failed(load: Load) -> list[tuple[str, int]]:
    return [(answer.kind, answer.status) for answer in load.answers if answer.status != 200]


def test_answers_are_the_servers_and_people_stay(site: RaySite, client: httpx.Client) -> None:
    artifact = load_artifact(next(site.root.glob("built-*")))
    opened = open_engine(EngineOptions(model=site.args["model"], device="cpu"))
    ids = artifact.catalogue.item_ids

    async def expected(history: list[int]) -> list[str]:
        query = Query(history=[ItemIndex(item) for item in history], k=3, beams=4)
        return [ids[item.item] for item in (await recommender.recommend(query)).items]

    with asyncio.Runner() as runner:
        runner.run(opened.engine.load(artifact))
        recommender = Recommender(artifact, opened.engine)
        for first in range(6):
            found = ask(client, [ids[first], ids[first + 3]])
            assert found.status_code == 200, found.text
            assert [item["item_id"] for item in found.json()["items"]] == runner.run(expected([first, first + 3]))
        runner.run(opened.engine.close())
    refused = client.post("/v1/recommendations", json={"history": 3})
    assert (refused.status_code, refused.json()["field"]) == (422, "history")
    assert refused.headers.get_list("x-request-id") == [refused.json()["request_id"]]

    before = {user: replica_of(client, user) for user in USERS}
    for user in USERS:
        for _ in range(2):
            assert ask(client, [ids[1]], user=user).status_code == 200
    for user in USERS:
        began, answers = replica_of(client, user)
        neighbours = sum(each[0] == began for each in before.values())
        assert (began, answers) == (before[user][0], before[user][1] + 2 * neighbours)


async def test_a_published_version_reaches_both_replicas_under_load(site: RaySite, client: httpx.Client) -> None:
    """Each answer's items are of the version that it names (`served_load.Load.ask`)."""
    users = replicas_of(client)
    assert len(users) == 2

    async def versions() -> set[str]:
        async with httpx.AsyncClient(base_url=site.url, timeout=PATIENCE_S) as asking:
            answers = [await asking.get("/v1/catalogues", headers={"x-user-id": user}) for user in users.values()]
        return {answer.json()["catalogues"][0]["version"] for answer in answers}

    async with site.load("swap") as load:
        since = time.monotonic()
        version = await site.publish()
        async with asyncio.timeout(SWAPPED_S):
            while await versions() != {version}:  # noqa: ASYNC110 - as an operator looks
                await asyncio.sleep(0.2)
        swapped = time.monotonic()
        for _ in range(20):
            await load.until(lambda answer: answer.version == version)
    told(f"both replicas serve a version {swapped - since:.2f} s after `igd publish` began", load, since)
    assert failed(load) == []
    assert {answer.version for answer in load.answers if answer.version} == set(site.editions)
    assert {answer.version for answer in load.answers if answer.version and answer.at > swapped} == {version}


async def test_a_killed_replica_costs_its_answers_a_503_and_comes_back(site: RaySite) -> None:
    before = site.replicas()
    assert len(before) == 2
    async with site.load("kill") as load:
        since = time.monotonic()
        before[0].kill()
        await asyncio.to_thread(site.until, lambda: len({*site.replicas()} - {before[0]}) == 2, "another one starts")
        await load.until(lambda answer: answer.status == 200)
        async with site.store() as store:
            await load.assert_nothing_lost(store)
    told("one of two replicas killed", load, since)
    lost = [answer for answer in load.answers if answer.status != 200]
    # One client has one request under way, and they were answered by both.
    assert {answer.status for answer in lost} <= {503}
    assert len(lost) <= 6
    assert all(answer.at < since < answer.at + answer.seconds + 1 for answer in lost), lost


async def test_a_rolling_update_loses_no_answer(site: RaySite, client: httpx.Client) -> None:
    site.until(lambda: len(replicas_of(client)) == 2, "both replicas serve")
    before = {*site.replicas()}
    async with site.load("update") as load:
        since = time.monotonic()
        await asyncio.to_thread(site.deploy, replica_silence_s=str(SILENCE_S))

        def updated() -> bool:
            return not before & {*site.replicas()} and len(replicas_of(client)) == 2

        await asyncio.to_thread(site.until, updated, "both replicas are new")
    told(f"rolling update in {time.monotonic() - since:.0f} s", load, since)
    assert failed(load) == []


async def test_a_replica_that_hangs_is_killed_and_its_requests_are_answered(site: RaySite) -> None:
    before = site.replicas()
    async with site.load("hang") as load:
        since = time.monotonic()
        before[0].send_signal(signal.SIGSTOP)
        await asyncio.to_thread(site.until, lambda: before[0] not in site.replicas(), "it is killed")
        killed = time.monotonic()
    told(f"a replica that hangs is killed after {killed - since:.0f} s", load, since)
    assert killed - since < 2 * SILENCE_S
    assert {answer.status for answer in load.answers} <= {200, 503}
    assert 0 < len(failed(load)) <= 6


async def test_replicas_come_and_go_with_the_load(site: RaySite, client: httpx.Client) -> None:
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2}
    delays = {"upscale_delay_s": 2, "downscale_delay_s": 2, "look_back_period_s": 2, "metrics_interval_s": 1}
    await asyncio.to_thread(site.deploy, deployment={"autoscaling_config": scaling | delays}, replicas="1:2")
    await asyncio.to_thread(site.until, lambda: len(site.replicas()) == 1, "one replica")
    async with site.load("scale") as load:
        since = time.monotonic()
        await asyncio.to_thread(site.until, lambda: len(replicas_of(client)) == 2, "two replicas")
        up = time.monotonic()
    told(f"two replicas {up - since:.0f} s after the load began", load, since)
    assert failed(load) == []
    assert ask(client, [], user=USERS[0]).status_code == 200
    await asyncio.to_thread(site.until, lambda: len(site.replicas()) == 1, "one replica again")
    say(f"one replica {time.monotonic() - up:.0f} s after it ended")
    assert ask(client, [], user=USERS[0]).status_code == 200


async def test_an_application_that_is_deleted_gives_the_answers_that_it_began(site: RaySite) -> None:
    statuses: list[list[int]] = []

    async def ask_until_it_is_gone(asking: httpx.AsyncClient, number: int) -> None:
        mine: list[int] = []
        statuses.append(mine)
        while not mine or mine[-1] == 200:
            body = {"history": [f"films-1-{number}"], "k": 3, "alpha": len(mine) / 1000}  # never cached
            answer = await asking.post("/v1/recommendations", json=body)
            mine.append(answer.status_code)

    async with (
        httpx.AsyncClient(base_url=site.url, timeout=PATIENCE_S) as asking,
        asyncio.timeout(2 * PATIENCE_S),
        asyncio.TaskGroup() as clients,
    ):
        for number in range(6):
            clients.create_task(ask_until_it_is_gone(asking, number))
        await asyncio.sleep(2)
        await asyncio.to_thread(site.delete)
    say(f"deleted under load: {sum(map(len, statuses)) - 6} answers, then {Counter(mine[-1] for mine in statuses)}")
    assert all(len(mine) > 1 for mine in statuses)
    assert {mine[-1] for mine in statuses} <= {404, 503}, "what Ray Serve says where no application is"
    assert site.replicas() == []
