"""Processes that take connections from one socket; here their event loop is the same, and their numbers are given."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from igd_server.http.turns import Board, CountedConnections, Turns
from patience import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Board(tmp_path / "board", places=2)
    yield made
    made.close()


class Process:
    """One that takes connections, and keeps them."""

    def __init__(self, number: int, listener: socket.socket, board: Board) -> None:
        self.connections = CountedConnections(board, number)
        self.turns = Turns(listener.dup(), board, self.connections)

    def protocol(self) -> asyncio.Protocol:
        process = self

        class Kept(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = transport
                process.connections.add(self)

            def connection_lost(self, _: Exception | None) -> None:
                process.connections.discard(self)

        return Kept()


async def until_taken(number: int, *processes: Process) -> list[int]:
    """How many each has, once all are taken."""
    async with asyncio.timeout(PATIENCE_S):
        while sum(len(process.connections) for process in processes) != number:  # noqa: ASYNC110 - protocols tell nobody
            await asyncio.sleep(0.001)
    return [len(process.connections) for process in processes]


async def test_two_that_wait_take_a_burst_in_halves_and_who_ends_leaves_the_rest(board: Board) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as clients:
        one, two = Process(1, listener, board), Process(2, listener, board)

        def connect(number: int) -> None:
            for _ in range(number):
                clients.enter_context(socket.create_connection(listener.getsockname()))

        assert board.fewest() > 1 << 30
        one.turns.begin(one.protocol)
        two.turns.begin(two.protocol)
        connect(16)
        assert max(await until_taken(16, one, two)) <= 12
        one.turns.end()
        had = len(one.connections)
        connect(4)
        assert (await until_taken(20, one, two))[0] == had
        two.turns.end()


async def test_what_one_with_fewer_does_not_take_another_takes(board: Board, tmp_path: Path) -> None:
    """As if the other hung."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as clients:
        Board(tmp_path / "board").write(2, 0)
        one = Process(1, listener, board)
        one.turns.begin(one.protocol)
        for _ in range(20):
            clients.enter_context(socket.create_connection(listener.getsockname()))
        assert await until_taken(20, one) == [20]
        assert board.fewest() == 0
        one.turns.end()
