"""What an operator can set: environment variables that begin with ``IGD_``, or the flags of `igd serve`."""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from igd_core.engines.embedded.adapters import parse_adapters
from igd_core.engines.open import EngineName
from igd_core.engines.vllm.options import parse_tuning
from igd_core.errors import InputError
from igd_server.api.schemas import MAX_BATCH, MAX_HISTORY, MAX_TIMEOUT_MS
from igd_server.variants import Variant

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

PREFIX = "IGD_"
CatalogueName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
_HOST = re.compile(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_READ_BY_THE_CORE = frozenset({"IGD_HOME"})
_SECRET = frozenset({"store", "otlp_endpoint"})
"""URLs that may hold a password."""


def _names(value: object) -> object:
    """``films,books`` is two names."""
    return tuple(filter(None, (name.strip() for name in value.split(",")))) if isinstance(value, str) else value


def _json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return tuple(json.loads(value))
    except (ValueError, TypeError) as error:
        raise ValueError(f"expected a JSON array: {error}") from None


def _adapters(value: object) -> object:
    """``tuned=DIR,other=DIR`` is two adapters."""
    if not isinstance(value, str):
        return value
    try:
        return tuple(parse_adapters(value).items())
    except InputError as error:
        raise ValueError(str(error).partition(": ")[2]) from None


def _vllm(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_tuning(value)
    except InputError as error:
        raise ValueError(str(error).removeprefix("vllm: ")) from None


def _host(value: str) -> str:
    if len(value) > 255 or not _HOST.fullmatch(value):
        raise ValueError("expected host names without a port, as igd.example or *.shop.example, or *")
    return value


HostName = Annotated[str, AfterValidator(_host)]


class Settings(BaseSettings):
    """Settings of one server process; immutable, built once, handed to whoever needs them.

    Attributes:
        artifact: the artefact's directory: one catalogue that never changes. Or else:
        catalogues: names of catalogues in the store, ``films,books``, the default one first; each is replaced while
            serving when its pointer moves.
        store: ``redis://``, ``rediss://``, ``redis+sentinel://``, ``redis+cluster://``, ``file:///DIRECTORY`` or
            ``memory://``.
        store_prefix: begins every key.
        store_timeout_ms: longest wait for one call of the store, milliseconds.
        cache_dir: where artefacts from the store are kept; ``IGD_HOME/artifacts`` when absent.
        state_dir: where attempts to serve a version are recorded; ``cache_dir`` when absent.
        trial_s: seconds of serving without a fault after which a version has passed its trial; 0: once it is warm.
        trial_answers: answers of the model after which it has, if that is sooner.
        canary: the other servers wait until a version has passed on the first one; else until it is served there.
        takeover_spread_s: seconds within which the other servers then take over, each at a time of its own.
        poll_s: seconds between looks at the catalogues' pointers, for when a message is lost.
        model: a checkpoint's directory, or a hub's ``owner/name``.
        engine: what runs the model: ``tree``, the embedded engine, or ``vllm``.
        adapters: LoRA adapters of the model that variants may name, as ``tuned=DIR,other=DIR``.
        vllm: how vLLM is started, as JSON: ``{"max_model_len": 2048}``; see docs/how-to/vllm.md.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
        dtype: of the weights; ``auto`` is bfloat16 on CUDA, float32 elsewhere.
        cache_bytes: the embedded engine's budget for key-value caches of past prompts, bytes; 0 keeps none.
        host: address to listen on.
        port: 0 takes a free one.
        max_body_bytes: longest request body, bytes.
        body_timeout_s: seconds a client may take to send a body.
        write_timeout_s: seconds a client may take to read an answer.
        max_unsent_bytes: of answers, that may wait to be read, bytes; a quarter of it for one connection.
        max_connections: most open connections of one address to ``port``; any number when absent.
        max_history_items: most item ids in a history.
        max_batch: most requests in a batch.
        exclude_seen_titles: whether items that read like one of the history count as seen, where a request is silent.
        history_max_events: events kept of a user, the latest.
        history_ttl_days: days after a user's last event at which the history is forgotten.
        result_ttl_s: seconds for which an answer of the model may be given again to the same question; 0 for never.
        local_results: answers also kept in this process.
        attribution_ttl_s: seconds for which an event may name the ``request_id`` that it answers.
        variants: what users are divided among, as JSON: ``[{"name": "control"}, {"name": "bold", "alpha": 0.4}]``; see
            `igd_server.variants`.
        max_running: recommendations in the model at once.
        max_waiting: recommendations that may wait for that; more are refused.
        rate_limit: requests a key (or, without keys, an address) may make, as ``600/minute``; none when absent.
        keys_file: API keys, as `igd keys` writes them.
        open_access: serve without keys on an address that others can reach.
        allowed_hosts: host names that requests may name besides this machine's own, as ``igd.example,*.shop.example``;
            ``*`` for any. Checked where no keys are asked for, or where this is set; see `igd_server.http.hosts`.
        operations_port: serve ``/metrics`` and ``/v1/admin`` there and not on ``port``.
        otlp_endpoint: where traces are sent, as ``http://collector:4318/v1/traces``; none when absent.
        default_timeout_ms: deadline of a request that names none, milliseconds.
        max_timeout_ms: longest deadline a request may name, milliseconds.
        keep_alive_s: seconds an idle connection stays open.
        grace_s: seconds that running requests get when the server is told to stop.
        log_level: ``info`` writes one line a request.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    artifact: Path | None = None
    catalogues: Annotated[tuple[CatalogueName, ...], Field(max_length=16), NoDecode, BeforeValidator(_names)] = ()
    # Both may hold a password.
    store: Annotated[str, Field(min_length=1, repr=False)] = "memory://"
    store_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")] = "igd"
    store_timeout_ms: Annotated[int, Field(ge=1, le=60_000)] = 250
    cache_dir: Path | None = None
    state_dir: Path | None = None
    trial_s: Annotated[float, Field(ge=0, le=3600)] = 15.0
    trial_answers: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    canary: bool = True
    takeover_spread_s: Annotated[float, Field(ge=0, le=3600)] = 5.0
    poll_s: Annotated[float, Field(gt=0, le=3600)] = 5.0
    model: Annotated[str, Field(min_length=1)]
    engine: EngineName = "tree"
    adapters: Annotated[tuple[tuple[str, Path], ...], Field(max_length=16), NoDecode, BeforeValidator(_adapters)] = ()
    vllm: Annotated[dict[str, Any] | None, NoDecode, BeforeValidator(_vllm)] = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$")] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    cache_bytes: Annotated[int, Field(ge=0)] = 256 << 20
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 1 << 20
    body_timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    write_timeout_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    max_unsent_bytes: Annotated[int, Field(ge=1 << 16, le=1 << 34)] = 64 << 20
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_history_items: Annotated[int, Field(ge=1, le=MAX_HISTORY)] = 1000
    max_batch: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 32
    exclude_seen_titles: bool = True
    history_max_events: Annotated[int, Field(ge=1, le=10_000)] = 500
    history_ttl_days: Annotated[float, Field(gt=0, le=36_500)] = 180.0
    result_ttl_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    local_results: Annotated[int, Field(ge=0, le=1_000_000)] = 4096
    attribution_ttl_s: Annotated[float, Field(gt=0, le=30 * 86_400)] = 86_400.0
    variants: Annotated[tuple[Variant, ...], Field(max_length=16), NoDecode, BeforeValidator(_json)] = ()
    max_running: Annotated[int, Field(ge=1, le=4096)] = 8
    max_waiting: Annotated[int, Field(ge=0, le=100_000)] = 64
    rate_limit: Annotated[str, Field(pattern=r"^[1-9]\d{0,8}/([1-9]\d{0,5} ?)?(second|minute|hour|day)$")] | None = None
    keys_file: Path | None = None
    open_access: bool = False
    allowed_hosts: Annotated[tuple[HostName, ...], Field(max_length=64), NoDecode, BeforeValidator(_names)] = ()
    operations_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    otlp_endpoint: Annotated[str | None, Field(pattern=r"^https?://", repr=False)] = None
    default_timeout_ms: Annotated[int, Field(ge=1, le=MAX_TIMEOUT_MS)] = 10_000
    max_timeout_ms: Annotated[int, Field(ge=1, le=MAX_TIMEOUT_MS)] = 60_000
    keep_alive_s: Annotated[int, Field(ge=1, le=3600)] = 75
    grace_s: Annotated[int, Field(ge=1, le=3600)] = 30
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _deadlines_agree(self) -> Self:
        if self.default_timeout_ms > self.max_timeout_ms:
            raise ValueError(
                f"default_timeout_ms {self.default_timeout_ms} is above max_timeout_ms {self.max_timeout_ms}"
            )
        return self

    @model_validator(mode="after")
    def _one_source_of_catalogues(self) -> Self:
        if (self.artifact is None) == (not self.catalogues):
            raise ValueError("artifact or catalogues: give one of them (--artifact DIR, or --catalogues NAME,...)")
        if len(set(self.catalogues)) < len(self.catalogues):
            raise ValueError(f"catalogues: {list(self.catalogues)} names one twice")
        return self

    @model_validator(mode="after")
    def _engine_takes_its_settings(self) -> Self:
        if self.vllm is not None and self.engine != "vllm":
            raise ValueError(f"vllm: given, with engine {self.engine!r} (--engine vllm, or leave it out)")
        if self.engine == "vllm" and self.device != "auto":
            raise ValueError(f"device: {self.device!r} with engine 'vllm', which runs on what it was installed for")
        return self

    @model_validator(mode="after")
    def _variants_differ(self) -> Self:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError(f"variants: {names} names one twice")
        if self.variants and not sum(variant.weight for variant in self.variants):
            raise ValueError("variants: all weights are 0")
        return self

    @model_validator(mode="after")
    def _closed_unless_told(self) -> Self:
        if self.keys_file is None and not self.open_access and not is_loopback(self.host):
            raise ValueError(
                f"host: {self.host} can be reached by others: give API keys (IGD_KEYS_FILE, or igd serve --keys-file "
                "FILE), or say that this is meant (IGD_OPEN_ACCESS=true, or igd serve --open-access)"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_settings(**flags: Any) -> Settings:  # noqa: ANN401 - checked by Settings
    """Settings from ``flags`` (those that are None were not given), then the environment, then the defaults.

    Complaints name a flag only where ``flags`` has it.

    Raises:
        InputError: an ``IGD_`` variable that is no setting, or a value that cannot be used; one line.
    """
    _refuse_unknown(os.environ.keys())
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise InputError("; ".join(_complaint(dict(found), flags.keys()) for found in error.errors())) from None


def _refuse_unknown(names: Iterable[str]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | _READ_BY_THE_CORE
    for name in sorted(names):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), sorted(known), n=1)
            meant = f"; is {near[0]} meant?" if near else ""
            raise InputError(f"{name}: no such setting{meant}")


def _complaint(found: dict[str, Any], flags: Collection[str]) -> str:
    if not found["loc"]:
        return str(found["ctx"]["error"])
    name, *inside = map(str, found["loc"])
    variable = PREFIX + name.upper()
    flag_or_variable = f"--{name.replace('_', '-')} or {variable}" if name in flags else variable
    if found["type"] == "missing":
        return f"{name}: give {flag_or_variable}"
    where = ".".join([name, *inside])
    given = "" if name in _SECRET else f", not {found['input']!r}"
    message = found["ctx"]["error"] if found["type"] == "value_error" else found["msg"].lower()
    return f"{where}: {message}{given} ({flag_or_variable})"
