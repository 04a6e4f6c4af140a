"""Servers that share one Redis and name their models alike: no answer of one model is ever given for another's.

A rolling update puts another model where the one before lay, and for a while old servers and new ones answer beside
each other. Whatever of the model changes, what one of them keeps the other must not find.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from adapters import save_adapter
from factories import EOS, tiny_checkpoint
from films import film_artifact
from igd_server.app import Sources, create_apps
from igd_server.catalogues.opening import OpenedModel
from igd_server.settings import Settings
from patience import PATIENCE_S
from redis_server import RedisServer
from safetensors.torch import load_file, save_file

from igd_core.artifact import save_artifact
from igd_core.engines.fake import FakeEngine
from igd_core.engines.open import EngineOptions, open_engine
from igd_core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from igd_server.app import Apps

    from igd_core.catalogue.tokenization import TitleTokenizer

BODY = {"history": ["1", "3"], "k": 5}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, definition: dict[str, Any], tokenizer: TitleTokenizer) -> Path:
    """A folder with an artifact, a model and an adapter of it."""
    root: Path = tmp_path_factory.mktemp("first")
    tiny_checkpoint("llama-fp32", tokenizer).model.save_pretrained(root / "current")
    (root / "current" / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (root / "current" / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}), encoding="utf-8")
    save_adapter(root / "lora", root / "current", seed=1)
    save_artifact(film_artifact(tokenizer), root / "films")
    return root


@pytest.fixture
def second(first: Path, tmp_path: Path) -> Path:
    """A copy of it, to change: whatever lies in it has the same name."""
    return shutil.copytree(first, tmp_path / "second")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as running:
        yield running


@contextlib.asynccontextmanager
async def server(root: Path, sources: Sources | None = None, **settings: Any) -> AsyncIterator[Apps]:
    chosen: dict[str, Any] = {"artifact": root / "films", "model": str(root / "current"), "device": "cpu", **settings}
    apps = create_apps(Settings(**chosen), sources)
    try:
        async with apps.main.router.lifespan_context(apps.main):
            async with asyncio.timeout(60):
                while apps.deployment.why_not_ready() is not None:
                    assert apps.deployment.failure is None
                    await asyncio.sleep(0.01)
            yield apps
    finally:
        await apps.store.close()


async def ask(apps: Apps, **more: Any) -> dict[str, Any]:
    transport = httpx.ASGITransport(app=apps.main)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = (await client.post("/v1/recommendations", json={**BODY, **more})).json()
    assert answer["source"] == "model", answer
    found: dict[str, Any] = answer
    return found


async def kept(redis: RedisServer, count: int) -> None:
    """Wait for what is written behind an answer."""
    async with asyncio.timeout(PATIENCE_S):
        while len(redis.cli("--scan", "--pattern", "*:result:result:*").split()) < count:  # noqa: ASYNC110 - Redis's
            await asyncio.sleep(0.01)


def other_weights(root: Path) -> dict[str, Any]:
    path = root / "current" / "model.safetensors"
    seen = path.stat()
    weights = load_file(path)
    name = "model.layers.0.mlp.down_proj.weight"
    save_file({**weights, name: weights[name].flip(0).contiguous()}, path, metadata={"format": "pt"})
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))  # as `cp -p` and `rsync -t` leave it
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (seen.st_size, seen.st_mtime_ns)
    return {}


def other_configuration(root: Path) -> dict[str, Any]:
    """The same weights, turned otherwise by position."""
    path = root / "current" / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"]["rope_theta"] = 3.0
    path.write_text(json.dumps(config), encoding="utf-8")
    return {}


def other_dtype(_: Path) -> dict[str, Any]:
    return {"dtype": "bfloat16"}


def other_adapter(root: Path) -> dict[str, Any]:
    shutil.rmtree(root / "lora")
    save_adapter(root / "lora", root / "current", seed=2)
    return {}


def other_scale_of_the_adapter(root: Path) -> dict[str, Any]:
    """The same matrices, added otherwise."""
    path = root / "lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 32}), encoding="utf-8")
    return {}


CHANGES = [other_weights, other_configuration, other_dtype, other_adapter, other_scale_of_the_adapter]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_answers_of_models_with_one_name_are_never_mixed(
    first: Path, second: Path, redis: RedisServer, change: Callable[[Path], dict[str, Any]]
) -> None:
    about_the_adapter = "adapter" in change.__name__
    changed = change(second)

    def settings(root: Path) -> dict[str, Any]:
        if not about_the_adapter:
            return {}
        return {"adapters": f"tuned={root / 'lora'}", "variants": [{"name": "tuned", "adapter": "tuned"}]}

    async with (
        server(first, store=redis.url, **settings(first)) as old,
        server(second, store=redis.url, **settings(second), **changed) as new,
        server(first, store=redis.url, **settings(first)) as old_too,
        server(second, **settings(second), **changed) as alone,
    ):
        one = await ask(old)
        await kept(redis, 1)
        other = await ask(new)
        await kept(redis, 2)
        again, expected = await ask(old_too), await ask(alone)
    assert one["model"] == other["model"] == "current"
    assert one["version"] == other["version"]
    assert [one["cached"], other["cached"], again["cached"]] == [False, False, True]
    assert one["model_fingerprint"] == again["model_fingerprint"] != other["model_fingerprint"]
    assert one["items"] == again["items"]
    assert other["items"] == expected["items"] != one["items"]


async def test_another_engine_under_the_same_name_finds_nothing(first: Path, redis: RedisServer) -> None:
    class Namesake(FakeEngine):
        def __init__(self) -> None:
            super().__init__()
            self.identity = replace(self.identity, name="current")

    sources = Sources(
        open_model=lambda _: OpenedModel(engine=Namesake(), token_texts=lambda _, ids: list(map(str, ids)))
    )
    async with server(first, store=redis.url) as tree, server(first, sources, store=redis.url) as fake:
        one = await ask(tree)
        await kept(redis, 1)
        other = await ask(fake)
        again = await ask(fake)
    assert one["model"] == other["model"] == "current"
    assert [one["cached"], other["cached"], again["cached"]] == [False, False, True]
    assert one["items"] != other["items"]


async def test_an_adapter_and_its_base_are_two_models_and_a_copy_is_the_same(
    first: Path, second: Path, redis: RedisServer
) -> None:
    variants = [{"name": "plain"}, {"name": "tuned", "adapter": "a"}, {"name": "other", "adapter": "b"}]
    given: dict[str, Any] = {"adapters": f"a={first / 'lora'},b={second / 'lora'}", "variants": variants}
    async with server(first, store=redis.url, **given) as apps:
        plain, tuned, twin = [await ask(apps, variant=name) for name in ("plain", "tuned", "other")]
    await kept(redis, 2)
    async with server(second, store=redis.url) as moved:
        elsewhere = await ask(moved)
        transport = httpx.ASGITransport(app=moved.main)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            (told,) = (await client.get("/v1/catalogues")).json()["catalogues"]
            metrics = (await client.get("/metrics")).text
    assert plain["items"] != tuned["items"] == twin["items"]
    assert plain["model_fingerprint"] != tuned["model_fingerprint"] == twin["model_fingerprint"]
    assert [plain["cached"], tuned["cached"], twin["cached"], elsewhere["cached"]] == [False, False, True, True]
    assert elsewhere["items"] == plain["items"]
    assert told["model_fingerprint"] == elsewhere["model_fingerprint"] == plain["model_fingerprint"]
    labels = f'adapter="",engine="tree",fingerprint="{told["model_fingerprint"]}",model="current"'
    assert f"igd_model_info{{{labels}}} 1.0" in metrics


def test_a_model_that_changes_while_it_is_loaded_is_refused(second: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from igd_core.engines.embedded import checkpoint

    load = checkpoint.load_checkpoint

    def loaded_half_before_half_after(*args: Any, **options: Any) -> Any:
        found = load(*args, **options)
        other_configuration(second)
        return found

    monkeypatch.setattr(checkpoint, "load_checkpoint", loaded_half_before_half_after)
    with pytest.raises(ModelError, match=r"current: changed while the model was being loaded from it"):
        open_engine(EngineOptions(model=second / "current", device="cpu"))


async def test_a_link_that_moves_while_the_model_is_loaded_gives_all_of_one_model(
    first: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from igd_core.engines.embedded import checkpoint

    other_weights(second)
    link = tmp_path / "served"
    link.symlink_to(first / "current")
    load = checkpoint._load_model

    def moved_meanwhile(*args: Any) -> Any:
        link.unlink(missing_ok=True)
        link.symlink_to(second / "current")
        return load(*args)

    monkeypatch.setattr(checkpoint, "_load_model", moved_meanwhile)
    opened = open_engine(EngineOptions(model=link, device="cpu"))
    monkeypatch.undo()
    before, after = (open_engine(EngineOptions(model=root / "current", device="cpu")) for root in (first, second))
    engines = [each.engine for each in (opened, before, after)]
    for engine in engines:
        await engine.close()
    assert engines[0].identity.fingerprint() == engines[1].identity.fingerprint() != engines[2].identity.fingerprint()
    assert (engines[0].model_id, engines[1].model_id) == ("served", "current")
