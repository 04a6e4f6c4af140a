"""A real Ray Serve with the server on it: started, changed and deleted by Ray's own command, a real Redis behind it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import yaml
from checkpoints import write_checkpoint
from patience import PATIENCE_S
from publishing import edition, publish
from redis_server import RedisServer, free_port
from served_load import OPTIONS, Load, under_load

from igd_core.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint
    from igd_core.store.base import Store

_NAME = "igd"
_DELETE = f"""
import ray
from ray import serve
ray.init(namespace="serve", logging_level="ERROR", log_to_driver=False)
serve.delete("{_NAME}")
"""
ENVIRONMENT = {
    "RAY_SERVE_SESSION_ID_HEADER_KEY": "x-user-id",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "igd_server.ray_requests:proxy_middlewares",
    # A proxy that gets no word from a replica on a busy machine asks again, and asks no other one meanwhile.
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "5",
    "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "5",
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
}


@dataclass(slots=True, kw_only=True)
class RaySite:
    """One Ray of this test, with an application or none.

    Attributes:
        root: files of the test.
        session: Ray's own files; short, since sockets are among them.
        port: of Ray Serve's proxy.
        redis: the store.
        args: of the application, as a configuration file has them.
        tokenizer: of the model.
        editions: number by version, of all that was published.
    """

    root: Path
    session: Path
    port: int
    redis: RedisServer
    args: dict[str, Any]
    tokenizer: TitleTokenizer
    editions: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What Ray has told of itself and of replicas."""
        return (self.root / "log").read_text(encoding="utf-8", errors="replace")

    def deploy(self, *, deployment: dict[str, Any] | None = None, **args: str) -> None:
        """Start Ray with the application, or change the application of the Ray that runs; does not wait."""
        application: dict[str, Any] = {
            "name": _NAME,
            "import_path": "igd_server.ray_serve:app",
            "args": self.args | args,
        }
        if deployment:
            application["deployments"] = [{"name": _NAME, **deployment}]
        config = self.root / "serve.yaml"
        config.write_text(
            yaml.safe_dump({"http_options": {"host": "127.0.0.1", "port": self.port}, "applications": [application]})
        )
        command = [sys.executable, "-m", "ray.serve.scripts", "run", str(config)]
        with (self.root / "log").open("ab") as log:
            if self.process is None:
                self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment())
                return
            environment = self._environment() | {"RAY_ADDRESS": self._address()}
            subprocess.run([*command, "--non-blocking"], stdout=log, stderr=log, env=environment, check=True)

    def delete(self) -> None:
        """What `serve.delete` does; returns once the application has gone."""
        environment = self._environment() | {"RAY_ADDRESS": self._address()}
        subprocess.run([sys.executable, "-c", _DELETE], env=environment, check=True)

    def _address(self) -> str:
        """Of this Ray: ``auto`` would be any on the machine."""
        assert self.process is not None
        for each in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                for word in each.cmdline():
                    if word.startswith("--gcs-address="):
                        return word.partition("=")[2]
        raise AssertionError("no Ray")

    def _environment(self) -> dict[str, str]:
        return os.environ | ENVIRONMENT | {"RAY_TMPDIR": str(self.session)}

    def replicas(self) -> list[psutil.Process]:
        """Their processes, this Ray's alone."""
        assert self.process is not None
        found = []
        for each in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if f"ServeReplica:{_NAME}:{_NAME}" in " ".join(each.cmdline()):
                    found.append(each)
        return found

    def ready(self) -> bool:
        """Whether recommendations are served."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=PATIENCE_S).status_code == 200
        except httpx.HTTPError:
            return False

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait for something to become true."""
        deadline = time.monotonic() + 6 * PATIENCE_S
        while not true():
            assert self.process is None or self.process.poll() is None, self.log[-3000:]
            assert time.monotonic() < deadline, f"{what}\n{self.log[-3000:]}"
            time.sleep(0.2)

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        """As a publisher has it."""
        opened = open_store(self.redis.url, options=OPTIONS)
        try:
            yield opened
        finally:
            await opened.close()

    async def publish(self) -> str:
        """A new edition; returns its version."""
        artifact = edition(self.tokenizer, len(self.editions))
        self.editions[artifact.version] = len(self.editions)
        async with self.store() as store:
            return await publish(store, artifact, self.root)

    @contextlib.asynccontextmanager
    async def load(self, name: str) -> AsyncIterator[Load]:
        """See `under_load`."""
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=PATIENCE_S) as client,
            under_load(client, self.editions, name) as load,
        ):
            yield load

    def stop(self) -> None:
        """End Ray and whatever it has started."""
        if self.process is None or self.process.poll() is not None:
            return
        tree = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for each in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


@contextlib.contextmanager
def ray_site(
    root: Path, definition: dict[str, Any], tokenizer: TitleTokenizer, checkpoint: Checkpoint
) -> Iterator[RaySite]:
    """A site with the first edition published; `RaySite.deploy` starts it."""
    model = write_checkpoint(root / "model", checkpoint.model, definition)
    (root / "redis").mkdir()
    session = Path(tempfile.mkdtemp(prefix="ray"))
    with RedisServer(root / "redis") as redis:
        site = RaySite(
            root=root,
            session=session,
            port=free_port(),
            redis=redis,
            tokenizer=tokenizer,
            args={
                "replicas": "2",
                "cpus": 0.5,
                "catalogues": "films",
                "model": str(model),
                "device": "cpu",
                "store": redis.url,
                "cache_dir": str(root / "cache"),
                "open_access": "true",
                "trial_s": "0",
                "takeover_spread_s": "0",
            },
        )
        asyncio.run(site.publish())
        try:
            yield site
        finally:
            site.stop()
            shutil.rmtree(session, ignore_errors=True)
