"""The server as an application of Ray Serve: ``serve run igd_server.ray_serve:app replicas=1:8 catalogues=films ...``.

Each replica is a whole server, with an engine of its own; the catalogues, histories and answers are in the store that
all of them share. Ray Serve takes the connections, starts replicas on a cluster's machines, adds and removes them, and
starts again those that end. Settings are those of `igd serve`, by name or as ``IGD_...`` variables of the machines.
docs/how-to/ray-serve.md says what is different.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import Field

from igd_core.checked_settings import CheckedSettings
from igd_core.errors import InputError
from igd_server.app import create_apps
from igd_server.observe.logs import log_to_stderr
from igd_server.ray_requests import InReplica
from igd_server.settings import Settings, read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp

    from igd_server.app import Apps

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
"""Keeps whoever sends the same header on one replica, which has the prompt; goes to the next one if that is busy."""

_AFTER_GRACE_S = 10.0
"""Background writes and spans come after ``grace_s``; Ray Serve kills a replica only then."""
_LAST_REQUESTS_S = 1.0
"""How often a replica that stops looks whether it has requests; proxies hear meanwhile that it takes no more."""
_REFUSED_BY_US = 64
"""Requests beyond what a replica admits that it is given all the same, to refuse them with a reason."""
_REPLICAS = re.compile(r"([0-9]{1,4})(?::([0-9]{1,4}))?")


class Placement(CheckedSettings):
    """How many replicas, and what each takes.

    Attributes:
        least: replicas.
        most: the same, or more if Ray Serve may add some.
        cpus: of each, and so its threads.
        gpus: of each; a fraction shares a card.
    """

    least: int = Field(default=1, ge=1, le=1000)
    most: int = Field(default=1, ge=1, le=1000)
    cpus: float = Field(default=1.0, gt=0, le=1024)
    gpus: float = Field(default=0.0, ge=0, le=64)

    @classmethod
    def taken_from(cls, given: dict[str, Any]) -> Placement:
        """Take ``replicas`` (``2``, or ``1:8``), ``cpus`` and ``gpus`` out of ``given``.

        Raises:
            InputError: names the value.
        """
        text = str(given.pop("replicas", "1"))
        found = _REPLICAS.fullmatch(text)
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= least <= most:
            raise InputError(f"replicas: {text[:40]!r} is not N or MIN:MAX")
        numbers: dict[str, float] = {}
        for name in ("cpus", "gpus"):
            if name in given:
                value = given.pop(name)
                try:
                    numbers[name] = float(value)
                except (TypeError, ValueError):
                    raise InputError(f"{name}: {str(value)[:40]!r} is no number") from None
        return cls.read({"least": least, "most": most, **numbers})


def app(args: Mapping[str, Any]) -> Any:  # noqa: ANN401 - an Application; Ray's types are not there where it is not
    """Build the application.

    Args:
        args: ``replicas``, ``cpus``, ``gpus``; all else are settings of `igd serve` by name.

    Raises:
        InputError: names a value that cannot be used.
    """
    from ray import serve
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig

    given = dict(args)
    placement = Placement.taken_from(given)
    settings = settings_of(given)
    admitted = settings.max_running + settings.max_waiting
    scaling: dict[str, Any] = {"num_replicas": placement.least}
    if placement.most > placement.least:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=placement.least,
                max_replicas=placement.most,
                target_ongoing_requests=settings.max_running,
            )
        }
    deployment = serve.deployment(
        serve.ingress()(Server),
        name="igd",
        max_ongoing_requests=admitted + _REFUSED_BY_US,
        graceful_shutdown_timeout_s=settings.grace_s + _AFTER_GRACE_S,
        graceful_shutdown_wait_loop_s=_LAST_REQUESTS_S,
        **_health_checks(settings.replica_silence_s),
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        ray_actor_options={
            "num_cpus": placement.cpus,
            "num_gpus": placement.gpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(max(1, int(placement.cpus)))}},
        },
        **scaling,
    )
    return deployment.bind(given)


def _health_checks(silence_s: float) -> dict[str, float]:
    """Three that fail one after the other end a replica: together so long. Ray Serve's own where there is no limit."""
    return {"health_check_period_s": silence_s / 12, "health_check_timeout_s": silence_s / 4} if silence_s else {}


def settings_of(given: Mapping[str, Any]) -> Settings:
    """The settings of a replica: those given, then the machine's variables. Ray Serve's port may be open to others.

    Raises:
        InputError: names a value that cannot be used, or a setting that means nothing here.
    """
    settings = read_settings({"host": "0.0.0.0"}, **given)  # noqa: S104 - so keys, or open access, must be asked for
    if settings.replicas > 1 or settings.operations_port is not None:
        name = "replicas" if settings.replicas > 1 else "operations_port"
        raise InputError(f"{name}: means nothing under Ray Serve, which has the processes and the port")
    return settings


class Server:
    """One replica. Ray Serve calls it ready once it serves, and starts another one when it says that it has failed."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        """Load nothing yet."""
        self._settings = settings_of(given)
        self._apps: Apps | None = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The app; Ray Serve calls this once."""
        log_to_stderr(self._settings.log_level)
        self._apps = create_apps(self._settings)
        return InReplica(self._apps.main, self._apps.deployment)

    async def check_health(self) -> None:
        """Raise what the deployment has failed with."""
        if self._apps is not None and self._apps.deployment.failure is not None:
            raise self._apps.deployment.failure
