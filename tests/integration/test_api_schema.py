"""Requests made up from the API's own description: every answer is one that it announces."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import defaultdict
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

import pytest
import schemathesis
from igd_server.app import Apps, Sources, create_apps
from igd_server.catalogues.opening import OpenedModel
from igd_server.http.keys import SCOPES, KeyFile, make_key, write_keys
from igd_server.settings import Settings
from igd_server.variants import Variant
from patience import PATIENCE_S
from publishing import PATIENT, edition, publish
from schemathesis import engine
from schemathesis.engine import events
from schemathesis.python import asgi

from igd_core.engines.fake import FakeEngine
from igd_core.store.files import FilesStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from igd_core.catalogue.tokenization import TitleTokenizer

SEED = 4
EXAMPLES = 10
ADMITTED = {200, 202, 204, 404}
# 422: no document can say which versions are stored, nor which kinds of events an operator has chosen. Who lacks the
# scope gets 403 whatever the body.
ADMITTED_BY = dict.fromkeys(
    ("POST /v1/admin/catalogues/{name}:allow", "POST /v1/admin/catalogues/{name}:rollback", "POST /v1/events"),
    ADMITTED | {422},
)
NEEDED: dict[str, str | tuple[str, ...] | None] = {
    "POST /v1/recommendations": "recommend",
    "POST /v1/recommendations:batch": "recommend",
    "GET /v1/items": "recommend",
    "GET /v1/items/{item_id}": "recommend",
    "GET /v1/catalogues": "recommend",
    "POST /v1/events": "events",
    "POST /v1/users:known": ("users", "admin"),
    "GET /v1/users/{user_id}": ("users", "admin"),
    "POST /v1/users:forget": ("events", "users"),
    "DELETE /v1/users/{user_id}": ("events", "users"),
    "GET /v1/admin/overview": "admin",
    "POST /v1/admin/catalogues/{name}:rollback": "admin",
    "POST /v1/admin/catalogues/{name}:allow": "admin",
    "POST /v1/admin/catalogues/{name}:reload": "admin",
    "GET /metrics": None,  # on the operations port
    "GET /healthz": None,
    "GET /startupz": None,
    "GET /readyz": None,
}
"""The scope that each operation asks for, or those of which one is enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Both apps of a server that follows a store, and the headers that each caller sends, named by their scopes."""

    apps: Apps
    headers: Mapping[str, dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanges:
    """What came of the requests made up for one app.

    Attributes:
        statuses: of the answers, by operation.
        failures: what is wrong with some of them, with how to bring it about.
    """

    statuses: Mapping[str, set[int]]
    failures: list[str]


@schemathesis.check
def refused_with_a_problem(
    _: schemathesis.CheckContext, response: schemathesis.Response, __: schemathesis.Case[Any]
) -> None:
    """Also where the status is one that the document leaves out, as of methods that a path does not have."""
    if response.status_code >= HTTPStatus.BAD_REQUEST and response.request.method != "HEAD":
        assert response.headers["content-type"] == ["application/problem+json"]
        problem = response.json()
        assert problem["type"].startswith("urn:igd:problem:")
        assert problem["status"] == response.status_code
        assert [problem["request_id"]] == response.headers["x-request-id"]


def exchange(app: Any, headers: dict[str, str], **phases: Any) -> Exchanges:
    """Have requests made up from the app's document, good ones and bad ones, and check the answers."""
    config = schemathesis.Config.from_dict(
        {
            "seed": SEED,
            "headers": headers,
            "generation": {
                "deterministic": True,
                "max-examples": EXAMPLES,
                "no-shrink": True,
                "with-security-parameters": False,
            },
            "checks": {
                # 504: some requests ask for an answer within a millisecond, and for an error otherwise.
                "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "504"]},
                # 422: no schema can say which catalogues there are, or what is tomorrow.
                "positive_data_acceptance": {"expected-statuses": ["2xx", "401", "403", "404", "422", "504"]},
            },
            "operations": [
                # A bad entry is refused inside an answer of 200, so that the others are not refused with it.
                {
                    "include-name": "POST /v1/recommendations:batch",
                    "checks": {"negative_data_rejection": {"enabled": False}},
                }
            ],
            "phases": {"coverage": {"unexpected-methods": ["DELETE", "PUT"]}, "stateful": {"enabled": False}, **phases},
        }
    )
    statuses = defaultdict(set)
    failures = []
    for event in engine.from_schema(schemathesis.openapi.from_asgi("/openapi.json", app, config=config)).execute():
        if isinstance(event, events.NonFatalError):
            failures.append(f"{event.label}: {event.value!r}")
        elif isinstance(event, events.FatalError):
            raise event.exception
        elif isinstance(event, events.ScenarioFinished) and event.is_test_scenario:
            for made in event.recorder.interactions.values():
                assert made.response is not None
                statuses[event.recorder.label].add(made.response.status_code)
            for check in (check for checks in event.recorder.checks.values() for check in checks):
                if check.failure_info is not None:
                    failure = check.failure_info
                    failures.append(f"{check.name}: {failure.failure.message}\n{failure.code_sample}")
    return Exchanges(statuses=statuses, failures=failures)


@pytest.fixture(autouse=True)
def _no_garbage_collection() -> Iterator[None]:
    """schemathesis imports as it goes, pytest parses what it imports, and Python 3.11's parser fails now and then
    ("AST constructor recursion depth mismatch") when finalisers run in the middle of that."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def published(tokenizer: TitleTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a store with two versions of a catalogue."""
    directory = tmp_path_factory.mktemp("published")
    asyncio.run(_publish(tokenizer, directory))
    return directory


@pytest.fixture
def served(published: Path, tmp_path: Path) -> Served:
    """Schemathesis starts an app with its first request, and stops all of them after each test."""
    keys = {"all": make_key("all", frozenset(SCOPES), None)}
    keys |= {scope: make_key(scope, frozenset({scope}), None) for scope in SCOPES}
    write_keys(tmp_path / "keys.json", KeyFile(keys=tuple(key.stored for key in keys.values())))
    settings = Settings(
        catalogues=("films",),
        store=f"file://{published}/store",
        store_timeout_ms=int(PATIENT.timeout_s * 1000),
        cache_dir=tmp_path / "cache",
        model="fake",
        variants=(Variant(name="control"), Variant(name="bold", alpha=0.4)),
        keys_file=tmp_path / "keys.json",
        operations_port=0,
    )
    model = OpenedModel(engine=FakeEngine(), token_texts=lambda _, ids: list(map(str, ids)))
    apps = create_apps(settings, Sources(open_model=lambda _: model))
    with asgi.get_client(cast("asgi.ASGIApp", apps.main)) as client:
        until = time.monotonic() + PATIENCE_S
        while client.get("http://testserver/readyz").status_code != HTTPStatus.OK:
            assert time.monotonic() < until
    headers = {name: {"Authorization": f"Bearer {key.token}"} for name, key in keys.items()}
    return Served(apps=apps, headers={"nobody": {}, **headers})


async def _publish(tokenizer: TitleTokenizer, directory: Path) -> None:
    store = FilesStore(directory / "store", PATIENT)
    for number in range(2):
        await publish(store, edition(tokenizer, number), directory)
    await store.close()


@pytest.mark.parametrize("name", ["main", "operations"])
def test_every_answer_is_one_that_the_document_announces(served: Served, name: str) -> None:
    found = exchange(getattr(served.apps, name), served.headers["all"])
    assert not found.failures, "\n\n".join(found.failures[:5])
    assert found.statuses.keys() == NEEDED.keys() & _operations_of(getattr(served.apps, name).openapi())
    for operation, statuses in found.statuses.items():
        assert statuses & ADMITTED, operation


@pytest.mark.parametrize("caller", ["nobody", *SCOPES])
@pytest.mark.parametrize("name", ["main", "operations"])
def test_each_key_may_do_what_its_scope_says_and_nothing_else(served: Served, name: str, caller: str) -> None:
    found = exchange(getattr(served.apps, name), served.headers[caller], coverage={"enabled": False})
    assert not found.failures, "\n\n".join(found.failures[:5])
    for operation, statuses in found.statuses.items():
        needed = NEEDED[operation]
        if needed is None or caller == needed or (isinstance(needed, tuple) and caller in needed):
            assert statuses & ADMITTED_BY.get(operation, ADMITTED), operation
        else:
            assert statuses == {401 if caller == "nobody" else 403}, operation


@pytest.mark.parametrize("name", ["main", "operations"])
def test_the_document_is_whole(served: Served, name: str) -> None:
    document = getattr(served.apps, name).openapi()
    known = document["components"]["schemas"]
    assert {reference.rpartition("/")[2] for reference in _values_of("$ref", document)} <= known.keys()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            if path.startswith("/v1/"):
                assert operation["security"], (method, path)
                assert {"401", "403", "429"} <= operation["responses"].keys(), (method, path)
            if body := operation.get("requestBody"):
                reference = body["content"]["application/json"]["schema"]["$ref"]
                assert known[reference.rpartition("/")[2]]["examples"], (method, path)


def _operations_of(document: Any) -> set[str]:
    return {f"{method.upper()} {path}" for path, operations in document["paths"].items() for method in operations}


def _values_of(key: str, document: Any) -> Iterator[Any]:
    inside = document if isinstance(document, list) else []
    if isinstance(document, dict):
        inside = list(document.values())
        if key in document:
            yield document[key]
    for part in inside:
        yield from _values_of(key, part)
