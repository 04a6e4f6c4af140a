from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

import pytest
from bundles import reseal
from factories import EOS, tokenizer_definition
from igd_server.catalogues.refusals import Refusal, Refusals
from igd_server.observe.metrics import Metrics
from publishing import PATIENT, BreakableStore, WatchedEngine, add, deployed, edition, publish, serves, until

from igd_core.artifact import load_artifact, save_artifact
from igd_core.catalogue.tokenization import TitleTokenizer
from igd_core.engines.embedded.engine import TreeEngine
from igd_core.errors import ArtifactError, EngineError
from igd_core.ids import ItemIndex
from igd_core.search.query import Query
from igd_core.store.files import FilesStore
from igd_core.store.pointers import Pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from igd_server.catalogues.deployment import Deployment
    from igd_server.catalogues.following import LiveCatalogue

    from igd_core.artifact import Artifact
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.engines.fake import FakeSession
    from igd_core.search.session import Scoring
    from igd_core.store.trials import Trial


def following(deployment: Deployment) -> LiveCatalogue:
    live = deployment.live("films")
    assert live is not None
    return live


def flip_a_byte(part: Path) -> None:
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)


def cut_short(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-1])


def of_another_format(part: Path) -> None:
    body = json.loads(part.with_name("manifest.json").read_bytes())
    part.with_name("manifest.json").write_text(json.dumps({**body, "format_version": 99}))


def foreign(part: Path) -> None:
    part.with_name("manifest.json").write_text('{"format": "another"}')


def empty_manifest(part: Path) -> None:
    part.with_name("manifest.json").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_byte, "damaged"),
        (cut_short, "damaged"),
        (lambda part: part.unlink(), "damaged"),
        (empty_manifest, "damaged"),
        (lambda part: part.with_name("manifest.json").unlink(), "damaged"),
        (of_another_format, "format"),
        (foreign, "format"),
    ],
    ids=["flipped", "cut", "part missing", "empty manifest", "manifest missing", "newer format", "foreign"],
)
@pytest.mark.parametrize("part", ["trie.safetensors", "items.parquet"])
async def test_a_version_that_is_not_stored_as_it_was_published_is_refused(
    damage: Callable[[Path], None], reason: str, part: str, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    store, metrics = FilesStore(tmp_path / "store", PATIENT), Metrics()
    good = await publish(store, edition(tokenizer, 0), tmp_path)
    async with deployed(store, tmp_path / "cache", metrics=metrics) as deployment:
        bad = await add(store, edition(tokenizer, 1), tmp_path)
        (folder,) = (tmp_path / "store" / "artifacts" / "films").glob(f"{bad}*")
        damage(folder / part)
        await store.activate("films", bad)
        live = following(deployment)
        await until(lambda: bad in live.refusals)
        assert deployment.served().version == good
        assert deployment.why_not_ready() is None
        (refusal,) = live.refusals
        assert (refusal.version, refusal.reason, live.published) == (bad, reason, bad)
        assert refusal.detail
        better = await publish(store, edition(tokenizer, 2), tmp_path)
        await serves(deployment, better)
    await store.close()
    counted = metrics.render("")[0].decode()
    assert f'igd_refused_versions_total{{catalogue="films",reason="{reason}"}} 1.0' in counted


@pytest.fixture
def other_tokenizer() -> TitleTokenizer:
    definition = tokenizer_definition()
    definition["added_tokens"][-1]["content"] = "<another>"
    return TitleTokenizer(definition, EOS)


def of_a_larger_vocabulary(artifact: Artifact, directory: Path) -> Artifact:
    save_artifact(artifact, directory)
    part = "trie.safetensors"
    reseal(directory, part, (directory / part).read_bytes(), vocab_size=100_000)
    return load_artifact(directory)


@pytest.mark.parametrize("reason", ["tokenizer", "vocabulary"])
async def test_a_version_for_another_model_is_refused_and_the_real_engine_serves_on(
    reason: str,
    tokenizer: TitleTokenizer,
    other_tokenizer: TitleTokenizer,
    checkpoint_of: Callable[[str], Checkpoint],
    tmp_path: Path,
) -> None:
    store, engine = BreakableStore(), TreeEngine(checkpoint_of("llama-fp32"))
    good = await publish(store, edition(tokenizer, 0), tmp_path)
    async with deployed(store, tmp_path / "cache", engine) as deployment:
        if reason == "tokenizer":
            bad = await publish(store, edition(other_tokenizer, 1), tmp_path)
        else:
            odd = of_a_larger_vocabulary(edition(tokenizer, 1), tmp_path / "odd")
            bad = await store.add(tmp_path / "odd")
            assert odd.version == bad
            await store.activate("films", bad)
        live = following(deployment)
        await until(lambda: bad in live.refusals)
        assert next(iter(live.refusals)).reason == reason
        with deployment.lease() as served:
            found = await served.recommender.recommend(Query(history=[ItemIndex(1)], k=3))
        assert (found.query.version, len(found.items)) == (good, 3)
        assert engine.stats().versions == (good,)


class OneBadVersion(WatchedEngine):
    """Fails when it is to decode one version."""

    def __init__(self, version: str) -> None:
        super().__init__()
        self.bad = version

    async def open(self, version: str, prompt_ids: Sequence[int], scoring: Scoring) -> FakeSession:
        if version == self.bad:
            raise EngineError("out of memory")
        return await super().open(version, prompt_ids, scoring)


async def test_a_version_that_the_engine_fails_on_is_refused_and_unloaded(
    tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    store, odd = BreakableStore(), edition(tokenizer, 1)
    good = await publish(store, edition(tokenizer, 0), tmp_path)
    engine = OneBadVersion(odd.version)
    async with deployed(store, tmp_path / "cache", engine) as deployment:
        bad = await publish(store, odd, tmp_path)
        await until(lambda: bad in following(deployment).refusals)
        assert next(iter(following(deployment).refusals)).reason == "engine"
        assert engine.versions == {good}
        engine.bad = ""
        following(deployment).reload()
        await serves(deployment, bad)
        assert list(following(deployment).refusals) == []


async def test_a_mistake_of_ours_in_loading_a_version_leaves_the_old_one_serving(
    tokenizer: TitleTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, odd = BreakableStore(), edition(tokenizer, 1)
    good = await publish(store, edition(tokenizer, 0), tmp_path)

    def read(directory: Path) -> Artifact:
        if directory.name == odd.version:
            raise ZeroDivisionError("private to the log")
        return load_artifact(directory)

    async with deployed(store, tmp_path / "cache", read_artifact=read) as deployment:
        bad = await publish(store, odd, tmp_path)
        await until(lambda: bad in following(deployment).refusals)
        assert deployment.served().version == good
        (refusal,) = following(deployment).refusals
    assert (refusal.reason, refusal.detail) == ("unforeseen", "ZeroDivisionError")
    assert "private to the log" in caplog.text


async def test_a_refused_version_is_reported_once_and_tried_again_only_when_told_or_when_the_pointer_moves(
    tokenizer: TitleTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, metrics, tries = BreakableStore(), Metrics(), []
    good, odd = edition(tokenizer, 0), edition(tokenizer, 1)

    def read(directory: Path) -> Artifact:
        if directory.name == odd.version:
            tries.append(directory.name)
            raise ArtifactError("trie.safetensors: altered")
        return load_artifact(directory)

    def refused_lines() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.msg == "version_refused"]

    def counted(refusals: int) -> bool:
        line = f'igd_refused_versions_total{{catalogue="films",reason="damaged"}} {refusals}.0'
        return line in metrics.render("")[0].decode()

    await publish(store, good, tmp_path)
    async with deployed(store, tmp_path / "cache", metrics=metrics, read_artifact=read) as deployment:
        bad = await publish(store, odd, tmp_path)
        live = following(deployment)
        await until(lambda: bad in live.refusals)
        seen = store.looks
        await until(lambda: store.looks > seen + 5)
        assert len(tries) == len(refused_lines()) == 1
        live.reload()
        await until(lambda: counted(2))  # which is after the try
        await store.activate("films", good.version)
        await until(lambda: live.published == good.version)
        await store.activate("films", bad)
        await until(lambda: counted(3))
        assert len(tries) == 3
        assert deployment.served().version == good.version


@pytest.mark.parametrize("fault", ["broken", "brittle"])
async def test_what_was_asked_to_be_tried_again_while_the_store_was_away_is_tried_when_it_is_back(
    fault: str, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    store, odd, damaged = BreakableStore(), edition(tokenizer, 1), [True]

    def read(directory: Path) -> Artifact:
        if directory.name == odd.version and damaged:
            raise ArtifactError("trie.safetensors: altered")
        return load_artifact(directory)

    await publish(store, edition(tokenizer, 0), tmp_path)
    async with deployed(store, tmp_path / "cache", read_artifact=read) as deployment:
        bad = await publish(store, odd, tmp_path)
        live = following(deployment)
        await until(lambda: bad in live.refusals)
        setattr(store, fault, True)
        damaged.clear()
        live.reload()
        await until(lambda: live.trouble is not None)
        seen = store.looks
        await until(lambda: store.looks > seen + 2)
        store.broken = store.brittle = False
        await serves(deployment, bad)


async def test_what_is_asked_to_be_tried_again_during_a_takeover_that_the_store_interrupts_is_tried_after_it(
    tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    class Gated(BreakableStore):
        """Is asked about a version's trial, and goes away before it tells."""

        def __init__(self) -> None:
            super().__init__()
            self.asked, self.gate = asyncio.Event(), asyncio.Event()
            self.gate.set()

        async def trial(self, catalogue: str, version: str) -> Trial:
            self.asked.set()
            await self.gate.wait()
            self._reach()
            return await super().trial(catalogue, version)

    store, odd = Gated(), edition(tokenizer, 1)
    await publish(store, edition(tokenizer, 0), tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        live = following(deployment)
        bad = await add(store, odd, tmp_path)
        store.gate.clear()
        store.asked.clear()
        await store.activate("films", bad)
        await store.asked.wait()  # the takeover has begun
        await store.begin_trial("films", bad, "other:1", 3600)
        await store.end_trial("films", bad, "other:1", "refused", "of something")
        live.reload()
        store.broken = True
        store.gate.set()
        await until(lambda: live.trouble is not None)
        store.broken = False
        await serves(deployment, bad)


async def test_a_damaged_version_that_is_published_again_is_served_when_told_to_try_it(
    tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    store, odd = BreakableStore(), edition(tokenizer, 1)
    await publish(store, edition(tokenizer, 0), tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        bad = await add(store, odd, tmp_path)
        chunks = store._shelves["films"].versions[bad].chunks
        whole = dict(chunks)
        chunks.update({chunk: data[:-1] for chunk, data in chunks.items()})
        await store.activate("films", bad)
        await until(lambda: bad in following(deployment).refusals)
        assert await publish(store, odd, tmp_path) == bad
        following(deployment).reload()
        await serves(deployment, bad)
        assert store._shelves["films"].versions[bad].chunks == whole


async def test_a_damaged_version_that_is_published_again_is_served_once_it_is_allowed(
    tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    store, odd = BreakableStore(), edition(tokenizer, 1)
    await publish(store, edition(tokenizer, 0), tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        bad = await add(store, odd, tmp_path)
        chunks = store._shelves["films"].versions[bad].chunks
        chunks.update({chunk: data[:-1] for chunk, data in chunks.items()})
        await store.activate("films", bad)
        await until(lambda: bad in following(deployment).refusals)
        assert await publish(store, odd, tmp_path) == bad
        await store.allow("films", bad)
        await serves(deployment, bad)


async def test_a_pointer_to_a_version_that_is_not_stored_is_refused(tokenizer: TitleTokenizer, tmp_path: Path) -> None:
    store = BreakableStore()
    good = await publish(store, edition(tokenizer, 0), tmp_path)
    async with deployed(store, tmp_path / "cache") as deployment:
        store._shelves["films"].pointer = Pointer(current="0" * 16)
        await until(lambda: "0" * 16 in following(deployment).refusals)
        store._shelves["films"].pointer = Pointer(current="../../etc/passwd")
        await until(lambda: len(list(following(deployment).refusals)) == 2)
        assert [refusal.reason for refusal in following(deployment).refusals] == ["missing", "missing"]
        assert deployment.served().version == good


async def test_a_server_that_starts_on_a_refused_version_serves_the_one_before(
    tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    store, odd = BreakableStore(), edition(tokenizer, 1)
    good = await publish(store, edition(tokenizer, 0), tmp_path)
    bad = await publish(store, odd, tmp_path)
    async with deployed(store, tmp_path / "cache", OneBadVersion(bad)) as deployment:
        assert deployment.served().version == good
        assert deployment.why_not_ready() is None
        assert [refusal.version for refusal in following(deployment).refusals] == [bad]


async def test_a_server_that_starts_with_all_versions_refused_says_so(
    tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    store, only = BreakableStore(), edition(tokenizer, 0)
    bad = await publish(store, only, tmp_path)
    async with deployed(store, tmp_path / "cache", OneBadVersion(bad)) as deployment:
        assert deployment.why_not_ready() == f"catalogue 'films': version {bad} cannot be served (engine)"
        await serves(deployment, await publish(store, edition(tokenizer, 1), tmp_path))
        assert deployment.why_not_ready() is None


def test_the_latest_refusals_are_kept_one_a_version() -> None:
    refusals = Refusals()
    for number in [*range(12), 5]:
        refusals.add(Refusal.of(f"v{number}", ArtifactError(f"manifest.json: again {number}\nsecond line")))
    kept: Iterator[Refusal] = iter(refusals)
    assert [refusal.version for refusal in kept] == ["v5", "v11", "v10", "v9", "v8", "v7", "v6", "v4"]
    assert next(iter(refusals)).detail == "manifest.json: again 5"
    assert len(Refusal.of("v", ArtifactError("x" * 10_000)).detail) == 300
