"""What a flag or a setting names is read only if it is a file: a pipe would be waited for, without a word."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from igd_server.http.keys import read_keys

from igd_core.cli.main import main
from igd_core.datasets.attribute_schema import read_schema
from igd_core.errors import DataError, InputError
from igd_core.regular_files import read_regular
from igd_core.scorers.gamma_file import read_gamma
from igd_core.tuning.mapping_files import read_mapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A pipe that nobody writes to; who waits for it is interrupted."""

    def waited(*_: object) -> NoReturn:
        raise TimeoutError("the pipe was waited for")

    os.mkfifo(tmp_path / "pipe")
    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(10)
    yield tmp_path / "pipe"
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("read", [read_regular, read_gamma, read_keys, read_mapping, read_schema])
def test_a_pipe_is_refused_by_name(read: Callable[[Path], object], pipe: Path) -> None:
    with pytest.raises(InputError, match=r"pipe: is no regular file$"):
        read(pipe)


@pytest.mark.parametrize(
    "command",
    [
        ["tune", "--config"],
        ["evaluate", "--config"],
        ["build", "--config"],
        ["data", "prepare", "amazon", "--reviews", "none", "--metadata"],
        ["keys", "list", "--keys-file"],
    ],
    ids=" ".join,
)
def test_a_command_that_is_given_one_ends_with_a_line(
    command: list[str], pipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, str(pipe)]) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"{pipe}: is no regular file\n")
    assert error.count("\n") == 1


def test_a_device_is_not_read_and_a_folder_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no regular file"):
        read_regular(Path("/dev/zero"))
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path)


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(DataError, match="small: longer than 4 bytes"):
        read_regular(path, 4)
