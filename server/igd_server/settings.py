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
from igd_core.search.normalisation import Normalise
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
    """Split ``films,books`` into two names."""
    return tuple(filter(None, (name.strip() for name in value.split(",")))) if isinstance(value, str) else value


def _json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return tuple(json.loads(value))
    except (ValueError, TypeError) as error:
        raise ValueError(f"expected a JSON array: {error}") from None


def _adapters(value: object) -> object:
    """Split ``tuned=DIR,other=DIR`` into two adapters."""
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
        artifact: directory of one artifact: one catalogue that never changes. Give this or ``catalogues``
        catalogues: names of catalogues in the store, ``films,books``, the default one first; 16 at most
        store: where artifacts, histories and answers are kept: docs/how-to/redis.md
        store_prefix: begins every key in Redis; servers that share data share it
        store_timeout_ms: longest that a request waits for one call of the store
        cache_dir: where artifacts from the store are kept, ``IGD_HOME/artifacts`` when absent; keep it over restarts
        state_dir: where attempts to serve a version are on record: docs/how-to/publish.md#how-a-new-version-takes-over;
            the folder of ``IGD_CACHE_DIR`` when empty
        trial_s: seconds without a fault after which a new version has passed its trial on a server; 0: as soon as it is
            warm
        trial_answers: answers of the model after which a new version has passed, if that is sooner
        canary: the other servers wait until a version has passed on the first one; ``false``: until it is served there
        takeover_spread_s: seconds within which the other servers take over a version that has passed, each at a time of
            its own
        poll_s: seconds between looks at the catalogues' pointers, for when a message is lost
        model: checkpoint's directory, or a hub's ``owner/name``
        engine: what runs the model: ``tree``, the embedded engine, or ``vllm``: docs/how-to/vllm.md
        adapters: LoRA adapters of the model that variants may name: ``tuned=DIR,other=DIR``; 16 at most
        vllm: how vLLM is started: ``{"max_model_len": 2048}``; docs/how-to/vllm.md has the options
        device: what computes: ``cpu``, ``cuda``, ``cuda:1``, ``mps``
        dtype: type of the weights: ``float32``, ``bfloat16``, ``float16``; ``auto`` is bfloat16 on CUDA, float32
            elsewhere
        cache_bytes: the embedded engine's key-value caches of past prompts; 0 keeps none
        host: address to listen on; another needs ``IGD_KEYS_FILE`` or ``IGD_OPEN_ACCESS=true``
        port: port to listen on; 0 takes a free one
        operations_port: ``/metrics`` and ``/v1/admin`` are there, and no longer on ``IGD_PORT``
        keys_file: API keys, as ``igd keys`` writes them
        open_access: serve without keys on an address that others reach
        allowed_hosts: host names to answer to besides this machine's own, ``igd.example,*.shop.example``; ``*`` for
            any: docs/how-to/keys.md#host-names
        rate_limit: requests a key (without keys: an address) may make, as ``600/minute``; an entry of a batch is one,
            ten events are one, more beams are more: docs/how-to/keys.md
        max_body_bytes: longest request body
        body_timeout_s: seconds that a request's head may take to arrive, and then its body
        write_timeout_s: seconds that a client may take to read its answer; then its connection is cut off
        max_unsent_bytes: bytes of answers that clients have not read; above it, or above a quarter of it for one
            connection, those for whom most waits are cut off
        max_connections: most open connections of one address to ``IGD_PORT`` (of IPv6, of a network of 64 bits); any
            number when absent, as behind a proxy: docs/how-to/operate.md#ports-and-probes
        max_history_items: most item ids in a history
        normalise: what probabilities are normalised over where neither request nor variant says, ``vocabulary`` or
            ``children``; what the model was tuned for when absent: docs/explanation/method.md
        exclude_seen_titles: whether items that read like one of the history count as seen, where a request does not say
            (``exclude_seen_titles``)
        max_batch: most requests in a batch
        history_max_events: events kept of a user, the latest
        history_ttl_days: days after a user's last event at which the history is forgotten
        result_ttl_s: seconds for which an answer may be given again to the same question; 0 for never
        local_results: answers that this process keeps itself
        attribution_ttl_s: seconds for which an event may name the answer that it follows
        variants: what users are divided among: ``[{"name": "control", "weight": 9}, {"name": "bold", "alpha": 0.4}]``;
            a variant may set ``alpha``, ``beams``, ``forced_weight``, ``normalise``, ``temperature``, ``catalogue`` and
            ``adapter``
        max_running: recommendations in the model at once; one more for each four is for callers who have none there
        max_waiting: recommendations that may wait for that; above it, whoever has most of them is refused
        default_timeout_ms: deadline of a request that names none
        max_timeout_ms: longest deadline that a request may name
        keep_alive_s: seconds that an idle connection stays open; more than the load balancer's own, so that it closes
            first
        grace_s: seconds from the signal to stop to the end
        otlp_endpoint: where traces go, as ``http://collector:4318/v1/traces``; needs ``igd-recommender[tracing]``
        log_level: least severe lines that are written: ``debug``, ``info`` (one line a request), ``warning``, ``error``
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    artifact: Path | None = None
    catalogues: Annotated[tuple[CatalogueName, ...], Field(max_length=16), NoDecode, BeforeValidator(_names)] = ()
    # Both may contain a password.
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
    normalise: Normalise | None = None
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
    """Whether a server that listens on ``host`` can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_settings(**flags: Any) -> Settings:  # noqa: ANN401 - checked by Settings
    """Settings from ``flags`` (those that are None were not given), then the environment, then the defaults.

    Messages name a flag only if ``flags`` has it.

    Raises:
        InputError: an ``IGD_`` variable that is not a setting, or a value that cannot be used; one line.
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
