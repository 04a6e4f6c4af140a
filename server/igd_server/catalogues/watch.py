"""Counts of a version's answers and faults since it was loaded."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from igd_core.errors import DeadlineExceeded, EngineError, IGDError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_FAULT_CHARS = 200


class AnswerWatch:
    """Counts the model's answers and faults; one object for each loaded version.

    Attributes:
        answers: answers of the model.
        faults: calls that failed in the engine, or in our code; a request that cannot be served, or its deadline, is
            none.
        last_fault: one line, for operators.
    """

    __slots__ = ("answers", "faults", "last_fault")

    def __init__(self) -> None:
        self.answers = 0
        self.faults = 0
        self.last_fault = ""

    @contextlib.contextmanager
    def answer(self) -> Iterator[None]:
        """Count one call of the model, which is the block."""
        try:
            yield
        except DeadlineExceeded:
            raise
        except Exception as error:
            if isinstance(error, EngineError) or not isinstance(error, IGDError):
                self.faults += 1
                said = str(error) if isinstance(error, EngineError) else type(error).__name__
                self.last_fault = " ".join(said.split())[:_MAX_FAULT_CHARS]
            raise
        self.answers += 1
