"""What an operator can set: environment variables that begin with ``IGD_``, or the flags of `igd serve`."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from igd_core.errors import InputError
from server.schemas import MAX_BATCH, MAX_HISTORY, MAX_TIMEOUT_MS

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX = "IGD_"
_READ_BY_THE_CORE = frozenset({"IGD_HOME"})


class Settings(BaseSettings):
    """Settings of one server process; immutable, built once, handed to whoever needs them.

    Attributes:
        artifact: the artefact's directory.
        model: a checkpoint's directory, or a hub's ``owner/name``.
        engine: what runs the model.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
        dtype: of the weights; ``auto`` is bfloat16 on CUDA, float32 elsewhere.
        cache_bytes: budget for key-value caches of past prompts, bytes; 0 keeps none.
        host: address to listen on.
        port: 0 takes a free one.
        max_body_bytes: longest request body, bytes.
        body_timeout_s: seconds a client may take to send a body.
        max_history_items: most item ids in a history.
        max_batch: most requests in a batch.
        default_timeout_ms: deadline of a request that names none, milliseconds.
        max_timeout_ms: longest deadline a request may name, milliseconds.
        keep_alive_s: seconds an idle connection stays open.
        grace_s: seconds that running requests get when the server is told to stop.
        log_level: ``info`` writes one line a request.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    artifact: Path
    model: Annotated[str, Field(min_length=1)]
    engine: Literal["tree"] = "tree"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$")] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    cache_bytes: Annotated[int, Field(ge=0)] = 256 << 20
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 1 << 20
    body_timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    max_history_items: Annotated[int, Field(ge=1, le=MAX_HISTORY)] = 1000
    max_batch: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 32
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


def read_settings(**flags: Any) -> Settings:  # noqa: ANN401 - checked by Settings
    """Settings from ``flags`` (those that are None do not count), then the environment, then the defaults.

    Raises:
        InputError: an ``IGD_`` variable that is no setting, or a value that cannot be used; one line.
    """
    _refuse_unknown(os.environ.keys())
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise InputError("; ".join(_complaint(dict(found)) for found in error.errors())) from None


def _refuse_unknown(names: Iterable[str]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | _READ_BY_THE_CORE
    for name in sorted(names):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), sorted(known), n=1)
            meant = f"; is {near[0]} meant?" if near else ""
            raise InputError(f"{name}: no such setting{meant}")


def _complaint(found: dict[str, Any]) -> str:
    if not found["loc"]:
        return str(found["ctx"]["error"])
    name = str(found["loc"][0])
    flag_or_variable = f"--{name.replace('_', '-')} or {PREFIX}{name.upper()}"
    if found["type"] == "missing":
        return f"{name}: give {flag_or_variable}"
    return f"{name}: {found['msg'].lower()}, not {found['input']!r} ({flag_or_variable})"
