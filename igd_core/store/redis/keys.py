"""The keys of one catalogue in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from igd_core.store.names import require_shelf

if TYPE_CHECKING:
    from igd_core.store.bundles import Chunk, Layout


class Keys:
    """The keys of one catalogue; the name in braces puts all of them in one hash slot of a cluster."""

    def __init__(self, prefix: str, catalogue: str) -> None:
        start = f"{prefix}:{{{require_shelf(catalogue)}}}"
        self.versions = f"{start}:versions"
        self.pointer = f"{start}:pointer"
        self.holds = f"{start}:holds"
        self.trials = f"{start}:trials"
        self._chunks = f"{start}:chunk"

    def chunk(self, version: str, chunk: Chunk) -> str:
        """Key of a chunk."""
        return f"{self._chunks}:{version}:{chunk.name}:{chunk.index}"

    def chunks(self, version: str, layout: Layout) -> list[str]:
        """Keys of all chunks of all files."""
        return [self.chunk(version, chunk) for chunk in layout.chunks()]
