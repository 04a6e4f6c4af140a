"""Open a store by its URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from igd_core.errors import InputError
from igd_core.store.base import Store, StoreOptions
from igd_core.store.memory import MemoryStore
from igd_core.store.names import without_secrets

__all__ = ["StoreOptions", "open_store"]

MEMORY = "memory://"


def open_store(url: str, *, options: StoreOptions | None = None) -> Store:
    """The store that ``url`` names; it connects or opens files only at the first call.

    ``memory://`` · ``file:///DIRECTORY`` · ``redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`` ·
    ``redis+sentinel://HOST:PORT,HOST:PORT/SERVICE[/DATABASE]`` · ``redis+cluster://HOST:PORT,HOST:PORT``; with
    ``rediss`` in the place of ``redis`` for TLS. See docs/how-to/redis.md for options behind a ``?``.

    Raises:
        InputError: no such kind of store, or an unusable address; never shows the password.
    """
    options = options or StoreOptions()
    scheme = url.partition("://")[0]
    if url == MEMORY:
        return MemoryStore(options)
    if scheme == "file":
        from igd_core.store.files import FilesStore

        return FilesStore(_directory_of(url), options)
    if scheme in {"redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"}:
        try:
            from igd_core.store.redis import open_redis
        except ModuleNotFoundError as error:
            raise InputError(f"{error.name} is not installed: pip install 'igd-recommender[server]'") from None
        return open_redis(url, options)
    raise InputError(f"store: {without_secrets(url)!r} is no redis://, rediss://, file:/// or memory:// URL")


def _directory_of(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or parts.query or parts.fragment:
        raise InputError(f"store: {url!r} is not file:/// and an absolute path")
    return Path(unquote(parts.path))
