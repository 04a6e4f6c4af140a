"""What the supervisor tells a replica's process at its start."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from igd_server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

READY = b"ready\n"
"""The replica's one answer: recommendations are served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """One line of JSON on the replica's standard input: no setting with a secret appears on a command line.

    Attributes:
        settings: the replica's own.
        number: from 1.
        listener: file descriptor of the port's socket.
        operations: path of the Unix socket for its operations port.
        board: path of the file for `igd_server.http.turns.Board`.
    """

    settings: Settings
    number: int
    listener: int
    operations: str
    board: str

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Self:
        """Parse the line."""
        return cls(**{**said, "settings": Settings.model_validate(said["settings"], strict=False)})

    def line(self) -> bytes:
        """The line, inverse of `read`."""
        said = {
            "settings": self.settings.model_dump(mode="json", exclude_unset=True),
            "number": self.number,
            "listener": self.listener,
            "operations": self.operations,
            "board": self.board,
        }
        return json.dumps(said).encode() + b"\n"
