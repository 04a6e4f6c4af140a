"""`igd serve --engine vllm` in processes of its own: answers, adapters, metrics; and what happens when vLLM dies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from adapters import save_adapter
from films import ITEM_IDS, film_artifact
from server_process import ServerProcess
from vllm_parts import is_called, require_vllm, save_tiny_llama

require_vllm()

from igd_core.artifact import load_artifact, save_artifact  # noqa: E402
from igd_core.cli.main import main  # noqa: E402
from igd_core.engines.embedded.checkpoint import load_checkpoint  # noqa: E402
from igd_core.engines.embedded.engine import TreeEngine  # noqa: E402
from igd_core.ids import ItemIndex  # noqa: E402
from igd_core.search.query import Query  # noqa: E402
from igd_core.search.recommender import Recommender  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.search.recommender import Recommendation

pytestmark = pytest.mark.timeout(400)

VLLM = {"kv_cache_bytes": 16 << 20, "max_num_seqs": 64, "max_num_batched_tokens": 512}
VARIANTS = [{"name": "plain"}, {"name": "tuned", "adapter": "lora", "weight": 0}]
GRACE_S = 6
START_S = 240  # half a minute when nothing else runs
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, definition: dict[str, Any], tokenizer: TitleTokenizer) -> Path:
    made = tmp_path_factory.mktemp("served-by-vllm")
    save_tiny_llama(made / "model", definition, tokenizer)
    save_adapter(made / "lora", made / "model", seed=3)
    save_artifact(film_artifact(tokenizer), made / "films")
    return made


def started(root: Path, *flags: str, source: str = "artifact", vllm: dict[str, int] = VLLM) -> ServerProcess:
    server = ServerProcess.start(
        *(("--artifact", str(root / "films")) if source == "artifact" else ()),
        *("--model", str(root / "model"), "--engine", "vllm", "--vllm", json.dumps(vllm), *flags),
        IGD_GRACE_S=str(GRACE_S),
        IGD_RESULT_TTL_S="0",
        IGD_MAX_RUNNING="32",
        IGD_DEFAULT_TIMEOUT_MS="60000",
    )
    try:
        server.event("ready", timeout_s=START_S)
    except AssertionError:
        server.stop()
        raise
    return server


@contextlib.contextmanager
def running(server: ServerProcess) -> Iterator[httpx.Client]:
    """A client; at the end no process of the server is left, whatever the test did to them."""
    processes = psutil.Process(server.process.pid).children(recursive=True)
    assert len([process for process in processes if is_called(process, "VLLM")]) >= 2
    try:
        with httpx.Client(base_url=server.event("listening")["url"], timeout=30) as client:
            yield client
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.wait()
        _, alive = psutil.wait_procs(processes, timeout=10)
        for process in alive:
            process.kill()
    assert not alive, f"orphans: {alive}"


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gauge(client: httpx.Client, name: str) -> float:
    found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def histories(length: int = 3) -> Iterator[list[str]]:
    """Different ones: equal questions would share an answer."""
    return map(list, itertools.cycle(itertools.permutations(ITEM_IDS[:-1], length)))


def test_answers_are_the_embedded_engines_with_and_without_an_adapter_and_leave_nothing_behind(root: Path) -> None:
    server = started(root, "--adapters", f"lora={root / 'lora'}", "--variants", json.dumps(VARIANTS))
    with running(server) as client:
        expected = asyncio.run(_embedded(root, [ItemIndex(0), ItemIndex(5), ItemIndex(12)]))
        answers = {}
        for variant, recommendation in expected.items():
            body = client.post(
                "/v1/recommendations",
                json={"history": [ITEM_IDS[0], ITEM_IDS[5], ITEM_IDS[12]], "k": 5, "variant": variant},
            ).json()
            assert "source" in body, body
            assert (body["source"], body["variant"]) == ("model", variant)
            assert [item["item_id"] for item in body["items"]] == [ITEM_IDS[item.item] for item in recommendation.items]
            for item, ranked in zip(body["items"], recommendation.items, strict=True):
                assert item["score"] == pytest.approx(ranked.score, abs=TOLERANCE)
            answers[variant] = body["items"]
        assert answers["plain"] != answers["tuned"]
        _leave_mid_request(client)
        until(lambda: gauge(client, "vllm:num_requests_running") == gauge(client, "igd_engine_sessions") == 0)
        text = client.get("/metrics").text
        assert "vllm:kv_cache_usage_perc" in text
        assert "igd_engine_versions 1.0" in text
        with ThreadPoolExecutor(8) as pool:
            asked = histories()
            last = [pool.submit(client.post, "/v1/recommendations", json={"history": next(asked)}) for _ in range(16)]
            until(lambda: gauge(client, "igd_engine_sessions") > 0)
            status = server.stop()
            sources = [answer.result().json()["source"] for answer in last]
    assert status == 0
    assert sources == ["model"] * 16, "told to stop, it answers what it has begun"


def test_a_published_adapter_takes_over_and_goes_back_while_requests_are_answered(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what vLLM cannot run beside it, another checkpoint, is refused with a line."""
    store = f"file://{tmp_path}/store"

    def igd(*command: object) -> None:
        assert main([*map(str, command), "--store", store]) == 0

    history = [ITEM_IDS[0], ITEM_IDS[5], ITEM_IDS[12]]
    expected = asyncio.run(_embedded(root, [ItemIndex(0), ItemIndex(5), ItemIndex(12)]))
    igd("publish", "--artifact", root / "films")
    settings = {"STORE": store, "CACHE_DIR": str(tmp_path / "cache"), "STORE_TIMEOUT_MS": "10000", "POLL_S": "0.2"}
    for name, value in {**settings, "TRIAL_S": "0"}.items():
        monkeypatch.setenv(f"IGD_{name}", value)
    server = started(
        root,
        *("--catalogues", "films"),
        source="store",
        vllm={**VLLM, "published_adapters": 1},
    )
    with running(server) as client, ThreadPoolExecutor(1) as pool:
        stop, sources = threading.Event(), []

        def load() -> None:
            asked = histories()
            while not stop.is_set():
                sources.append(client.post("/v1/recommendations", json={"history": next(asked)}).json()["source"])

        def served() -> dict[str, Any]:
            (info,) = client.get("/v1/catalogues").json()["catalogues"]
            return dict(info)

        loading = pool.submit(load)
        first = served()
        for _ in range(2):  # the second time its place must be free again
            igd("publish", "--catalogue", "films", "--model", root / "lora", "--base", root / "model")
            until(lambda: served()["version"] != first["version"], 60)
            assert served()["model"] == "lora"
            answer = client.post("/v1/recommendations", json={"history": history, "k": 5}).json()
            for item, ranked in zip(answer["items"], expected["tuned"].items, strict=True):
                assert item["item_id"] == ITEM_IDS[ranked.item]
                assert item["score"] == pytest.approx(ranked.score, abs=TOLERANCE)
            igd("rollback", "--catalogue", "films")
            until(lambda: served()["version"] == first["version"], 60)
            assert served()["model_fingerprint"] == first["model_fingerprint"]
            assert server.event("model_closed", 60)["model"] == "lora"
        answer = client.post("/v1/recommendations", json={"history": history, "k": 5}).json()
        assert [item["item_id"] for item in answer["items"]] == [
            ITEM_IDS[each.item] for each in expected["plain"].items
        ]
        igd("publish", "--catalogue", "films", "--model", root / "model", "--name", "whole")
        until(lambda: bool(served()["refusals"]), 60)
        (refusal,) = served()["refusals"]
        assert refusal["reason"] == "model"
        assert "runs the one checkpoint that it was started with" in refusal["detail"]
        stop.set()
        loading.result(60)
        assert server.stop() == 0
    assert len(sources) > 10
    assert set(sources) == {"model"}


async def _embedded(root: Path, history: Sequence[ItemIndex]) -> dict[str, Recommendation]:
    engine = TreeEngine(load_checkpoint(root / "model", device="cpu", adapters={"lora": root / "lora"}))
    artifact = load_artifact(root / "films")
    try:
        await engine.load(artifact)
        recommender = Recommender(artifact, engine)
        query = Query(history=history, k=5)
        return {
            "plain": await recommender.recommend(query),
            "tuned": await recommender.recommend(query, adapter="lora"),
        }
    finally:
        await engine.close()


def _leave_mid_request(client: httpx.Client) -> None:
    async def leave() -> None:
        asked = histories(4)
        async with httpx.AsyncClient(base_url=client.base_url) as many:
            calls = [
                asyncio.ensure_future(many.post("/v1/recommendations", json={"history": next(asked)}))
                for _ in range(16)
            ]
            async with asyncio.timeout(20):
                while not await asyncio.to_thread(gauge, client, "igd_engine_sessions"):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(leave())


@pytest.mark.parametrize("victim", ["VLLM::EngineCore", "VLLM::Worker"])
def test_when_vllm_is_killed_under_load_everyone_is_answered_and_the_server_ends(root: Path, victim: str) -> None:
    server = started(root)
    with running(server) as client:
        answers: list[httpx.Response] = []
        failures: list[Exception] = []
        stop = threading.Event()
        asked = histories()
        turn = threading.Lock()

        def load() -> None:
            while not stop.is_set():
                with turn:
                    history = next(asked)
                try:
                    answers.append(client.post("/v1/recommendations", json={"history": history}))
                except httpx.TransportError as error:
                    failures.append(error)
                    return

        threads = [threading.Thread(target=load) for _ in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: sum(answer.json()["source"] == "model" for answer in list(answers)) > 8)
        [target] = [
            process
            for process in psutil.Process(server.process.pid).children(recursive=True)
            if is_called(process, victim)
        ]
        target.kill()
        until(lambda: client.get("/readyz").status_code == 503)
        until(lambda: any(answer.json()["source"] == "popularity" for answer in list(answers)))
        status = server.process.wait(GRACE_S + 20)
        stop.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "a request that nobody answered"
    assert status not in (0, None)
    assert {answer.status_code for answer in answers} <= {200, 503}
    late = answers[-1]
    assert late.status_code == 503 or late.json()["source"] == "popularity"
    assert "the engine has failed" in server.stderr
    assert {type(error) for error in failures} <= {httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError}
