"""docs/how-to/back-up.md, its commands as they stand there, with a real Redis."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis_server import RedisServer, free_port
from stores import version_of

from igd_core.cli.main import main
from igd_core.store.base import StoreOptions
from igd_core.store.events import Event
from igd_core.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "back-up.md"
COMMANDS = re.findall(r"^ *```sh\n(.*?)^ *```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
LISTED = Event(event_id="e-1", item_id="50", timestamp_ms=1_000)
LATER = Event(event_id="e-2", item_id="172", timestamp_ms=2_000)


async def record(url: str, event: Event) -> None:
    store = open_store(url, options=StoreOptions(timeout_s=60.0))
    await store.append("u-1", [event])
    await store.close()


async def items(url: str) -> Sequence[str]:
    store = open_store(url, options=StoreOptions(timeout_s=60.0))
    history = await store.history("u-1")
    await store.close()
    return [each.item_id for each in history]


def test_what_the_page_says_brings_back_versions_and_histories_as_of_the_backup(
    tmp_path: Path, pristine_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("redis-cli") is None:
        pytest.skip("redis-cli is not installed: apt-get install redis-server")
    lost, back = tmp_path / "lost", tmp_path / "work" / "restored"
    lost.mkdir()
    back.parent.mkdir()
    second = free_port()
    with RedisServer(lost, appendonly="yes", repl_diskless_sync_delay="0") as redis:  # else it waits 5 s
        assert main(["publish", "--artifact", str(pristine_bundle), "--store", redis.url]) == 0
        asyncio.run(record(redis.url, LISTED))
        redis.cli("acl", "setuser", "backup", "on", ">secret", *_rights())
        copying, reading, turning = (commands.replace("6390", str(second)) for commands in COMMANDS)
        _run(copying, back.parent, f"redis://backup:secret@127.0.0.1:{redis.port}")
        asyncio.run(record(redis.url, LATER))
        redis.kill()
    try:
        seen = _run(reading, back.parent)
        _run(turning, back.parent)
    finally:
        subprocess.run(["redis-cli", "-p", str(second), "shutdown", "nosave"], capture_output=True, check=False)
    assert re.search(rf"{version_of(pristine_bundle)} .* current", seen)
    assert seen.splitlines()[-1] == "1"
    with RedisServer(back, appendonly="yes") as redis:
        assert asyncio.run(items(redis.url)) == ["50"]
        assert main(["versions", "--store", redis.url]) == 0
        assert f"{version_of(pristine_bundle)} " in capsys.readouterr().out


def _rights() -> Sequence[str]:
    found = re.search(r"user backup on >PASSWORD (.*)", PAGE.read_text(encoding="utf-8"))
    assert found is not None
    return found[1].split()


def _run(commands: str, where: Path, backup_url: str = "") -> str:
    scripts = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=where,
        env={**os.environ, "PATH": scripts, "BACKUP_URL": backup_url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
