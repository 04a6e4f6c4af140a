"""`igd publish`, `versions`, `rollback` and `prune` as an operator runs them."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from checkpoints import write_checkpoint
from factories import tiny_checkpoint
from redis_server import RedisServer, free_port
from stores import another_version, version_of

from igd_core.cli.main import main
from igd_core.store.base import StoreOptions
from igd_core.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from igd_core.catalogue.tokenization import TitleTokenizer


@pytest.fixture(params=["files", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "files":
        yield f"file://{tmp_path}/store"
        return
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as server:
        yield server.url


@pytest.fixture
def bundles(pristine_bundle: Path, tmp_path: Path) -> list[Path]:
    return [another_version(pristine_bundle, tmp_path / f"v{i}", alpha=i / 10) for i in range(4)]


@pytest.fixture(autouse=True)
def _nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IGD_STORE", "IGD_STORE_PREFIX"):
        monkeypatch.delenv(name, raising=False)


class Operator:
    """Runs commands on one store and reads what they print."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._url = url
        self._capsys = capsys

    def json(self, *arguments: str) -> Any:
        assert main([*arguments, "--store", self._url, "--json"]) == 0
        return json.loads(self._capsys.readouterr().out)

    def text(self, *arguments: str) -> str:
        assert main([*arguments, "--store", self._url]) == 0
        return self._capsys.readouterr().out

    def complaint(self, *arguments: str) -> str:
        assert main([*arguments, "--store", self._url]) == 2
        captured = self._capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err


@pytest.fixture
def operator(url: str, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(url, capsys)


def test_publishing_makes_a_version_current_and_keeps_the_previous(operator: Operator, bundles: Sequence[Path]) -> None:
    first, second, *_ = map(version_of, bundles)
    assert operator.json("publish", "--artifact", str(bundles[0])) == {
        "catalogue": "small",
        "version": first,
        "model": None,
        "current": first,
        "previous": None,
    }
    published = operator.json("publish", "--artifact", str(bundles[1]))
    assert (published["current"], published["previous"]) == (second, first)


def test_a_version_may_be_stored_first_and_activated_later(operator: Operator, bundles: Sequence[Path]) -> None:
    first, second, *_ = map(version_of, bundles)
    operator.json("publish", "--artifact", str(bundles[0]))
    stored = operator.json("publish", "--artifact", str(bundles[1]), "--no-activate")
    assert (stored["version"], stored["current"]) == (second, first)
    activated = operator.json("rollback", "--catalogue", "small", "--version", second)
    assert (activated["current"], activated["previous"]) == (second, first)


def test_rolling_back_returns_to_the_previous_version_and_again_not_to_the_bad_one(
    operator: Operator, bundles: Sequence[Path]
) -> None:
    first, second, *_ = map(version_of, bundles)
    for bundle in bundles[:2]:
        shown = operator.text("publish", "--artifact", str(bundle))
    assert [line.split() for line in shown.splitlines()] == [
        ["catalogue", "small"],
        ["version", second],
        ["model", "own"],
        ["current", second],
        ["previous", first],
    ]
    rolled_back = operator.json("rollback", "--catalogue", "small")
    assert rolled_back == {
        "catalogue": "small",
        "version": first,
        "before": second,
        "current": first,
        "previous": None,
    }
    assert "no version was current before this one; name one" in operator.complaint("rollback", "--catalogue", "small")
    assert operator.json("versions")["small"][1]["current"] is True
    assert operator.json("rollback", "--catalogue", "small", "--version", second)["current"] == second


def test_moving_the_pointer_to_a_version_that_servers_do_not_take_says_so(
    url: str, operator: Operator, bundles: Sequence[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = map(version_of, bundles)
    operator.json("publish", "--artifact", str(bundles[0]))
    asyncio.run(_die_of(url, first))
    said = f"servers do not take {first}: died on server-1 (killed); to try it again: igd allow --catalogue small"
    named = ["rollback", "--catalogue", "small", "--version", first]
    for arguments in (["publish", "--artifact", str(bundles[1])], named):
        assert main([*arguments, "--store", url]) == 0
    assert f"igd rollback: {said}" in capsys.readouterr().err
    operator.json("rollback", "--catalogue", "small", "--version", second)
    assert main(["publish", "--artifact", str(bundles[0]), "--store", url]) == 0
    assert f"igd publish: {said}" in capsys.readouterr().err
    operator.json("allow", "--catalogue", "small", "--version", first)
    assert main([*named, "--store", url]) == 0
    assert capsys.readouterr().err == ""


def test_rolling_back_passes_by_a_version_that_a_server_died_of_and_says_how_to_go_there(
    url: str, operator: Operator, bundles: Sequence[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    good, dead, current, _ = map(version_of, bundles)
    for bundle in bundles[:3]:
        operator.json("publish", "--artifact", str(bundle))
    asyncio.run(_die_of(url, dead))
    rollback = ["rollback", "--catalogue", "small"]
    assert main([*rollback, "--store", url, "--json"]) == 0
    captured = capsys.readouterr()
    told = {"version": good, "before": current, "passed_by": [dead], "current": good, "previous": None}
    assert json.loads(captured.out) == {"catalogue": "small", **told}
    by_name = f"igd allow and then igd rollback --catalogue small --version {dead}"
    assert captured.err == f"igd rollback: passed by {dead}: died on server-1 (killed); to go there: {by_name}\n"
    asyncio.run(_die_of(url, good))
    operator.json("publish", "--artifact", str(bundles[2]))
    refused = operator.complaint(*rollback)
    assert f"servers take no version that was current before this one: {good} died on server-1 (killed)" in refused
    assert "igd allow --catalogue small --version VERSION" in refused


async def _die_of(url: str, version: str) -> None:
    store = open_store(url, options=StoreOptions(prefix="igd", timeout_s=10))
    try:
        await store.begin_trial("small", version, "server-1", 60)
        await store.end_trial("small", version, "server-1", "died", "killed")
    finally:
        await store.close()


def test_pruning_says_what_it_deleted_and_what_is_left(operator: Operator, bundles: Sequence[Path]) -> None:
    names = [version_of(bundle) for bundle in bundles]
    for bundle in bundles:
        operator.json("publish", "--artifact", str(bundle))
    pruned = operator.json("prune", "--catalogue", "small", "--keep", "1")
    assert sorted(pruned["deleted"]) == sorted(names[:2])
    assert pruned["kept"] == [names[3], names[2]]
    assert operator.json("prune", "--catalogue", "small")["deleted"] == []


def test_versions_are_listed_for_people_and_for_machines(operator: Operator, bundles: Sequence[Path]) -> None:
    first, second, third, _ = map(version_of, bundles)
    operator.json("publish", "--artifact", str(bundles[0]))
    operator.json("publish", "--artifact", str(bundles[1]))
    operator.json("publish", "--artifact", str(bundles[2]), "--catalogue", "other")
    listed = operator.json("versions")
    assert {name: [version["version"] for version in versions] for name, versions in listed.items()} == {
        "other": [third],
        "small": [second, first],
    }
    assert [version["current"] for version in listed["small"]] == [True, False]
    assert operator.json("versions", "--catalogue", "small") == {"small": listed["small"]}
    lines = operator.text("versions").splitlines()
    assert lines[0].split() == ["catalogue", "version", "stored", "MiB", "model", "use"]
    assert [line.split()[:2] for line in lines[1:]] == [["other", third], ["small", second], ["small", first]]
    assert lines[2].endswith("current")
    assert lines[3].endswith("previous")


def test_a_version_names_the_model_it_was_published_with_until_another_is_said(
    operator: Operator, bundles: Sequence[Path], tmp_path: Path, definition: dict[str, Any], tokenizer: TitleTokenizer
) -> None:
    folder = write_checkpoint(tmp_path / "tuned", tiny_checkpoint("llama-fp32", tokenizer).model, definition)
    published = operator.json("publish", "--artifact", str(bundles[0]), "--model", str(folder), "--name", "mild")
    model = published["model"]
    assert published["version"] != version_of(bundles[0])
    kept = operator.json("publish", "--artifact", str(bundles[1]))
    assert (kept["model"], kept["previous"]) == (model, published["version"])
    own = operator.json("publish", "--catalogue", "small", "--model", "own")
    assert (own["version"], own["model"]) == (version_of(bundles[1]), None)
    again = operator.json("publish", "--catalogue", "small", "--model", model)
    assert again["version"] == kept["version"]
    assert {each["version"]: each["model"] for each in operator.json("versions")["small"]} == {
        published["version"]: model, kept["version"]: model, own["version"]: None,
    }  # fmt: skip
    (listed,) = operator.json("versions", "--models")
    assert listed["version"] == model
    assert set(listed["named_by"]) == {f"small/{each['version']}" for each in (published, kept)}
    assert model in operator.text("versions", "--models").splitlines()[1]
    assert operator.json("prune", "--catalogue", "small", "--keep", "1")["deleted_models"] == []
    for flags, message in (
        (("--model", "nowhere"), "'nowhere' is no folder, no version"),
        (("--model", "0" * 16), "model 0000000000000000 is not stored"),
        (("--name", "x"), "name: --name is of a model's folder"),
        (("--model", "own", "--base", "x"), "base: --base is of a model's folder"),
    ):
        assert message in operator.complaint("publish", "--catalogue", "small", *flags)
    assert "models: are of no catalogue" in operator.complaint("versions", "--models", "--catalogue", "small")


def test_bad_input_is_one_clear_line(operator: Operator, bundles: Sequence[Path], bundle: Path) -> None:
    assert "the store holds no version of it" in operator.complaint("rollback", "--catalogue", "small")
    assert "'0123' is not 16 hex" in operator.complaint("rollback", "--catalogue", "small", "--version", "0123")
    unknown = ["rollback", "--catalogue", "small", "--version", "0123456789abcdef"]
    assert "version 0123456789abcdef of catalogue 'small' is not stored" in operator.complaint(*unknown)
    assert "catalogue: 'Small Films'" in operator.complaint(
        "publish", "--artifact", str(bundles[0]), "--catalogue", "Small Films"
    )
    for keep in ("-1", "0"):  # what a server has not said for a while that it serves would go with 0
        assert f"keep: {keep} is not in 1.." in operator.complaint("prune", "--catalogue", "small", "--keep", keep)
    assert "manifest.json: not found" in operator.complaint("publish", "--artifact", str(bundle.parent))
    (bundle / "items.parquet").write_bytes(b"")
    assert "items.parquet: 0 bytes" in operator.complaint("publish", "--artifact", str(bundle))
    assert operator.json("versions") == {}


def test_the_store_may_be_named_by_the_environment(
    url: str, bundles: Sequence[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["versions"]) == 2
    assert "store: give --store URL, or IGD_STORE" in capsys.readouterr().err
    monkeypatch.setenv("IGD_STORE", url)
    assert main(["publish", "--artifact", str(bundles[0]), "--json"]) == 0
    if url.startswith("redis"):
        monkeypatch.setenv("IGD_STORE_PREFIX", "elsewhere")
        capsys.readouterr()
        assert main(["versions", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("redis://ann:s3cret@127.0.0.1:{port}/0", "redis://***@127.0.0.1:"),
        ("redis://ann:s3cret@127.0.0.1:port/0", "redis://***"),
        ("memory://", "memory:// ends with this command"),
        ("ftp://ann:s3cret@host", "ftp://***@host"),
    ],
)
def test_a_store_that_cannot_be_used_is_named_without_its_password(
    bad: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["versions", "--store", bad.format(port=free_port())]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "s3cret" not in error
    assert error.count("\n") == 1
