"""The real thing: `igd serve` in a process of its own, with a tiny random Llama, over sockets."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from films import HOSTILE_TITLE, ITEM_IDS
from server_process import Bundle, ServerProcess, make_bundle

from igd_core.engines.embedded.checkpoint import load_checkpoint
from igd_core.engines.embedded.engine import TreeEngine
from igd_core.ids import ItemIndex
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.search.recommender import Recommendation


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory,
    definition: dict[str, Any],
    tokenizer: TitleTokenizer,
    checkpoint_of: Callable[[str], Checkpoint],
) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("served"), definition, tokenizer, checkpoint_of("llama-fp32"))


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[ServerProcess]:
    started = ServerProcess.start(*bundle.flags)
    try:
        started.event("ready")
        yield started
    finally:
        started.stop()
    started.assert_ended_well()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.event("listening")["url"], timeout=30) as made:
        yield made


def gauge(client: httpx.Client, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_log_and_metrics_say_how_the_model_is_run(server: ServerProcess, client: httpx.Client) -> None:
    ready = server.event("ready")
    assert (ready["forward"], ready.get("why_forward")) == ("own", None)
    assert gauge(client, r'igd_forward_info\{forward="own"\}') == 1
    assert (ready["precision"], ready.get("precision_told")) == ("fp32", None)
    assert gauge(client, r'igd_precision_info\{precision="fp32"\}') == 1


def test_the_answer_over_http_is_the_recommenders_own(client: httpx.Client, bundle: Bundle) -> None:
    async def without_http() -> Recommendation:
        engine = TreeEngine(load_checkpoint(bundle.model_dir, device="cpu"))
        try:
            await engine.load(bundle.artifact)
            return await Recommender(bundle.artifact, engine).recommend(
                Query(history=[ItemIndex(0), ItemIndex(5), ItemIndex(12)], k=5)
            )
        finally:
            await engine.close()

    expected = asyncio.run(without_http())
    request = {"history": [ITEM_IDS[0], ITEM_IDS[5], ITEM_IDS[12]], "k": 5, "explain": True}
    body = client.post("/v1/recommendations", json=request).json()
    assert (body["source"], body["model"], body["version"]) == ("model", "tiny-llama", bundle.artifact.version)
    assert [item["item_id"] for item in body["items"]] == [ITEM_IDS[item.item] for item in expected.items]
    for item, ranked in zip(body["items"], expected.items, strict=True):
        assert item["score"] == pytest.approx(ranked.score, abs=1e-4)
        assert [token["token_id"] for token in item["explanation"]] == [token.token_id for token in ranked.tokens]
    assert body["timings"]["model_ms"] > 0


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"history": ["ghost"], "strict": True}, 422, "history"),
        ({"k": 0}, 422, "k"),
        ({"k": 21}, 422, "k"),
        ({"alpha": 7}, 422, "alpha"),
        ({"history": ["1"] * 10_000}, 422, "history"),
    ],
)
def test_wrong_requests_are_problems(client: httpx.Client, body: dict[str, Any], status: int, field: str) -> None:
    response = client.post("/v1/recommendations", json=body)
    assert (response.status_code, response.json()["field"]) == (status, field)


def test_a_cold_user_an_unknown_item_an_allow_list_and_a_hostile_title(client: httpx.Client) -> None:
    def ask(**body: Any) -> dict[str, Any]:
        answer: dict[str, Any] = client.post("/v1/recommendations", json=body).raise_for_status().json()
        return answer

    assert ask(history=[])["source"] == ask(history=["ghost"])["source"] == "popularity"
    assert ask(history=["ghost", "1"])["warnings"][0]["count"] == 1
    three = ask(history=["1"], k=10, allow=["5", "9", "13"])
    assert sorted(item["item_id"] for item in three["items"]) == ["13", "5", "9"]
    hostile = ask(history=[ITEM_IDS[-1], "1"], allow=[ITEM_IDS[-1]], exclude_seen=False)
    assert [item["title"] for item in hostile["items"]] == [HOSTILE_TITLE]


def test_broken_json_and_a_5_mb_body_are_refused_and_the_server_serves_on(client: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    broken = client.post("/v1/recommendations", content=b'{"history": [', headers=headers)
    assert (broken.status_code, broken.json()["title"]) == (400, "The body is not JSON")
    large = client.post("/v1/recommendations", content=b" " * 5_000_000, headers=headers)
    assert (large.status_code, large.json()["type"]) == (413, "urn:igd:problem:body-too-large")
    unsaid = client.post("/v1/recommendations", content=(b" " * 100_000 for _ in range(50)), headers=headers)
    assert unsaid.status_code == 413
    assert client.post("/v1/recommendations", json={"history": ["1"]}).status_code == 200


def test_responses_do_not_name_the_server_software(client: httpx.Client) -> None:
    assert "server" not in client.get("/healthz").headers


def test_a_head_that_never_ends_is_cut_off(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 431")


def test_the_log_has_a_line_for_each_request(client: httpx.Client, server: ServerProcess) -> None:
    client.post("/v1/recommendations", json={"history": ["1"]}, headers={"X-Request-ID": "find-me"})
    deadline = time.monotonic() + 10
    while not (lines := [line for line in server.log if line.get("request_id") == "find-me"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (lines[0]["event"], lines[0]["status"], lines[0]["source"]) == ("request", 200, "model")


def test_many_clients_at_once_each_get_their_own_answer(client: httpx.Client) -> None:
    async def ask_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=client.base_url, timeout=60) as many:
            return await asyncio.gather(
                *(many.post("/v1/recommendations", json={"history": [item], "k": 3}) for item in ITEM_IDS)
            )

    alone = [client.post("/v1/recommendations", json={"history": [item], "k": 3}).json()["items"] for item in ITEM_IDS]
    together = [response.json()["items"] for response in asyncio.run(ask_all())]
    for one, other in zip(alone, together, strict=True):
        assert [item["item_id"] for item in one] == [item["item_id"] for item in other]
    assert gauge(client, "igd_engine_sessions") == 0


@pytest.mark.parametrize(
    ("break_it", "line"),
    [
        (lambda root: (root / "films" / "trie.safetensors").write_bytes(b"x"), "trie.safetensors"),
        (lambda root: (root / "tiny-llama" / "tokenizer.json").unlink(), "tokenizer.json"),
    ],
)
def test_what_cannot_be_loaded_ends_the_server_with_one_line_and_code_2(
    bundle: Bundle, tmp_path: Path, break_it: Callable[[Path], None], line: str
) -> None:
    import shutil

    shutil.copytree(bundle.artifact_dir.parent, tmp_path / "copy")
    break_it(tmp_path / "copy")
    started = ServerProcess.start(
        "--artifact", str(tmp_path / "copy" / "films"), "--model", str(tmp_path / "copy" / "tiny-llama")
    )
    assert started.wait() == 2
    assert line in started.stderr.splitlines()[-1]
    assert "Traceback" not in started.stderr


@pytest.mark.parametrize(
    ("flags", "variables", "line"),
    [
        (("--port", "70000"), {}, "port"),
        (("--engine", "warp"), {}, "engine"),
        ((), {"IGD_PROT": "1"}, "IGD_PROT: no such setting; is IGD_PORT meant?"),
        (("--host", "no.such.host.invalid", "--open-access"), {}, "cannot listen"),
        (("--host", "192.0.2.1"), {}, "host: 192.0.2.1 can be reached by others"),
        (("--keys-file", "/no/such/file"), {}, "/no/such/file"),
    ],
)
def test_bad_settings_end_with_one_line_and_code_2(
    bundle: Bundle, flags: tuple[str, ...], variables: dict[str, Any], line: str
) -> None:
    started = ServerProcess.start(*bundle.flags, *flags, **variables)
    assert started.wait() == 2
    assert len(started.stderr.splitlines()) == 1
    assert line in started.stderr
