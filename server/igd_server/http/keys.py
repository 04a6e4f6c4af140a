"""API keys, and the file with what is needed to check them.

A key is ``igd_ID_SECRET``: 12 hexadecimal digits that name it, and 64 that prove it. The file holds the SHA-256 of the
secret. Passwords need a slow, salted hash because people choose guessable ones; 256 random bits cannot be guessed at
any speed, so one fast hash is enough, and costs a request a microsecond.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeAlias, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from igd_core.errors import InputError
from igd_core.regular_files import require_regular
from igd_core.whole_files import sync, sync_file

if TYPE_CHECKING:
    from collections.abc import Iterator

Scope: TypeAlias = Literal["recommend", "events", "users", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""The scopes of a key; none includes another."""

KEY = re.compile(rb"igd_([0-9a-f]{12})_([0-9a-f]{64})")
_ID_BYTES = 6
_SECRET_BYTES = 32


class StoredKey(BaseModel):
    """What is stored of a key.

    Attributes:
        id: names it, also in logs.
        name: its user, for people.
        sha256: of the secret, hexadecimal.
        scopes: what it may be used for.
        created_at: when it was made.
        expires_at: from then on it is refused; None for never.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    name: Annotated[str, Field(min_length=1, max_length=128)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: frozenset[Scope]
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None

    def has_expired(self) -> bool:
        """Whether it has expired."""
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)


class KeyFile(BaseModel):
    """The file, as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    keys: tuple[StoredKey, ...] = ()

    @model_validator(mode="after")
    def _ids_differ(self) -> Self:
        if len({key.id for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have the same id")
        return self

    def without(self, key_id: str) -> Self:
        """The keys without one of them."""
        return self.model_copy(update={"keys": tuple(key for key in self.keys if key.id != key_id)})

    def with_key(self, key: StoredKey) -> Self:
        """The keys and one more."""
        return self.model_copy(update={"keys": (*self.keys, key)})


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A new key.

    Attributes:
        stored: what to store.
        token: what its user sends; it cannot be recovered.
    """

    stored: StoredKey
    token: str


def make_key(name: str, scopes: frozenset[Scope], expires_at: datetime | None) -> NewKey:
    """Make a key with a random id and secret.

    Raises:
        InputError: the name is empty or too long.
    """
    key_id, secret = secrets.token_hex(_ID_BYTES), secrets.token_hex(_SECRET_BYTES)
    try:
        stored = StoredKey(
            id=key_id,
            name=name,
            sha256=hashlib.sha256(secret.encode()).hexdigest(),
            scopes=scopes,
            created_at=datetime.now(UTC).replace(microsecond=0),
            expires_at=expires_at,
        )
    except ValidationError as error:
        raise InputError(_complaint(error)) from None
    return NewKey(stored=stored, token=f"igd_{key_id}_{secret}")


def read_keys(path: Path) -> KeyFile:
    """Read the keys in ``path``.

    Raises:
        InputError: it cannot be read, or is not a keys file; the message quotes no value.
    """
    try:
        require_regular(path)
        return KeyFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"keys file {path}: {error.strerror or error}") from None
    except ValidationError as error:
        raise InputError(f"keys file {path}: {_complaint(error)}") from None


@contextlib.contextmanager
def keys_to_change(path: Path) -> Iterator[KeyFile]:
    """The keys in ``path``, empty if there is no file; locked against other changes meanwhile.

    Raises:
        InputError: as `read_keys`, or the directory is missing.
    """
    path = path.resolve()
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"keys file {path}: {path.parent}: {error.strerror or error}") from None
    try:
        # Lock the directory: the file is replaced.
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield read_keys(path) if path.exists() else KeyFile()
    finally:
        os.close(directory)


def write_keys(path: Path, keys: KeyFile) -> None:
    """Replace the file atomically. A new one is only its owner's (mode 0600), an existing one keeps owner and mode.

    Raises:
        InputError: it cannot be written.
    """
    path = path.resolve()  # a link stays a link
    document = json.dumps(keys.model_dump(mode="json"), indent=1) + "\n"
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            _write_like(path, scratch, document.encode())
            scratch.replace(path)
            sync(path.parent)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"keys file {path}: {error.strerror or error}") from None


def _write_like(path: Path, scratch: Path, data: bytes) -> None:
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        if path.exists():
            # The server may run as another user, and read the file by its group.
            before, now = path.stat(), os.fstat(file.fileno())
            if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode) & 0o660)
        file.write(data)
        sync_file(file)


def _complaint(error: ValidationError) -> str:
    """What is wrong and where, without the value: it may be a secret put there by mistake."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    return f"{where}: {first['msg']}" if where else first["msg"]
