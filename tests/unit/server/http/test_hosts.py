"""Which host names are answered, and that HEAD is answered as GET is."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from igd_server.http.hosts import AllowedHosts
from igd_server.http.keys import KeyFile, make_key, write_keys
from igd_server.settings import Settings, read_settings

from igd_core.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from films import Run

OWN = socket.gethostname()
BASE: dict[str, Any] = {"artifact": "/x", "model": "m"}


def admitted(name: str, /, **settings: Any) -> bool:
    allowed = AllowedHosts.of(Settings(**BASE, **settings))
    assert allowed is not None
    return allowed.admits(name)


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8000", "LOCALHOST.", "igd.localhost:1", "127.0.0.1:8000", "127.9.9.9", "[::1]:80", OWN],
)
def test_a_server_on_loopback_answers_to_this_machines_names(host: str) -> None:
    assert admitted(host)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.5", "[2001:db8::1]", ""),
        *(
            "localhost:port",
            "localhost:",
            "localhost@evil",
            "localhost/",
            "local host",
            "::1",
            "[::1",
            "localhost,evil",
        ),
        *("0x7f000001", "127.1", "lócalhost", "localhost\x00"),
    ],
)
def test_and_to_no_other(host: str) -> None:
    assert not admitted(host)


def test_a_server_that_others_reach_answers_to_any_address_and_to_names_that_it_is_told() -> None:
    opened = {"host": "0.0.0.0", "open_access": True}  # noqa: S104
    assert admitted("10.0.0.5:8000", **opened)
    assert admitted("[2001:db8::1]:8000", **opened)
    assert not admitted("igd.shop.svc", **opened)
    named = {**opened, "allowed_hosts": "igd.shop.svc, *.Example.org"}
    for host in ("igd.shop.svc:80", "a.example.org", "a.b.EXAMPLE.org.", "localhost"):
        assert admitted(host, **named)
    for host in ("example.org", "badexample.org", "shop.svc", "igd.shop.svc.evil.example"):
        assert not admitted(host, **named)
    assert admitted("igd.internal", host="igd.internal", open_access=True), "the name that it listens on"


def test_with_keys_every_host_is_answered_unless_some_are_named(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"keys_file": tmp_path / "keys.json"}
    assert AllowedHosts.of(Settings(**BASE, **keys)) is None
    assert AllowedHosts.of(Settings(**BASE, allowed_hosts=("*",))) is None
    assert not admitted("evil.example", allowed_hosts="igd.example", **keys)


@pytest.mark.parametrize(
    "value", ["http://igd.example", "igd.example:8000", "a b", "a..b", "*example", "a.*.b", "x" * 256]
)
def test_a_host_that_is_none_is_refused_at_the_start(value: str) -> None:
    with pytest.raises(InputError, match=r"allowed_hosts.0: expected host names without a port"):
        read_settings(**BASE, allowed_hosts=value)


async def test_another_host_is_refused_before_anything_is_looked_at_and_counted(run: Run) -> None:
    async with run() as running:
        refused = [
            await running.client.request(method, path, headers={"Host": "evil.example:8000"})
            for method, path in (
                *(
                    ("GET", path)
                    for path in ("/", "/v1/catalogues", "/metrics", "/docs", "/openapi.json", "/web/app.js")
                ),
                *(
                    ("POST", path)
                    for path in ("/v1/recommendations", "/v1/events", "/v1/admin/catalogues/films:reload")
                ),
                ("DELETE", "/v1/users/u"),
                ("GET", "/none"),
            )
        ]
        probes = [
            await running.client.get(path, headers={"Host": "10.1.2.3:9000"})
            for path in ("/healthz", "/readyz", "/startupz")
        ]
        text = (await running.client.get("/metrics")).text
    assert {answer.status_code for answer in refused} == {421}
    assert {answer.json()["type"] for answer in refused} == {"urn:igd:problem:misdirected"}
    assert "'evil.example:8000'" in refused[0].json()["detail"]
    assert [answer.status_code for answer in probes] == [200] * 3
    assert f'igd_rejected_requests_total{{reason="host"}} {len(refused)}.0\n' in text


async def test_where_keys_are_asked_for_a_name_of_any_kind_is_answered(run: Run, tmp_path: Path) -> None:
    key = make_key("shop", frozenset({"recommend"}), None)
    write_keys(tmp_path / "keys.json", KeyFile(keys=(key.stored,)))
    async with run(keys_file=tmp_path / "keys.json") as running:
        named = {"Host": "igd.shop.example"}
        assert (await running.client.get("/v1/catalogues", headers=named)).status_code == 401
        with_key = {**named, "Authorization": f"Bearer {key.token}"}
        assert (await running.client.get("/v1/catalogues", headers=with_key)).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/healthz", "/readyz", "/startupz", "/metrics", "/docs", "/docs/swagger-ui.css", "/openapi.json"),
        *("/web/app.js", "/v1/items", "/v1/items/1", "/v1/items/none", "/v1/catalogues", "/none", "/v1/items?limit=0"),
    ],
)
async def test_head_is_answered_as_get_is_without_the_body(run: Run, tmp_path: Path, path: str) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "index.html").write_text("<!doctype html><title>IGD</title>")
    (tmp_path / "web" / "app.js").write_text("export {}")
    async with run() as running:
        got = await running.client.get(path, headers={"X-Request-ID": "same"})
        head = await running.client.head(path, headers={"X-Request-ID": "same"})
        text = (await running.client.get("/metrics")).text
    assert head.status_code == got.status_code
    assert head.content == b""
    changing = {"content-length", "etag"} if path == "/metrics" else set()
    assert {k: v for k, v in head.headers.items() if k not in changing} == {
        k: v for k, v in got.headers.items() if k not in changing
    }
    if path.startswith("/v1/items/"):
        assert f'igd_requests_total{{route="/v1/items/{{item_id}}",status="{got.status_code}"}} 2.0' in text


async def test_what_has_no_get_has_no_head_and_what_has_says_so(run: Run) -> None:
    async with run() as running:
        head = await running.client.head("/v1/events")
        deleted = await running.client.delete("/healthz")
    assert (head.status_code, head.headers["allow"], head.content) == (405, "POST", b"")
    assert (deleted.status_code, deleted.headers["allow"]) == (405, "GET, HEAD")
