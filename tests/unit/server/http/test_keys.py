"""The keys file and `igd keys`, through its own parser."""

from __future__ import annotations

import argparse
import hashlib
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from igd_server.http.keys import KEY, SCOPES, KeyFile, keys_to_change, make_key, read_keys, write_keys

from igd_core.cli import keys as command
from igd_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    Igd = Callable[..., str]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def igd(path: Path, capsys: pytest.CaptureFixture[str]) -> Igd:
    """`igd keys ...` on ``path``; what it prints."""
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))

    def run(action: str, *arguments: str) -> str:
        args = parser.parse_args(["keys", action, "--keys-file", str(path), *arguments])
        assert args.run(args) == 0
        return capsys.readouterr().out

    return run


def document(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def test_a_key_is_printed_once_and_only_the_hash_of_its_secret_is_kept(igd: Igd, path: Path) -> None:
    token = igd("create", "--name", "shop", "--scopes", "recommend,events").strip()
    matched = KEY.fullmatch(token.encode())
    assert matched is not None
    key_id, secret = matched[1].decode(), matched[2].decode()
    (stored,) = document(path)["keys"]
    assert (stored["id"], stored["name"], sorted(stored["scopes"])) == (key_id, "shop", ["events", "recommend"])
    assert stored["sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert secret not in path.read_text()
    assert secret not in igd("list") + igd("list", "--json") + igd("revoke", key_id)


def test_a_new_file_is_its_owners_alone(igd: Igd, path: Path) -> None:
    igd("create", "--name", "a", "--scopes", "admin")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("before", "after"), [(0o640, 0o640), (0o600, 0o600), (0o644, 0o640), (0o777, 0o660)])
def test_a_file_that_is_there_keeps_its_mode_but_nothing_for_everyone(
    igd: Igd, path: Path, before: int, after: int
) -> None:
    igd("create", "--name", "a", "--scopes", "admin")
    path.chmod(before)
    igd("create", "--name", "b", "--scopes", "admin")
    assert stat.S_IMODE(path.stat().st_mode) == after


def test_a_link_to_the_file_stays_one(igd: Igd, path: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere"
    real.mkdir()
    (real / "keys.json").write_text('{"format": 1, "keys": []}')
    path.symlink_to(real / "keys.json")
    igd("create", "--name", "a", "--scopes", "admin")
    assert path.is_symlink()
    assert len(read_keys(real / "keys.json").keys) == 1


def test_no_two_keys_are_alike() -> None:
    made = [make_key("a", frozenset(), None) for _ in range(200)]
    assert len({key.token for key in made}) == len({key.stored.id for key in made}) == 200


def test_keys_are_listed_and_revoked(igd: Igd, path: Path) -> None:
    igd("create", "--name", "first", "--scopes", "recommend")
    second = json.loads(igd("create", "--name", "se\x1b[31mcond", "--scopes", "admin, metrics", "--json"))
    lines = igd("list").splitlines()
    assert lines[0].split() == ["id", "name", "scopes", "created", "expires"]
    assert lines[2].startswith(f"{second['id']}  se?[31mcond  admin,metrics")
    assert lines[2].endswith("never")
    igd("revoke", second["id"])
    assert [key.name for key in read_keys(path).keys] == ["first"]
    with pytest.raises(InputError, match="no key has the id"):
        igd("revoke", second["id"])
    igd("revoke", read_keys(path).keys[0].id)
    assert json.loads(igd("list", "--json")) == []


def test_days_and_times_say_when_a_key_ends(igd: Igd, path: Path) -> None:
    igd("create", "--name", "days", "--scopes", "recommend", "--expires", "90d")
    igd("create", "--name", "time", "--scopes", "recommend", "--expires", "2999-01-31T12:00:00+02:00")
    days, time = read_keys(path).keys
    assert days.expires_at is not None
    assert abs(days.expires_at - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=1)
    assert time.expires_at == datetime(2999, 1, 31, 10, tzinfo=UTC)
    assert igd("list").splitlines()[2].endswith("2999-01-31")
    ended = make_key("past", frozenset(), datetime(2020, 1, 1, tzinfo=UTC)).stored
    write_keys(path, KeyFile(keys=(ended,)))
    assert igd("list").splitlines()[1].endswith("2020-01-01 (over)")
    assert json.loads(igd("list", "--json"))[0]["expired"] is True


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("--name", "a", "--scopes", "recommend,root"),
            "--scopes: 'root' is none of recommend, events, users, admin, metrics",
        ),
        (("--name", "a", "--scopes", ""), "--scopes: '' is none of"),
        (("--name", "", "--scopes", "admin"), "name: String should have at least 1 character"),
        (("--name", "a" * 129, "--scopes", "admin"), "name: String should have at most 128 characters"),
        (("--name", "a", "--scopes", "admin", "--expires", "soon"), "--expires: 'soon' is neither days"),
        (("--name", "a", "--scopes", "admin", "--expires", "0d"), "--expires: '0d' is neither days"),
        (("--name", "a", "--scopes", "admin", "--expires", "2999-01-31T00:00:00"), "names no time zone"),
        (("--name", "a", "--scopes", "admin", "--expires", "2020-01-31T00:00:00Z"), "is over"),
    ],
)
def test_what_cannot_be_a_key_is_one_line_and_changes_nothing(
    igd: Igd, path: Path, arguments: tuple[str, ...], line: str
) -> None:
    with pytest.raises(InputError, match=line) as caught:
        igd("create", *arguments)
    assert "\n" not in str(caught.value)
    assert not path.exists()


def good(**changes: object) -> dict[str, object]:
    return {
        "id": "0123456789ab",
        "name": "shop",
        "sha256": "f" * 64,
        "scopes": ["recommend"],
        "created_at": "2026-01-01T00:00:00Z",
        **changes,
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "Invalid JSON"),
        ('{"format": 1, "keys": [', "Invalid JSON"),
        ("\udcff\udcfe", "Invalid JSON"),
        ("[]", "should be an object"),
        (json.dumps({"format": 2, "keys": []}), "format: "),
        (json.dumps({"format": 1, "keys": [good(), good()]}), "two keys have the same id"),
        (json.dumps({"format": 1, "keys": [good(), good(id="UPPERCASE")]}), r"keys\[1\]\.id: "),
        (json.dumps({"format": 1, "keys": [good(sha256="my-secret-in-clear")]}), r"keys\[0\]\.sha256: "),
        (json.dumps({"format": 1, "keys": [good(scopes=["root"])]}), r"keys\[0\]\.scopes"),
        (json.dumps({"format": 1, "keys": [good(secret="my-secret-in-clear")]}), r"keys\[0\]\.secret: "),  # noqa: S106
        (json.dumps({"format": 1, "keys": [good(expires_at="2026-01-01T00:00:00")]}), r"keys\[0\]\.expires_at: "),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_without_its_values(
    igd: Igd, path: Path, text: str, complaint: str
) -> None:
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(InputError, match=complaint) as caught:
        igd("list")
    assert str(caught.value).startswith(f"keys file {path}: ")
    assert "\n" not in str(caught.value)
    assert "my-secret-in-clear" not in str(caught.value)
    with pytest.raises(InputError, match=complaint):  # and is not written over
        igd("create", "--name", "a", "--scopes", "admin")
    assert path.read_text(errors="surrogateescape") == text


def test_a_missing_file_or_directory_is_one_line(igd: Igd, path: Path) -> None:
    with pytest.raises(InputError, match=r"keys\.json: No such file"):
        igd("list")
    with pytest.raises(InputError, match="no key has the id"):
        igd("revoke", "0123456789ab")
    assert not path.exists()
    with pytest.raises(InputError, match="No such file"), keys_to_change(path / "below" / "keys.json"):
        pass


def test_a_disk_that_fails_leaves_the_old_file_and_nothing_else(
    igd: Igd, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    igd("create", "--name", "a", "--scopes", "admin")
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("igd_server.http.keys.os.fsync", fail)
    with pytest.raises(InputError, match="No space left on device"):
        igd("create", "--name", "b", "--scopes", "admin")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_of_keys_made_at_the_same_time_none_is_lost(path: Path) -> None:
    def create(number: int) -> None:
        with keys_to_change(path) as keys:
            write_keys(path, keys.with_key(make_key(str(number), frozenset(SCOPES), None).stored))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(create, range(24)))
    assert {key.name for key in read_keys(path).keys} == {str(number) for number in range(24)}
