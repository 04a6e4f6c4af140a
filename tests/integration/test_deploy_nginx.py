"""deploy/one-machine: nginx before two processes that know nothing of each other, and the units that start them."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from igd_server.settings import Settings
from patience import PATIENCE_S
from redis_server import free_port, patiently
from server_process import Bundle, ServerProcess, make_bundle

from igd_core.cli.main import make_parser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint

FILES = Path(__file__).parents[2] / "deploy" / "one-machine"
ASK = {"history": ["1", "5"], "k": 3}


def port_of(server: ServerProcess) -> str:
    return str(server.event("listening")["url"]).rsplit(":", 1)[1].strip("/")


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[[str, str], str]]:
    """Start nginx with the file, its ports changed; gives the URL."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    running: list[subprocess.Popen[bytes]] = []

    def start(first: str, second: str) -> str:
        port = free_port()
        text = (FILES / "nginx.conf").read_text(encoding="utf-8")
        for written, taken in {
            "listen 8000": f"listen 127.0.0.1:{port}",
            ":8001": f":{first}",
            ":8002": f":{second}",
        }.items():
            assert written in text
            text = text.replace(written, taken)
        places = "".join(
            f"{name}_temp_path {tmp_path}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        whole = f"pid {tmp_path}/pid; error_log {tmp_path}/log; events {{}} http {{ access_log off; {places}\n{text}}}"
        (tmp_path / "nginx.conf").write_text(whole, encoding="utf-8")
        command = [program, "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "log"), "-g", "daemon off;"]
        running.append(subprocess.Popen(command))
        return f"http://127.0.0.1:{port}/"

    yield start
    for process in running:
        process.terminate()
        process.wait(PATIENCE_S)


def test_nginx_sends_what_a_killed_process_did_not_answer_to_the_other(
    nginx: Callable[[str, str], str],
    tmp_path: Path,
    definition: dict[str, Any],
    tokenizer: TitleTokenizer,
    checkpoint_of: Callable[[str], Checkpoint],
) -> None:
    bundle: Bundle = make_bundle(tmp_path, definition, tokenizer, checkpoint_of("llama-fp32"))
    one, two = ServerProcess.start(*bundle.flags), ServerProcess.start(*bundle.flags)
    try:
        url = nginx(port_of(one), port_of(two))
        for server in (one, two):
            server.event("ready")

        async def asked(times: int) -> set[int]:
            async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
                answers = await asyncio.gather(
                    *(client.post("v1/recommendations", json={**ASK, "alpha": at / times}) for at in range(times))
                )
            return {answer.status_code for answer in answers}

        assert asyncio.run(asked(16)) == {200}
        for _ in patiently("a line for each request"):  # written behind its answer
            requests = [sum(line.get("event") == "request" for line in list(server.log)) for server in (one, two)]
            if sum(requests) >= 16:
                break
        assert sum(requests) == 16
        assert min(requests) > 0, requests

        async def asked_while_one_dies() -> set[int]:
            asking = asyncio.create_task(asked(32))
            await asyncio.sleep(0.05)
            one.process.kill()
            return await asking | await asked(8)

        assert asyncio.run(asked_while_one_dies()) == {200}
    finally:
        one.process.kill()
        one.wait()
        two.stop()
    two.assert_ended_well()


def test_the_units_start_the_server_and_leave_it_time_to_drain(tmp_path: Path) -> None:
    igd = Path(sys.executable).with_name("igd")
    for unit in (FILES / "igd.service", FILES / "igd@.service"):
        text = unit.read_text(encoding="utf-8")
        command = re.search(r"^ExecStart=/opt/igd/bin/igd (serve.*)$", text, re.MULTILINE)
        stop = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
        assert command is not None
        assert stop is not None
        assert int(stop[1]) > Settings.model_fields["grace_s"].default + 10
        make_parser("serve").parse_args(command[1].replace("%i", "8001").split())
        copy = text.replace("/opt/igd/bin/igd", str(igd)).replace("User=igd", "User=root")
        (tmp_path / unit.name).write_text(copy, encoding="utf-8")
    retune = (FILES / "igd-retune.service").read_text(encoding="utf-8")
    started = re.search(r"^ExecStart=/opt/igd/bin/igd (retune.*)$", retune, re.MULTILINE)
    assert started is not None
    make_parser("retune").parse_args(started[1].split())
    copy = retune.replace("/opt/igd/bin/igd", str(igd)).replace("User=igd", "User=root")
    (tmp_path / "igd-retune.service").write_text(copy, encoding="utf-8")
    shutil.copy(FILES / "igd-retune.timer", tmp_path)
    analyse = shutil.which("systemd-analyze")
    if analyse is None:
        pytest.skip("systemd-analyze is not installed, which would check the units' words")
    units = [str(tmp_path / "igd.service"), str(tmp_path / "igd@8001.service")]
    shutil.copy(tmp_path / "igd@.service", units[1])
    units += [str(tmp_path / name) for name in ("igd-retune.service", "igd-retune.timer")]
    done = subprocess.run([analyse, "verify", "--man=no", *units], capture_output=True, text=True, check=False)
    told = [line for line in done.stderr.splitlines() if "igd" in line]
    assert not told, told
