from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from igd_server.catalogues.version_folder import VersionFolder
from publishing import add, edition

from igd_core.errors import InputError
from igd_core.store.memory import MemoryStore

if TYPE_CHECKING:
    from igd_core.catalogue.tokenization import TitleTokenizer

ONE, OTHER = "1" * 16, "2" * 16


def test_nothing_was_served_last_in_a_new_folder(tmp_path: Path) -> None:
    assert VersionFolder(tmp_path / "new").last_served() is None


def test_what_was_served_last_is_remembered_while_its_files_are_there(tmp_path: Path) -> None:
    folder = VersionFolder(tmp_path / "films")
    folder.remember(ONE)
    assert folder.last_served() is None
    folder.path(ONE).mkdir()
    assert folder.last_served() == ONE
    folder.path(OTHER).mkdir()
    folder.remember(OTHER)
    assert VersionFolder(tmp_path / "films").last_served() == OTHER


@pytest.mark.parametrize("written", [b"", b"\xff\xfe", b"../../etc", b"A" * 16, b"1" * 15])
def test_an_odd_note_of_what_was_served_last_is_none(tmp_path: Path, written: bytes) -> None:
    (tmp_path / ".last-served").write_bytes(written)
    assert VersionFolder(tmp_path).last_served() is None


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_what_was_served_last_is_none_on_a_disk_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(_: Path) -> bool:
        raise OSError(code, os.strerror(code))

    folder = VersionFolder(tmp_path)
    folder.remember(ONE)
    folder.path(ONE).mkdir()
    monkeypatch.setattr(Path, "is_dir", fail)
    assert folder.last_served() is None
    monkeypatch.undo()
    assert folder.last_served() == ONE


def test_no_path_leads_out_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        VersionFolder(tmp_path).path("../elsewhere")


async def test_only_what_was_fetched_is_ever_pruned(tokenizer: TitleTokenizer, tmp_path: Path) -> None:
    store, parent = MemoryStore(), tmp_path / "films"
    fetched = [await add(store, edition(tokenizer, number), tmp_path) for number in range(3)]
    folder = VersionFolder(parent)
    own = folder.path(fetched[0])
    parent.mkdir()
    (tmp_path / f"built-{fetched[0]}").rename(own)
    for version in fetched:
        await folder.fetch(store, "films", version)
    (parent / "notes.txt").write_text("mine")
    folder.prune({fetched[2]})
    assert {path.name for path in parent.iterdir() if path.name[0] != "."} == {fetched[0], fetched[2], "notes.txt"}
    folder.prune(())
    assert {path.name for path in parent.iterdir()} == {fetched[0], "notes.txt"}


def test_what_interrupted_fetches_left_is_pruned_when_it_is_old(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in (f".{ONE}-abc", f".{OTHER}-abc", ".git"))
    for left in (old, new, other):
        left.mkdir()
    for left in (old, other):
        os.utime(left, (0, 0))
    VersionFolder(tmp_path).prune(())
    assert sorted(tmp_path.iterdir()) == sorted([new, other])
