"""What an operator can set: environment variables that begin with ``IGD_``, or the flags of `igd serve`."""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from igd_core.checked_settings import CheckedSettings, Directory, File, Flag, Listed, comma_separated
from igd_core.engines.embedded.adapters import parse_adapters
from igd_core.engines.forward_choice import ForwardChoice, PrecisionChoice
from igd_core.engines.open import EngineName
from igd_core.engines.vllm.options import parse_tuning
from igd_core.errors import InputError
from igd_core.event_kinds import HISTORY_KINDS, KIND, KINDS, MAX_KINDS, SUCCESS_KINDS, UNSAID_KIND
from igd_core.search.normalisation import Normalise
from igd_server.api.schemas import MAX_BATCH, MAX_HISTORY, MAX_TIMEOUT_MS
from igd_server.variants import Variant

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

PREFIX = "IGD_"
KindName = Annotated[str, Field(pattern=KIND)]
CatalogueName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
_HOST = re.compile(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_READ_BY_THE_CORE = frozenset({"IGD_HOME"})


def _json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return tuple(json.loads(value))
    except (ValueError, TypeError) as error:
        raise ValueError(f"expected a JSON array: {error}") from None


def _adapters(value: object) -> object:
    """Split ``tuned=DIR,other=DIR`` into two adapters; a file may have a table of them."""
    if isinstance(value, dict):
        return tuple(value.items())
    if not isinstance(value, str):
        return value
    try:
        return tuple(parse_adapters(value).items())
    except InputError as error:
        raise ValueError(str(error).partition(": ")[2]) from None


def _vllm(value: object) -> object:
    try:
        return parse_tuning(value if isinstance(value, str) else json.dumps(value))
    except InputError as error:
        raise ValueError(str(error).removeprefix("vllm: ")) from None


def _host(value: str) -> str:
    if len(value) > 255 or not _HOST.fullmatch(value):
        raise ValueError("expected host names without a port, as igd.example or *.shop.example, or *")
    return value


HostName = Annotated[str, AfterValidator(_host)]
Adapter = Annotated[tuple[str, Directory], Field(strict=False)]


class Settings(CheckedSettings):
    """Settings of one server process; immutable, built once, handed to whoever needs them."""

    artifact: Directory | None = Field(
        default=None,
        description="directory of one artifact: one catalogue that never changes. Give this or ``catalogues``",
    )
    catalogues: Annotated[Listed[CatalogueName], BeforeValidator(comma_separated), Flag(metavar="NAME,...")] = Field(
        default=(),
        max_length=16,
        description="names of catalogues in the store, ``films,books``, the default one first; 16 at most",
    )
    store: Annotated[str, Flag(metavar="URL")] = Field(
        default="memory://",
        min_length=1,
        repr=False,
        description="where artifacts, histories and answers are kept: docs/how-to/redis.md",
    )
    store_prefix: Annotated[str, Flag(metavar="TEXT")] = Field(
        default="igd",
        pattern="^[A-Za-z0-9_.:-]{1,64}$",
        description="begins every key in Redis; servers that share data share it",
    )
    store_timeout_ms: int = Field(
        default=250, ge=1, le=60_000, description="longest that a request waits for one call of the store"
    )
    cache_dir: Directory | None = Field(
        default=None,
        description="where artifacts from the store are kept, ``IGD_HOME/artifacts`` when absent; keep it over "
        "restarts",
    )
    state_dir: Directory | None = Field(
        default=None,
        description="where attempts to serve a version are on record: "
        "docs/how-to/publish.md#how-a-new-version-takes-over; the folder of ``IGD_CACHE_DIR`` when empty",
    )
    trial_s: float = Field(
        default=15.0,
        ge=0,
        le=3600,
        description="seconds without a fault after which a new version has passed its trial on a server; 0: as soon "
        "as it is warm",
    )
    trial_answers: int = Field(
        default=100,
        ge=1,
        le=1_000_000,
        description="answers of the model after which a new version has passed, if that is sooner",
    )
    canary: bool = Field(
        default=True,
        description="the other servers wait until a version has passed on the first one; ``false``: until it is "
        "served there",
    )
    takeover_spread_s: float = Field(
        default=5.0,
        ge=0,
        le=3600,
        description="seconds within which the other servers take over a version that has passed, each at a time of "
        "its own",
    )
    poll_s: float = Field(
        default=5.0,
        gt=0,
        le=3600,
        description="seconds between looks at the catalogues' pointers, for when a message is lost",
    )
    model: Annotated[str, Flag(metavar="DIR")] = Field(
        min_length=1, description="checkpoint's directory, or a hub's ``owner/name``"
    )
    engine: EngineName = Field(
        default="tree",
        description="what runs the model: ``tree``, the embedded engine, or ``vllm``: docs/how-to/vllm.md",
    )
    max_model_bytes: int = Field(
        default=32 << 30,
        ge=1,
        description="a published model with larger files is not taken: docs/how-to/publish.md#models",
    )
    adapters: Annotated[Listed[Adapter], BeforeValidator(_adapters), Flag(metavar="NAME=DIR,...")] = Field(
        default=(),
        max_length=16,
        description="LoRA adapters of the model that variants may name: ``tuned=DIR,other=DIR``; 16 at most",
    )
    vllm: Annotated[dict[str, Any], BeforeValidator(_vllm), Flag(metavar="JSON")] | None = Field(
        default=None,
        description='how vLLM is started: ``{"max_model_len": 2048}``; docs/how-to/vllm.md has the options',
    )
    device: Annotated[str, Flag(metavar="NAME")] = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$",
        description="what computes: ``cpu``, ``cuda``, ``cuda:1``, ``mps``",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="type of the weights: ``float32``, ``bfloat16``, ``float16``; ``auto`` is bfloat16 on CUDA, "
        "float32 elsewhere",
    )
    forward: ForwardChoice = Field(
        default="auto",
        description="how the embedded engine runs the model: ``own``, its own forward (Llama, Mistral, Qwen2, Qwen3; "
        "on a CPU in float32, on a GPU in any type); ``transformers``; ``auto`` is the own one where a test at the "
        "start proves it equal",
    )
    precision: PrecisionChoice = Field(
        default="fp32",
        description="of the embedded engine's products on a CPU: ``fp32``, the same lists everywhere; ``bf16``, faster "
        "where the processor has instructions for it, and refused where a test at the start finds other next tokens; "
        "``auto`` is bf16 where it has them, is faster and passes the test",
    )
    cache_bytes: int = Field(
        default=256 << 20, ge=0, description="the embedded engine's key-value caches of past prompts; 0 keeps none"
    )
    host: Annotated[str, Flag(metavar="ADDRESS")] = Field(
        default="127.0.0.1",
        min_length=1,
        description="address to listen on; another needs ``IGD_KEYS_FILE`` or ``IGD_OPEN_ACCESS=true``",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    replicas: int = Field(
        default=1,
        ge=1,
        le=256,
        description="processes that serve the port together, each with a model of its own; more than 1 need "
        "``IGD_OPERATIONS_PORT`` and a store that they share: docs/how-to/deploy.md#several-processes-on-one-machine",
    )
    replica_silence_s: float = Field(
        default=60.0,
        ge=0,
        le=3600,
        description="seconds without a sign of life after which one of several processes that serves is killed and "
        "started again; 0 for never, as under a debugger",
    )
    max_body_bytes: int = Field(default=1 << 20, ge=1024, le=1 << 30, description="longest request body")
    body_timeout_s: float = Field(
        default=10.0, gt=0, le=600, description="seconds that a request's head may take to arrive, and then its body"
    )
    write_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=600,
        description="seconds that a client may take to read its answer; then its connection is cut off",
    )
    max_unsent_bytes: int = Field(
        default=64 << 20,
        ge=1 << 16,
        le=1 << 34,
        description="bytes of answers that clients have not read; above it, or above a quarter of it for one "
        "connection, those for whom most waits are cut off",
    )
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None,
        description="most open connections of one address to ``IGD_PORT`` (of IPv6, of a network of 64 bits); any "
        "number when absent, as behind a proxy: docs/how-to/operate.md#ports-and-probes",
    )
    max_history_items: int = Field(default=1000, ge=1, le=MAX_HISTORY, description="most item ids in a history")
    max_batch: int = Field(default=32, ge=1, le=MAX_BATCH, description="most requests in a batch")
    normalise: Normalise | None = Field(
        default=None,
        description="what probabilities are normalised over where neither request nor variant says, ``vocabulary`` or "
        "``children``; when absent ``children`` where an item scorer is mixed in and no forced weight is named, else "
        "what the model was tuned for: docs/explanation/method.md",
    )
    exclude_seen_titles: bool = Field(
        default=True,
        description="whether items that read like one of the history count as seen, where a request does not say "
        "(``exclude_seen_titles``)",
    )
    history_max_events: int = Field(default=500, ge=1, le=10_000, description="events kept of a user, the latest")
    history_ttl_days: float = Field(
        default=180.0, gt=0, le=36_500, description="days after a user's last event at which the history is forgotten"
    )
    result_ttl_s: float = Field(
        default=60.0,
        ge=0,
        le=86_400,
        description="seconds for which an answer may be given again to the same question; 0 for never",
    )
    local_results: int = Field(default=4096, ge=0, le=1_000_000, description="answers that this process keeps itself")
    attribution_ttl_s: float = Field(
        default=86_400.0,
        gt=0,
        le=30 * 86_400,
        description="seconds for which an event may name the answer that it follows",
    )
    event_kinds: Annotated[Listed[KindName], BeforeValidator(comma_separated), Flag(metavar="NAME,...")] = Field(
        default=KINDS,
        max_length=MAX_KINDS,
        description="kinds that events may have; others are refused. ``click``, the kind of an event that names none, "
        "is always one: docs/how-to/events.md",
    )
    history_kinds: Annotated[Listed[KindName], BeforeValidator(comma_separated), Flag(metavar="NAME,...")] = Field(
        default=HISTORY_KINDS,
        max_length=MAX_KINDS,
        description="of these, those that make a history; the others are kept beside it",
    )
    success_kinds: Annotated[Listed[KindName], BeforeValidator(comma_separated), Flag(metavar="NAME,...")] = Field(
        default=SUCCESS_KINDS,
        max_length=MAX_KINDS,
        description="of these, those that count as a success of the answer that an event names",
    )
    impressions: bool = Field(
        default=False,
        description="whether what answers show is put on record, by user, for ``igd export``: docs/how-to/events.md",
    )
    impressions_per_user: int = Field(
        default=100, ge=1, le=10_000, description="answers that are kept on record of a user, the latest"
    )
    impressions_ttl_days: float = Field(
        default=30.0, gt=0, le=3650, description="days for which an answer is kept on record"
    )
    precomputed: bool = Field(
        default=False,
        description="whether a user's list that ``igd precompute`` stored is given, before popularity, when the model "
        "cannot answer: docs/how-to/batch.md",
    )
    variants: Annotated[Listed[Variant], BeforeValidator(_json), Flag(metavar="JSON")] = Field(
        default=(),
        max_length=16,
        description='what users are divided among: ``[{"name": "control", "weight": 9}, {"name": "bold", "alpha": '
        "0.4}]``; a variant may set ``alpha``, ``beams``, ``forced_weight``, ``normalise``, "
        "``temperature``, ``gamma`` (a number, or ``[[0, 0.8], [5, 0.5]]`` for histories of 0 and of 5 interactions "
        "on), ``mixture``, ``catalogue`` and ``adapter``",
    )
    max_running: int = Field(
        default=8,
        ge=1,
        le=4096,
        description="recommendations in the model at once; one more for each four is for callers who have none there",
    )
    max_waiting: int = Field(
        default=64,
        ge=0,
        le=100_000,
        description="recommendations that may wait for that; above it, whoever has most of them is refused",
    )
    rate_limit: (
        Annotated[
            str, Field(pattern=r"^[1-9]\d{0,8}/([1-9]\d{0,5} ?)?(second|minute|hour|day)$"), Flag(metavar="LIMIT")
        ]
        | None
    ) = Field(
        default=None,
        description="requests a key (without keys: an address) may make, as ``600/minute``; an entry of a batch is "
        "one, ten events are one, more beams are more: docs/how-to/keys.md",
    )
    keys_file: File | None = Field(default=None, description="API keys, as ``igd keys`` writes them")
    open_access: bool = Field(default=False, description="serve without keys on an address that others reach")
    allowed_hosts: Annotated[Listed[HostName], BeforeValidator(comma_separated), Flag(metavar="NAME,...")] = Field(
        default=(),
        max_length=64,
        description="host names to answer to besides this machine's own, ``igd.example,*.shop.example``; ``*`` for "
        "any: docs/how-to/keys.md#host-names",
    )
    operations_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        default=None, description="``/metrics`` and ``/v1/admin`` are there, and no longer on ``IGD_PORT``"
    )
    otlp_endpoint: Annotated[str, Field(pattern="^https?://"), Flag(metavar="URL")] | None = Field(
        default=None,
        repr=False,
        description="where traces go, as ``http://collector:4318/v1/traces``; needs ``igd-recommender[tracing]``",
    )
    default_timeout_ms: int = Field(
        default=10_000, ge=1, le=MAX_TIMEOUT_MS, description="deadline of a request that names none"
    )
    max_timeout_ms: int = Field(
        default=60_000, ge=1, le=MAX_TIMEOUT_MS, description="longest deadline that a request may name"
    )
    keep_alive_s: int = Field(
        default=75,
        ge=1,
        le=3600,
        description="seconds that an idle connection stays open; more than the load balancer's own, so that it closes "
        "first",
    )
    grace_s: int = Field(default=30, ge=1, le=3600, description="seconds from the signal to stop to the end")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="least severe lines that are written: ``debug``, ``info`` (one line a request), ``warning``, "
        "``error``",
    )

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
    def _kinds_are_known(self) -> Self:
        if UNSAID_KIND not in self.event_kinds:
            raise ValueError(f"event_kinds: without {UNSAID_KIND!r}, which events are that name no kind")
        for name in ("history_kinds", "success_kinds"):
            unknown = [kind for kind in getattr(self, name) if kind not in self.event_kinds]
            if unknown and name in self.model_fields_set:  # a default is of those that there are
                raise ValueError(f"{name}: {unknown[0]!r} is not in event_kinds: {', '.join(self.event_kinds)}")
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
    def _replicas_can_share(self) -> Self:
        complaint = self._why_not_several() if self.replicas > 1 else None
        if complaint is not None:
            raise ValueError(f"replicas: {self.replicas} {complaint}")
        return self

    def _why_not_several(self) -> str | None:
        """What several processes would each have for themselves, though an operator means it of the whole server."""
        faults = {
            "without operations_port, where metrics and probes of all of them are (IGD_OPERATIONS_PORT)": (
                self.operations_port is None
            ),
            "with engine 'vllm', which fills a card from one process: docs/how-to/deploy.md#scaling-out": (
                self.engine == "vllm"
            ),
            "with store memory://, of which each would have its own, with other histories: give file:/// or redis:// "
            "(IGD_STORE)": self.store.startswith("memory"),
            "with rate_limit, which they count together only in Redis (IGD_STORE)": (
                self.rate_limit is not None and not self.store.startswith("redis")
            ),
            "with max_connections, which none can count for all: let a proxy bound connections": (
                self.max_connections is not None
            ),
            f"with max_running {self.max_running}, which they divide: one each at least": (
                self.max_running < self.replicas
            ),
        }
        return next((fault for fault, found in faults.items() if found), None)

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


def read_settings(file: Mapping[str, Any] = MappingProxyType({}), /, **flags: Any) -> Settings:  # noqa: ANN401
    """Settings from ``flags`` (those that are None were not given), then the environment, then ``file``, then defaults.

    Messages name a flag only if ``flags`` has it.

    Raises:
        InputError: an ``IGD_`` variable that is not a setting, or a value that cannot be used; one line.
    """
    _refuse_unknown(os.environ.keys())
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings.model_validate({**file, **_environment(), **given}, strict=False)  # variables are text
    except ValidationError as error:
        raise InputError("; ".join(_complaint(dict(found), flags.keys()) for found in error.errors())) from None


def _environment() -> dict[str, str]:
    """Variables that are set; an empty one says nothing."""
    said = {name.upper(): value for name, value in os.environ.items() if value}
    return {name: said[variable] for name in Settings.model_fields if (variable := PREFIX + name.upper()) in said}


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
    shown = name in Settings.model_fields and Settings.model_fields[name].repr
    given = "" if not shown else f", not {found['input']!r}"
    message = found["ctx"]["error"] if found["type"] == "value_error" else found["msg"].lower()
    return f"{where}: {message}{given} ({flag_or_variable})"
