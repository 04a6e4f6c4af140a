"""A disk that is full: whoever writes, the error names the file or folder, and nothing half-written stays."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from matplotlib.figure import Figure

from igd_core.cli import main as command_line
from igd_core.evaluation.journal import Journal
from igd_core.whole_files import disk_errno, replaced_file, replaced_folder, write_figure, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOISE = np.random.default_rng(0).random(50_000)
DISK_FULL = OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def little_room(most: int = 20_000) -> Iterator[None]:
    """Within the block no file of this process can grow beyond ``most`` bytes, as on a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def plain(folder: Path) -> None:
    (folder / "part").write_bytes(NOISE.tobytes())


def tensors(folder: Path) -> None:
    safetensors.numpy.save_file({"noise": NOISE}, folder / "part")


def parquet(folder: Path) -> None:
    pq.write_table(pa.table({"noise": NOISE}), folder / "part")


def copied(folder: Path) -> None:  # an error of the system that names the file that is read, and the scratch folder
    raise OSError(errno.ENOSPC, "No space left on device", "model/tokenizer.json", None, str(folder / "tokenizer.json"))


@pytest.mark.parametrize("write", [plain, tensors, parquet, copied])
def test_a_folder_without_room_is_named_and_the_old_one_stays(tmp_path: Path, write: Callable[[Path], None]) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").touch()
    full = pytest.raises(OSError, match=r"File too large|No space left")
    with full as raised, little_room(), replaced_folder(target) as new:
        write(new)
    assert raised.value.filename == str(target)
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_without_room_is_named_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"old": True})
    with pytest.raises(OSError, match="File too large") as raised, little_room():
        write_json(path, {"noise": NOISE.tolist()})
    assert raised.value.filename == str(path)
    assert path.read_text(encoding="utf-8") == '{\n "old": true\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_without_room_is_named_and_none_is_left(tmp_path: Path) -> None:
    figure = Figure(figsize=(10, 10))
    figure.subplots(1, 1).imshow(NOISE.reshape(200, 250))
    with pytest.raises(OSError, match="File too large") as raised, little_room():
        write_figure(figure, tmp_path / "accuracy.png", dpi=100)
    assert raised.value.filename == str(tmp_path / "accuracy.png")
    assert list(tmp_path.iterdir()) == []
    write_figure(figure, tmp_path / "accuracy.png", dpi=20)
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_journal_without_room_is_named_and_keeps_its_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    header: dict[str, list[object]] = {"methods": []}
    with Journal(path, header) as journal:
        journal.append({"row": 0, "lists": []})
        with pytest.raises(OSError, match="File too large") as raised, little_room(200):
            journal.append({"row": 1, "lists": [], "told": "x" * 1000})
    assert raised.value.filename == str(path)
    with Journal(path, header) as journal:
        assert [record["row"] for record in journal.records] == [0]


def test_torch_does_not_say_why_it_could_not_write_so_it_is_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    assert disk_errno(error, tmp_path) is None
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 4096}))
    assert disk_errno(error, tmp_path) == errno.ENOSPC
    assert disk_errno(RuntimeError("shapes differ"), tmp_path) is None


def test_other_errors_are_not_the_disks(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), replaced_file(tmp_path / "a"):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    with pytest.raises(FileNotFoundError) as raised, replaced_folder(tmp_path / "b"):
        os.stat(tmp_path / "missing")  # noqa: PTH116
    assert raised.value.filename == str(tmp_path / "missing")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DISK_FULL, "OUT: No space left on device"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "OUT: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device", "/some/where"), "/some/where: No space left on device"),
    ],
)
def test_where_nothing_names_the_file_the_command_line_names_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, told: str
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr("igd_core.cli.data._prepare_movielens", failing)
    out = str(tmp_path / "out")
    assert command_line.main(["data", "prepare", "ml-100k", "--out", out]) == 2
    assert capsys.readouterr().err == f"igd: {told.replace('OUT', out)}\n"


def test_an_error_of_the_program_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("igd_core.cli.data._prepare_movielens", failing)
    with pytest.raises(RuntimeError, match="shapes differ"):
        command_line.main(["data", "prepare", "ml-100k"])
