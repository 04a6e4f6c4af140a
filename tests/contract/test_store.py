"""What every store promises (`igd_core.store.base`): one suite, run against each implementation."""

from __future__ import annotations

import asyncio
import itertools
import re
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pytest
from bundles import contents
from factories import make_catalogue
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S
from publishing import model_folder
from redis_server import RedisServer
from stores import another_version, cluster_url, event, one_node_cluster, until, version_of

from igd_core.artifact import BuildOptions, build_artifact, load_artifact, save_artifact
from igd_core.errors import ArtifactError, InputError, StoreUnavailable
from igd_core.event_kinds import KIND
from igd_core.scorers.options import ScorerOptions
from igd_core.store import publishing
from igd_core.store.base import RECORD_LISTS, Forgotten, HistoryLimits, Store, StoreOptions
from igd_core.store.events import Event
from igd_core.store.memory import MemoryStore
from igd_core.store.names import MODELS
from igd_core.store.open import open_store
from igd_core.store.published_models import prune_models, staged
from igd_core.store.trials import Trial

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.store.trials import Verdict

KINDS = ("memory", "files", "redis", "cluster")
_numbers = itertools.count()


class OpenView(Protocol):
    """Opens what the test stores in, once more: as another process would, but for memory."""

    def __call__(self, limits: HistoryLimits | None = None) -> Store: ...


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with one_node_cluster(tmp_path_factory.mktemp("cluster")) as server:
        yield server


@pytest.fixture
async def view(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenView]:
    opened: list[Store] = []
    options = StoreOptions(prefix=f"test-{next(_numbers)}", timeout_s=PATIENCE_S, chunk_bytes=1024)
    if kind == "redis":
        url = request.getfixturevalue("redis").url
    elif kind == "cluster":
        url = cluster_url(request.getfixturevalue("cluster"))
    else:
        url = {"memory": "memory://", "files": f"file://{tmp_path}/store"}[kind]

    def open_view(limits: HistoryLimits | None = None) -> Store:
        if limits is None and opened and isinstance(opened[0], MemoryStore):
            return opened[0]
        opened.append(open_store(url, options=replace(options, history=limits or options.history)))
        return opened[-1]

    yield open_view
    for store in opened:
        await store.close()


@pytest.fixture
def store(view: OpenView) -> Store:
    return view()


@pytest.fixture(scope="module")
def versions(pristine_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five versions of a catalogue named ``small``."""
    parent = tmp_path_factory.mktemp("versions")
    return [another_version(pristine_bundle, parent / str(i), alpha=i / 10) for i in range(5)]


@pytest.fixture(scope="module")
def scored_bundle(tokenizer: TitleTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = BuildOptions(name="small", scorer=ScorerOptions(kind="transitions"))
    sequences = [np.arange(24, dtype=np.int32)]
    directory: Path = tmp_path_factory.mktemp("scored") / "bundle"
    save_artifact(build_artifact(make_catalogue(24), tokenizer, options, sequences=sequences), directory)
    return directory


async def published(store: Store, *bundles: Path) -> list[str]:
    """Their versions, in the order of publication, the last one current."""
    for bundle in bundles:
        await store.activate("small", await store.add(bundle))
    return [version_of(bundle) for bundle in bundles]


# Artifacts


async def test_a_published_model_comes_back_byte_for_byte_and_is_no_catalogue(
    store: Store, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    folder = model_folder(tmp_path / "tuned", "w" * 3000, tokenizer_sha256=tokenizer.fingerprint)  # three chunks
    with staged(folder.directory, list(folder.manifest.parts), folder.manifest.to_bytes()) as stage:
        model = await store.add(stage, catalogue="small")
        assert model == folder.manifest.version
        fetched = await store.fetch(MODELS, model, tmp_path / "cache")
        assert contents(fetched) == contents(stage)
    assert await store.catalogues() == []
    assert [(each.version, each.model) for each in await store.versions(MODELS)] == [(model, None)]
    with pytest.raises(InputError, match="catalogue: '_models' is not"):
        await store.activate(MODELS, model)
    with pytest.raises(InputError, match="catalogue: '_models' is not"):
        await store.roll_back(MODELS, model)
    with pytest.raises(InputError, match="model 0123456789abcdef is not stored"):
        await store.fetch(MODELS, "0123456789abcdef", tmp_path / "cache")


async def test_a_version_names_its_model_and_a_model_that_none_names_is_pruned(
    store: Store, versions: Sequence[Path], tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    first, second = (
        model_folder(tmp_path / name, name, tokenizer_sha256=tokenizer.fingerprint) for name in ("first", "second")
    )
    named = await publishing.publish(store, artifact=versions[0], model=first)
    assert named.model == first.manifest.version
    assert named.version != version_of(versions[0])
    kept = await publishing.publish(store, artifact=versions[1])
    other = await publishing.publish(store, artifact=None, catalogue="small", model=second)
    again = await publishing.publish(store, artifact=None, catalogue="small", model=first.manifest.version)
    own = await publishing.publish(store, artifact=versions[2], model="own")
    assert kept.model == again.model == first.manifest.version
    assert again.version == kept.version
    assert own.version == version_of(versions[2])
    listed = {each.version: each.model for each in await store.versions("small")}
    assert listed == {each.version: each.model for each in (named, kept, other, own)}
    assert set(await store.prune("small", keep=1)) == {other.version, named.version}
    assert await prune_models(store) == []  # publishers hold it for an hour
    for stored in await store.versions(MODELS):
        for holder in stored.holders:
            await store.hold(MODELS, stored.version, holder, 0.001)
    await asyncio.sleep(0.01)
    assert await prune_models(store) == [second.manifest.version]
    assert [each.version for each in await store.versions(MODELS)] == [first.manifest.version]
    with pytest.raises(InputError, match=f"model {second.manifest.version} is not stored"):
        await publishing.publish(store, artifact=None, catalogue="small", model=second.manifest.version)


async def test_a_model_alone_is_published_for_a_catalogue_that_has_a_version(store: Store, tmp_path: Path) -> None:
    model = model_folder(tmp_path / "m", "w", tokenizer_sha256="0" * 64)
    with pytest.raises(InputError, match="catalogue: nothing is published under 'small'"):
        await publishing.publish(store, artifact=None, catalogue="small", model=model)
    with pytest.raises(InputError, match="artifact: give"):
        await publishing.publish(store, artifact=None, model=model)


async def test_a_version_comes_back_byte_for_byte(store: Store, versions: Sequence[Path], tmp_path: Path) -> None:
    version = await store.add(versions[0])
    fetched = await store.fetch("small", version, tmp_path / "deeper" / "cache")
    assert fetched == tmp_path / "deeper" / "cache" / version
    assert contents(fetched) == contents(versions[0])
    assert [path.name for path in fetched.parent.iterdir()] == [version]
    assert load_artifact(fetched).version == version == version_of(versions[0])


async def test_a_version_with_a_scorer_comes_back_byte_for_byte_and_is_pruned_with_it(
    store: Store, versions: Sequence[Path], scored_bundle: Path, tmp_path: Path
) -> None:
    version, *later = await published(store, scored_bundle, *versions[:2])
    fetched = await store.fetch("small", version, tmp_path / "cache")
    assert "scorer.safetensors" in contents(fetched)
    assert contents(fetched) == contents(scored_bundle)
    assert await store.prune("small", keep=2) == [version]
    assert [stored.version for stored in await store.versions("small")] == later[::-1]


async def test_other_processes_see_what_was_published(view: OpenView, versions: Sequence[Path], tmp_path: Path) -> None:
    first, second = await published(view(), *versions[:2])
    other = view()
    assert await other.current("small") == second
    assert await other.previous("small") == first
    assert await other.catalogues() == ["small"]
    assert contents(await other.fetch("small", second, tmp_path)) == contents(versions[1])


async def test_nothing_is_current_until_it_is_activated(store: Store, versions: Sequence[Path]) -> None:
    assert await store.catalogues() == []
    assert await store.versions("small") == []
    version = await store.add(versions[0])
    assert await store.current("small") is None
    await store.activate("small", version)
    assert await store.current("small") == version
    assert await store.previous("small") is None


async def test_rolling_back_and_forth_swaps_current_and_previous(store: Store, versions: Sequence[Path]) -> None:
    first, second = await published(store, *versions[:2])
    await store.activate("small", first)
    assert (await store.current("small"), await store.previous("small")) == (first, second)
    await store.activate("small", second)
    assert (await store.current("small"), await store.previous("small")) == (second, first)


async def where(store: Store) -> tuple[str | None, str | None]:
    return await store.current("small"), await store.previous("small")


async def test_each_roll_back_goes_one_further_back_and_none_returns_to_what_was_rolled_back(
    view: OpenView, versions: Sequence[Path]
) -> None:
    store = view()
    first, second, third = await published(store, *versions[:3])
    move = await store.roll_back("small")
    assert (move.version, move.before) == (second, third)
    assert await where(view()) == (second, first), "as another process sees it"
    assert (await view().roll_back("small")).version == first
    with pytest.raises(InputError, match="catalogue 'small': no version was current before this one; name one"):
        await store.roll_back("small")
    assert await where(store) == (first, None)
    assert (await store.roll_back("small", third)).version == third, "told so by name"
    assert await where(store) == (third, first)


async def test_a_roll_back_by_name_forgets_what_came_after_and_what_was_left(
    store: Store, versions: Sequence[Path]
) -> None:
    first, second, third, bad = await published(store, *versions[:4])
    await store.roll_back("small", second)
    assert await where(store) == (second, first)
    await store.roll_back("small", second)
    assert await where(store) == (second, first)
    await store.roll_back("small")
    assert await where(store) == (first, None)
    assert {third, bad} < {stored.version for stored in await store.versions("small")}


async def test_a_named_version_that_was_never_current_is_a_step_forward_if_it_is_newer_and_back_if_it_is_older(
    store: Store, versions: Sequence[Path]
) -> None:
    never = await store.add(versions[0])
    first, bad = await published(store, *versions[1:3])
    staged = await store.add(versions[3])
    await store.roll_back("small", staged)
    assert await where(store) == (staged, bad)
    await store.roll_back("small", never)
    assert await where(store) == (never, None)
    await store.activate("small", first)
    assert await where(store) == (first, never)


async def test_a_version_that_was_rolled_back_and_published_again_can_be_left_again(
    store: Store, versions: Sequence[Path]
) -> None:
    first, second = await published(store, *versions[:2])
    await store.roll_back("small")
    await published(store, versions[1])
    assert await where(store) == (second, first)
    await store.roll_back("small")
    assert await where(store) == (first, None)


async def test_a_roll_back_passes_by_what_has_been_pruned(store: Store, versions: Sequence[Path]) -> None:
    first, second, third = await published(store, *versions[:3])
    assert await store.prune("small", keep=0) == [first]
    assert (await store.roll_back("small")).version == second
    with pytest.raises(InputError, match="no version was current before"):
        await store.roll_back("small")
    assert third in await store.prune("small", keep=0)


async def test_a_roll_back_passes_by_what_servers_do_not_take_unless_told_so_by_name(
    view: OpenView, versions: Sequence[Path]
) -> None:
    store = view()
    good, dead, dead_too, current = await published(store, *versions[:4])
    await store.begin_trial("small", dead, "server-1", 60)
    await store.end_trial("small", dead, "server-1", "died", "killed")
    await store.end_trial("small", dead_too, "server-2", "died", "no room")
    await store.end_trial("small", good, "server-2", "refused", "may be healed")
    assert await where(view()) == (current, good), "as another process sees it"
    assert [stored.version for stored in await store.versions("small") if stored.is_previous] == [good]
    assert good not in await store.prune("small", keep=3)
    move = await view().roll_back("small")
    assert (move.version, move.before, move.trial.bars) == (good, current, False)
    assert {version: str(trial) for version, trial in move.passed_by.items()} == {
        dead_too: "died on server-2 (no room)",
        dead: "died on server-1 (killed)",
    }
    assert await where(store) == (good, None)
    by_name = await store.roll_back("small", dead)
    assert (by_name.version, str(by_name.trial)) == (dead, "died on server-1 (killed)")
    assert by_name.trial.bars


async def test_a_roll_back_to_nothing_but_dead_versions_moves_nothing_and_names_them(
    store: Store, versions: Sequence[Path]
) -> None:
    dead, current = await published(store, *versions[:2])
    await store.end_trial("small", dead, "server-1", "died", "killed")
    assert await store.previous("small") is None
    with pytest.raises(InputError, match=rf"servers take no version .*: {dead} died on server-1 \(killed\); name ano"):
        await store.roll_back("small")
    assert await where(store) == (current, None)
    await store.allow("small", dead)
    assert (await store.roll_back("small")).version == dead


async def test_those_who_listen_hear_of_a_roll_back(store: Store, versions: Sequence[Path]) -> None:
    await published(store, *versions[:2])
    hearing = asyncio.ensure_future(anext(store.changes()))
    names = iter(["0", "1"] * 1000)

    async def heard() -> bool:  # a listener hears nothing before it listens
        if hearing.done():
            return True
        await store.roll_back("small", version_of(versions[int(next(names))]))
        await asyncio.wait({hearing}, timeout=0.05)
        return hearing.done()

    await until(heard)
    assert hearing.result() == "small"


async def test_activating_what_is_current_leaves_the_previous_one(store: Store, versions: Sequence[Path]) -> None:
    first, second = await published(store, *versions[:2])
    await store.activate("small", second)
    assert (await store.current("small"), await store.previous("small")) == (second, first)


async def test_a_pointer_only_ever_names_a_stored_version(store: Store, versions: Sequence[Path]) -> None:
    (first,) = await published(store, versions[0])
    for catalogue, version in (("small", "0" * 16), ("other", first)):
        with pytest.raises(InputError, match=f"version {version} of catalogue '{catalogue}' is not stored"):
            await store.activate(catalogue, version)
    assert await store.current("small") == first
    assert await store.current("other") is None


async def test_versions_are_listed_newest_first_with_what_uses_them(store: Store, versions: Sequence[Path]) -> None:
    names = await published(store, *versions[:3])
    await store.hold("small", names[0], "server-b:8000", 60)
    await store.hold("small", names[0], "server-a@pod", 60)
    await store.hold("small", names[0], "server-a@pod", 60)
    listed = await store.versions("small")
    assert [stored.version for stored in listed] == names[::-1]
    assert [stored.is_current for stored in listed] == [True, False, False]
    assert [stored.is_previous for stored in listed] == [False, True, False]
    assert [stored.holders for stored in listed] == [(), (), ("server-a@pod", "server-b:8000")]
    assert {stored.size_bytes for stored in listed} == {sum(map(len, contents(path).values())) for path in versions[:3]}
    assert all(stored.stored_at.utcoffset() is not None for stored in listed)


async def test_adding_a_version_again_changes_nothing(store: Store, versions: Sequence[Path]) -> None:
    first, second = await published(store, *versions[:2])
    before = await store.versions("small")
    assert await store.add(versions[0]) == first
    assert await store.versions("small") == before
    assert await store.current("small") == second


async def test_the_same_version_added_by_many_at_once_is_stored_once(
    view: OpenView, versions: Sequence[Path], tmp_path: Path
) -> None:
    stores = [view() for _ in range(4)]
    (version,) = set(await asyncio.gather(*(store.add(versions[0]) for store in stores for _ in range(2))))
    assert [stored.version for stored in await stores[0].versions("small")] == [version]
    assert contents(await stores[0].fetch("small", version, tmp_path)) == contents(versions[0])


async def test_catalogues_are_apart_and_may_be_named_otherwise_than_their_artifact(
    store: Store, versions: Sequence[Path], tmp_path: Path
) -> None:
    version = await store.add(versions[0], catalogue="games-canary_2.1")
    assert await store.catalogues() == ["games-canary_2.1"]
    assert await store.versions("small") == []
    with pytest.raises(InputError, match="is not stored"):
        await store.fetch("small", version, tmp_path / "cache")
    assert not (tmp_path / "cache" / version).exists()
    await store.add(versions[1])
    assert await store.catalogues() == ["games-canary_2.1", "small"]


async def test_a_damaged_bundle_is_not_stored(store: Store, bundle: Path) -> None:
    (bundle / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match=r"items\.parquet"):
        await store.add(bundle)
    assert await store.catalogues() == []
    assert await store.versions("small") == []


async def test_a_copy_that_is_there_is_not_copied_again(store: Store, versions: Sequence[Path], tmp_path: Path) -> None:
    version = await store.add(versions[0])
    fetched = await store.fetch("small", version, tmp_path)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in fetched.iterdir()}
    await store.fetch("small", version, tmp_path)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in fetched.iterdir()} == before


@pytest.mark.parametrize("part", ["manifest.json", "trie.safetensors", "items.parquet"])
async def test_a_damaged_copy_is_replaced(store: Store, versions: Sequence[Path], tmp_path: Path, part: str) -> None:
    version = await store.add(versions[0])
    fetched = await store.fetch("small", version, tmp_path / "cache")
    data = bytearray((fetched / part).read_bytes())
    data[len(data) // 2] ^= 1
    (fetched / part).write_bytes(data)
    assert contents(await store.fetch("small", version, tmp_path / "cache")) == contents(versions[0])
    assert [path.name for path in fetched.parent.iterdir()] == [version]


async def test_many_may_fetch_into_one_cache_at_once(view: OpenView, versions: Sequence[Path], tmp_path: Path) -> None:
    stores = [view() for _ in range(4)]
    version = await stores[0].add(versions[0])
    fetched = await asyncio.gather(*(store.fetch("small", version, tmp_path / "cache") for store in stores))
    assert set(fetched) == {tmp_path / "cache" / version}
    assert contents(fetched[0]) == contents(versions[0])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [version]


async def test_what_is_not_stored_cannot_be_fetched(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="version 0123456789abcdef of catalogue 'small' is not stored"):
        await store.fetch("small", "0123456789abcdef", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


async def test_pruning_keeps_the_newest(store: Store, versions: Sequence[Path], tmp_path: Path) -> None:
    names = await published(store, *versions)
    assert sorted(await store.prune("small", keep=3)) == sorted(names[:2])
    assert [stored.version for stored in await store.versions("small")] == names[:1:-1]
    assert await store.prune("small", keep=3) == []
    with pytest.raises(InputError, match="is not stored"):
        await store.fetch("small", names[0], tmp_path)
    assert contents(await store.fetch("small", names[2], tmp_path)) == contents(versions[2])


async def test_pruning_never_takes_the_current_the_previous_or_a_held_version(
    store: Store, versions: Sequence[Path]
) -> None:
    names = await published(store, *versions)
    await store.hold("small", names[2], "server-1", 60)
    await store.activate("small", names[0])
    assert sorted(await store.prune("small", keep=0)) == sorted([names[1], names[3]])
    assert {stored.version for stored in await store.versions("small")} == {names[0], names[2], names[4]}
    assert await store.prune("unheard-of", keep=0) == []
    with pytest.raises(InputError, match="keep: -1"):
        await store.prune("small", keep=-1)


async def test_a_hold_ends_unless_it_is_renewed(store: Store, versions: Sequence[Path]) -> None:
    held, *_ = await published(store, *versions[:3])
    await store.hold("small", held, "brief", 0.1)
    await store.hold("small", held, "long", 60)

    async def brief_has_ended() -> bool:
        return (await store.versions("small"))[-1].holders == ("long",)

    await until(brief_has_ended)
    await store.hold("small", held, "long", 0.01)

    async def can_be_pruned() -> bool:
        return await store.prune("small", keep=0) == [held]

    await until(can_be_pruned)


async def test_a_pruned_version_can_be_published_again(store: Store, versions: Sequence[Path], tmp_path: Path) -> None:
    names = await published(store, *versions[:3])
    assert await store.prune("small", keep=0) == [names[0]]
    await published(store, versions[0])
    assert await store.current("small") == names[0]
    assert contents(await store.fetch("small", names[0], tmp_path)) == contents(versions[0])
    assert (await store.versions("small"))[0].version == names[0]


async def test_one_server_tries_a_version_and_says_how_it_went(view: OpenView, versions: Sequence[Path]) -> None:
    store, other = view(), view()
    version = await store.add(versions[0])
    assert await store.trial("small", version) == Trial()
    mine = await store.begin_trial("small", version, "one:1", 30)
    assert (mine.state, mine.holder) == ("trying", "one:1")
    theirs = await other.begin_trial("small", version, "two:1", 30)
    assert (theirs.state, theirs.holder) == ("trying", "one:1")
    assert (await store.begin_trial("small", version, "one:1", 30)).holder == "one:1"
    passed = await store.end_trial("small", version, "one:1", "passed")
    assert passed == await other.trial("small", version) == Trial(state="passed", holder="one:1")
    assert (await other.begin_trial("small", version, "two:1", 30)).state == "passed"
    verdicts: tuple[Verdict, ...] = ("refused", "died", "left")
    for verdict in verdicts:
        assert (await other.end_trial("small", version, "two:1", verdict, "late")).state == "passed"


async def test_a_server_that_is_not_heard_of_again_is_taken_for_dead(store: Store, versions: Sequence[Path]) -> None:
    version = await store.add(versions[0])
    await store.begin_trial("small", version, "one:1", 0.05)

    async def is_missed() -> bool:
        return (await store.trial("small", version)).state == "died"

    await until(is_missed)
    found = await store.begin_trial("small", version, "two:1", 30)
    assert (found.state, found.holder) == ("died", "one:1")
    assert found.detail == "one:1 tried it and was not heard of again"
    (listed,) = await store.versions("small")
    assert listed.trial.state == "died"
    # It lives after all.
    assert (await store.end_trial("small", version, "one:1", "passed")).state == "passed"


async def test_what_died_is_tried_again_only_if_allowed_by_name_and_what_was_refused_when_the_pointer_moves(
    store: Store, versions: Sequence[Path]
) -> None:
    first, second = await published(store, *versions[:2])
    verdicts: dict[str, Verdict] = {first: "refused", second: "died"}
    for version, verdict in verdicts.items():
        await store.begin_trial("small", version, "one:1", 30)
        ended = await store.end_trial("small", version, "one:1", verdict, "two\nlines " + "x" * 1000)
        assert (ended.state, ended.detail) == (verdict, ("two lines " + "x" * 1000)[:300])
    await store.end_trial("small", second, "two:1", "refused", "later")
    assert (await store.begin_trial("small", second, "two:1", 30)).state == "died"
    await store.activate("small", first)
    assert await store.trial("small", first) == Trial()
    await store.activate("small", second)
    assert (await store.trial("small", second)).state == "died"
    await store.allow("small", second)
    assert await store.trial("small", second) == Trial(allowed=1)
    await store.begin_trial("small", second, "two:1", 30)
    await store.end_trial("small", second, "three:1", "left")
    assert (await store.trial("small", second)).state == "trying"
    await store.end_trial("small", second, "two:1", "left")
    assert await store.trial("small", second) == Trial(allowed=1)
    await store.end_trial("small", second, "two:1", "died")
    await store.allow("small", second)
    assert await store.trial("small", second) == Trial(allowed=2)


async def test_trials_are_of_stored_versions_and_go_with_them(store: Store, versions: Sequence[Path]) -> None:
    first, _, _ = await published(store, *versions[:3])
    await store.end_trial("small", first, "one:1", "died")
    await store.prune("small", keep=0)
    assert await store.end_trial("small", first, "one:1", "died") == Trial()
    assert await store.trial("small", first) == Trial()
    with pytest.raises(InputError, match="not stored"):
        await store.begin_trial("small", first, "one:1", 30)
    with pytest.raises(InputError, match="not stored"):
        await store.allow("small", first)
    with pytest.raises(InputError, match="holder"):
        await store.end_trial("small", first, "no holder", "died")


async def test_listeners_hear_of_verdicts(view: OpenView, versions: Sequence[Path]) -> None:
    store, listener = view(), view()
    (version,) = await published(store, versions[0])
    heard: list[str] = []

    async def listen() -> None:
        async for name in listener.changes():
            heard.append(name)  # noqa: PERF401 - it never ends

    listening = asyncio.ensure_future(listen())
    for number in range(2):

        async def judged(number: int = number) -> bool:
            if number:
                await store.allow("small", version)
            else:
                await store.end_trial("small", version, "one:1", "died")
            await asyncio.sleep(0.02)
            return len(heard) > number

        await until(judged)
    listening.cancel()
    await asyncio.wait((listening,))


async def test_listeners_hear_of_pointers_that_move(view: OpenView, versions: Sequence[Path]) -> None:
    publisher, listener = view(), view()
    first, second = await published(publisher, *versions[:2])
    heard: list[str] = []

    async def listen() -> None:
        async for name in listener.changes():
            heard.append(name)  # noqa: PERF401 - it never ends

    listening = asyncio.create_task(listen())
    turns = itertools.cycle([first, second])

    async def move_and_look() -> bool:
        await publisher.activate("small", next(turns))
        await asyncio.sleep(0.02)
        return bool(heard)

    await until(move_and_look)
    assert set(heard) == {"small"}
    listening.cancel()
    await asyncio.wait({listening})


async def test_listening_ends_when_the_store_is_closed(store: Store, versions: Sequence[Path]) -> None:
    await published(store, *versions[:1])

    async def listen() -> None:
        async for _ in store.changes():
            pass

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0.05)
    await store.close()
    await asyncio.wait_for(listening, 10)


@pytest.mark.parametrize(
    "name", ["", "Small", "../small", "a/b", "a b", ".hidden", "-x", "a" * 65, "a\n", "naïve", "{a}", "a:b", "a\x00"]
)
async def test_names_that_are_no_catalogues_get_no_further(
    store: Store, versions: Sequence[Path], tmp_path: Path, name: str
) -> None:
    version = version_of(versions[0])
    calls: list[Callable[[], object]] = [
        lambda: store.activate(name, version),
        lambda: store.roll_back(name),
        lambda: store.current(name),
        lambda: store.previous(name),
        lambda: store.versions(name),
        lambda: store.fetch(name, version, tmp_path / "cache"),
        lambda: store.hold(name, version, "me", 1),
        lambda: store.prune(name, keep=1),
    ]
    if name:  # an empty one means the artifact's own
        calls.append(lambda: store.add(versions[0], catalogue=name))
    for call in calls:
        with pytest.raises(InputError, match="catalogue"):
            await call()  # type: ignore[misc]
    assert not (tmp_path / "cache").exists()
    assert await store.catalogues() == []


@pytest.mark.parametrize("version", ["", "../../../../etc", "0" * 15, "0" * 17, "ABCDEF0123456789", "0" * 15 + "/"])
async def test_versions_and_holders_that_cannot_be_get_no_further(
    store: Store, versions: Sequence[Path], tmp_path: Path, version: str
) -> None:
    await store.add(versions[0])
    with pytest.raises(InputError, match="version"):
        await store.fetch("small", version, tmp_path)
    with pytest.raises(InputError, match="version"):
        await store.activate("small", version)
    with pytest.raises(InputError, match="version"):
        await store.hold("small", version, "me", 1)
    for holder in ("", "a/b", "a,b", "x" * 129, "\n"):
        with pytest.raises(InputError, match="holder"):
            await store.hold("small", version_of(versions[0]), holder, 1)


# Histories


async def test_a_history_is_read_by_time_whatever_the_order_of_arrival(view: OpenView) -> None:
    assert await view().append("ann", [event(3), event(1)]) == 2
    assert await view().append("ann", [event(2), event(0, at=5)]) == 2
    assert await view().history("ann") == [event(1), event(2), event(3), event(0, at=5)]
    assert await view().history("bob") == []


async def test_events_of_one_moment_are_in_the_order_in_which_they_were_accepted(view: OpenView) -> None:
    ids = ["e-9", "e-10", "b", "a", "é", "Z", "\U0001f600", "\uffff"]
    events = [replace(event(1, at=7), event_id=name) for name in ids]
    says_much = replace(events[3], kind="buy", value=1.5, position=2, request_id="r-1")
    await view().append("ann", events[:3])
    await view().append("ann", [says_much, event(2, at=8), event(3, at=6)])
    await view().append("ann", [*events[:1:-1], *events[:2]])
    accepted = ["e-9", "e-10", "b", "a", "\uffff", "\U0001f600", "Z", "é"]
    found = await view().history("ann")
    assert [each.event_id for each in found] == ["e3", *accepted, "e2"]
    assert found[4] == says_much


async def test_what_a_full_history_has_no_room_for_is_never_accepted_however_often_it_is_sent(view: OpenView) -> None:
    store = view(HistoryLimits(max_events=5))
    sent = [event(number, at=5) for number in range(7)]
    assert await store.append("ann", sent) == 5
    assert await store.append("ann", [event(8, at=4), event(9, at=5)]) == 0
    assert await store.append("ann", [event(20), event(21)]) == 2
    for batch in (sent, sent[::-1], [event(8, at=4)], [event(20), event(21)]):
        assert await store.append("ann", batch) == 0
        assert await store.history("ann") == [*sent[2:5], event(20), event(21)]


async def test_an_event_sent_again_changes_nothing_even_if_it_says_otherwise(store: Store) -> None:
    assert await store.append("ann", [event(1), event(1), event(1, item="other")]) == 1
    assert await store.append("ann", [event(1), event(1, at=99, item="other"), event(2)]) == 1
    assert await store.history("ann") == [event(1), event(2)]
    assert await store.append("bob", [event(1)]) == 1


async def test_the_latest_events_are_kept_and_late_ones_sorted_in(view: OpenView) -> None:
    store = view(HistoryLimits(max_events=5))
    await store.append("ann", [event(number) for number in range(10, 20)])
    assert await store.history("ann") == [event(number) for number in range(15, 20)]
    await store.append("ann", [event(1, at=17), event(2, at=3)])
    assert await store.history("ann") == [event(16), event(17), event(1, at=17), event(18), event(19)]


EVENTS = st.builds(
    lambda number, at, said: Event(event_id=f"{number}", item_id=f"item {number}", timestamp_ms=at, **said),
    st.integers(0, 10**6),
    st.integers(-3, 3) | st.integers(-(2**53), 2**53),
    st.fixed_dictionaries(
        {},
        optional={
            "kind": st.from_regex(KIND, fullmatch=True),
            "value": st.floats(-1e12, 1e12),
            "position": st.integers(1, 10_000),
            "request_id": st.text("abc-._ /", min_size=1, max_size=20),
        },
    ),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(EVENTS, max_size=60, unique_by=lambda made: made.event_id),
    st.lists(st.integers(1, 20), min_size=1, max_size=8),
    st.integers(1, 45),
)
async def test_any_order_of_appending_keeps_the_latest_of_all(
    view: OpenView, events: list[Event], batches: list[int], most: int
) -> None:
    store = view(HistoryLimits(max_events=most))
    user = f"user {next(_numbers)}"
    sizes = itertools.cycle(batches)
    rest, kept = list(events), list[Event]()
    while rest:
        size = next(sizes)
        batch, rest = rest[:size], rest[size:]
        accepted = 0
        for made in batch:
            if len(kept) < most or made.timestamp_ms > kept[0].timestamp_ms:
                accepted += 1
                kept = sorted([*kept, made], key=lambda each: each.timestamp_ms)[-most:]
        assert await store.append(user, batch) == accepted
    assert await store.history(user) == kept
    await store.close()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 30), st.sampled_from([5, 6, 7])), max_size=12), max_size=6),
    st.sampled_from([3, 500]),
    st.randoms(use_true_random=False),
)
async def test_events_of_few_times_stay_as_they_were_accepted_whatever_is_sent_again(
    view: OpenView, batches: list[list[tuple[int, int]]], most: int, chance: Random
) -> None:
    store = view(HistoryLimits(max_events=most))
    user = f"user {next(_numbers)}"
    first_times = dict(reversed([each for batch in batches for each in batch]))
    accepted: list[Event] = []
    for batch in batches:
        known = {each.event_id for each in accepted}
        sent = [event(number, at=first_times[number]) for number, _ in batch]
        new = list({each.event_id: each for each in sent if each.event_id not in known}.values())
        count = await store.append(user, sent)
        assert count == len(new) or most == 3
        accepted += new
    found = await store.history(user)
    in_order = sorted(accepted, key=lambda each: each.timestamp_ms)
    if most == 3:  # which of the oldest time there is room for is another test's
        assert [each.timestamp_ms for each in found] == [each.timestamp_ms for each in in_order[-most:]]
        assert found == [each for each in in_order if each in found]
    else:
        assert found == in_order
    again = list(accepted)
    chance.shuffle(again)
    assert await store.append(user, again) == 0
    assert await store.history(user) == found
    await store.close()


async def test_many_writers_lose_nothing(view: OpenView) -> None:
    stores = [view() for _ in range(3)]
    counts = await asyncio.gather(
        *(stores[n % 3].append("ann", [event(n), event(n + 1)]) for n in range(0, 120, 2)),
        *(stores[n % 3].append("ann", [event(n)]) for n in range(120)),
    )
    assert sum(counts) == 120
    assert await stores[0].history("ann") == [event(number) for number in range(120)]


async def test_a_history_is_forgotten_some_time_after_the_last_event(view: OpenView) -> None:
    store = view(HistoryLimits(ttl_s=0.3))
    await store.append("ann", [event(1)])
    for number in range(2, 6):
        await asyncio.sleep(0.1)
        await store.append("ann", [event(number)])
    assert len(await store.history("ann")) == 5

    async def forgotten() -> bool:
        return not await store.history("ann")

    await until(forgotten)
    assert await store.append("ann", [event(1)]) == 1
    assert await store.history("ann") == [event(1)]


async def test_forgetting_deletes_everything_of_one_user(store: Store) -> None:
    await store.append("ann", [event(1), event(2)])
    await store.append("ann2", [event(1)])
    assert await store.forget("ann")
    assert await store.history("ann") == []
    assert not await store.forget("ann")
    assert await store.append("ann", [event(1)]) == 1
    assert await store.history("ann2") == [event(1)]


@pytest.mark.parametrize(
    "text",
    ["a:b", "{x}", "}{", "ann ", " ", "*", "'; DROP TABLE events; --", "../../x", "日本", "\U0001f600", "x" * 256],
)
async def test_any_printable_text_may_be_a_user_or_an_item(store: Store, text: str) -> None:
    made = Event(event_id=text[:128], item_id=text, timestamp_ms=-1)
    assert await store.append(text, [made]) == 1
    assert await store.history(text) == [made]
    assert await store.forget(text)


@pytest.mark.parametrize("user", ["", "a\nb", "\x00", "\ud800", "x" * 257, "\x9b"])
async def test_users_that_cannot_be_get_no_further(store: Store, user: str) -> None:
    for call in (store.append(user, [event(1)]), store.history(user), store.forget(user)):
        with pytest.raises(InputError, match="user_id"):
            await call


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("event_id", Event(event_id="", item_id="i", timestamp_ms=0)),
        ("event_id", Event(event_id="x" * 129, item_id="i", timestamp_ms=0)),
        ("item_id", Event(event_id="e", item_id="a\x00b", timestamp_ms=0)),
        ("item_id", Event(event_id="e", item_id="x" * 257, timestamp_ms=0)),
        ("item_id", Event(event_id="e", item_id="\udcff", timestamp_ms=0)),
        ("timestamp_ms", Event(event_id="e", item_id="i", timestamp_ms=2**53 + 1)),
        ("kind", Event(event_id="e", item_id="i", timestamp_ms=0, kind="Buy")),
        ("kind", Event(event_id="e", item_id="i", timestamp_ms=0, kind="buy\n")),
        ("kind", Event(event_id="e", item_id="i", timestamp_ms=0, kind="b" * 33)),
        ("value", Event(event_id="e", item_id="i", timestamp_ms=0, value=float("nan"))),
        ("value", Event(event_id="e", item_id="i", timestamp_ms=0, value=1.1e12)),
        ("position", Event(event_id="e", item_id="i", timestamp_ms=0, position=0)),
        ("position", Event(event_id="e", item_id="i", timestamp_ms=0, position=10_001)),
        ("request_id", Event(event_id="e", item_id="i", timestamp_ms=0, request_id="a\x1fb")),
        ("request_id", Event(event_id="e", item_id="i", timestamp_ms=0, request_id="x" * 161)),
    ],
)
async def test_one_event_that_cannot_be_kept_refuses_them_all(store: Store, field: str, bad: Event) -> None:
    with pytest.raises(InputError, match=field):
        await store.append("ann", [event(1), bad])
    assert await store.history("ann") == []


async def test_no_events_are_none(store: Store) -> None:
    assert await store.append("ann", []) == 0
    assert not await store.forget("ann")


async def test_events_that_make_no_history_are_apart_and_bounded_by_themselves(view: OpenView) -> None:
    store = view(HistoryLimits(max_events=5))
    await store.append("ann", [event(number) for number in range(5)])
    seen = [replace(event(number), kind="view", position=number) for number in range(1, 21)]
    assert await store.append_others("ann", seen) == 20
    assert await store.append_others("ann", seen[-2:]) == 0
    assert await store.other_events("ann") == seen[-5:]
    assert await store.history("ann") == [event(number) for number in range(5)], "a view pushed out a choice"
    assert await store.forget("ann") == Forgotten(events=5, other_events=5)
    assert await store.other_events("ann") == []


# Records


async def test_records_are_kept_in_order_within_their_bounds(view: OpenView) -> None:
    store = view()
    await store.add_records("impressions", {"ann": [b"1", b"2 "], "bob": [b"\x00\n"], "nobody": []}, keep=3, ttl_s=60)
    await store.add_records("links", {"ann": [b"other"]}, keep=3, ttl_s=60)
    await store.add_records("precomputed", {"ann": [b"old", b"new"]}, keep=1, ttl_s=60)
    await store.add_records("impressions", {"ann": [b"3", b"4"]}, keep=3, ttl_s=60)
    assert await view().records("impressions", "ann") == [b"2 ", b"3", b"4"]
    assert await store.records("impressions", "bob") == [b"\x00\n"]
    assert await store.records("impressions", "nobody") == []
    assert await store.records("precomputed", "ann") == [b"new"]
    assert await store.forget("ann") == Forgotten(impressions=3, links=1, precomputed=1)
    for name in RECORD_LISTS:
        assert await store.records(name, "ann") == []
    assert await store.records("impressions", "bob") == [b"\x00\n"]


async def test_a_record_ends_though_younger_ones_are_added(store: Store) -> None:
    await store.add_records("impressions", {"ann": [b"brief"]}, keep=9, ttl_s=0.05)
    await store.add_records("impressions", {"ann": [b"long"], "bob": [b"long"]}, keep=9, ttl_s=60)

    async def brief_has_ended() -> bool:
        return await store.records("impressions", "ann") == [b"long"]

    await until(brief_has_ended)
    await store.add_records("impressions", {"ann": [b"longer"]}, keep=9, ttl_s=60)
    assert await store.records("impressions", "ann") == [b"long", b"longer"]
    assert await store.forget("ann") == Forgotten(impressions=2)


async def test_every_user_is_found_and_no_other(view: OpenView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igd_core.store.files.histories._USERS_A_PAGE", 10)
    monkeypatch.setattr("igd_core.store.redis.records._KEYS_AT_ONCE", 10)
    store = view()
    users = {f"user-{number}" for number in range(40)} | {"a:b", "{x}", "*", "é"}
    await asyncio.gather(*(store.append(user, [event(1)]) for user in users))
    await store.append_others("only views", [event(1)])
    await store.add_records("impressions", {"only shown": [b"x"]}, keep=1, ttl_s=60)
    await store.add_records("links", {"only linked": [b"x"]}, keep=1, ttl_s=60)
    await store.put("history:nobody", b"", 60)
    found = [user async for page in view().users() for user in page]
    assert set(found) == users | {"only views", "only shown"}


async def test_a_store_has_one_name_that_no_other_has(view: OpenView, kind: str, tmp_path: Path) -> None:
    names = await asyncio.gather(*(view().identity() for _ in range(3)))
    assert len(set(names)) == 1
    assert re.fullmatch("[0-9a-f]{32}", names[0])
    other = MemoryStore() if kind == "memory" else open_store(f"file://{tmp_path}/other")
    assert await other.identity() != names[0]
    await other.close()


# Results


async def test_results_are_given_back_exactly_until_they_end(store: Store) -> None:
    value = bytes(range(256)) * 40
    await store.put("a", value, 60)
    await store.put("b", b"", 60)
    await store.put("brief", b"x", 0.05)
    assert await store.get("a") == value
    assert await store.get("b") == b""
    assert await store.get("unknown") is None
    await store.put("a", b"new", 60)
    assert await store.get("a") == b"new"

    async def brief_has_ended() -> bool:
        return await store.get("brief") is None

    await until(brief_has_ended)


async def test_many_results_are_kept_as_one_is(store: Store) -> None:
    await store.put("old", b"old", 60)
    values = {f"k-{number}": bytes([number % 256]) * number for number in range(300)}
    await store.put_all({**values, "old": b"new"}, 60)
    await store.put_all({"brief": b"x", "briefer": b"y"}, 0.05)
    await store.put_all({}, 60)
    assert {key: await store.get(key) for key in values} == values
    assert await store.get("old") == b"new"

    async def brief_have_ended() -> bool:
        return await store.get("brief") is None and await store.get("briefer") is None

    await until(brief_have_ended)
    with pytest.raises(InputError, match="key"):
        await store.put_all({"a": b"", "a b": b""}, 60)
    assert await store.drop(["k-1", "k-2", "k-2", "unknown", "brief"]) == 2
    assert (await store.get("k-1"), await store.get("k-3")) == (None, b"\x03" * 3)
    assert await store.drop([]) == 0


@pytest.mark.parametrize("key", ["", "a b", "a\n", "é", "x" * 257])
async def test_keys_that_cannot_be_get_no_further(store: Store, key: str) -> None:
    with pytest.raises(InputError, match="key"):
        await store.get(key)
    with pytest.raises(InputError, match="key"):
        await store.put(key, b"", 1)


async def test_a_store_answers_until_it_is_closed(view: OpenView, kind: str) -> None:
    store = view()
    await store.ping()
    await store.close()
    await store.close()
    if kind != "memory":
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.ping()
