from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bundles import FILES, assert_same_artifact, contents

from igd_core.artifact import Artifact, load_artifact, save_artifact
from igd_core.errors import ArtifactError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable


def failing(calls_before: int, error: BaseException) -> Callable[..., None]:
    done = 0

    def fail(*_: object) -> None:
        nonlocal done
        done += 1
        if done > calls_before:
            raise error

    return fail


@pytest.mark.parametrize("calls_before", [0, 1, 2, 3])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_nothing(
    small_artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls_before: int, error: BaseException
) -> None:
    monkeypatch.setattr(os, "fsync", failing(calls_before, error))
    with pytest.raises(type(error)):
        save_artifact(small_artifact, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("calls_before", [0, 1, 2, 3])
def test_an_interrupted_replacement_leaves_the_old_bundle(
    small_artifact: Artifact, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls_before: int
) -> None:
    directory = tmp_path / "served"
    save_artifact(artifact, directory)
    before = contents(directory)
    monkeypatch.setattr(os, "fsync", failing(calls_before, OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save_artifact(small_artifact, directory, replace=True)
    assert list(tmp_path.iterdir()) == [directory]
    assert contents(directory) == before


@pytest.mark.parametrize("error", [OSError(errno.EXDEV, "Invalid cross-device link"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing_rename", [1, 2])
def test_a_swap_that_fails_puts_the_old_bundle_back(
    small_artifact: Artifact,
    artifact: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    failing_rename: int,
) -> None:
    directory = tmp_path / "served"
    save_artifact(artifact, directory)
    before = contents(directory)
    real_rename, calls = Path.rename, 0

    def rename(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == failing_rename:
            raise error
        return real_rename(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(type(error)):
        save_artifact(small_artifact, directory, replace=True)
    assert list(tmp_path.iterdir()) == [directory]
    assert contents(directory) == before


def test_a_first_swap_that_fails_leaves_nothing(
    small_artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "rename", failing(0, OSError(errno.EACCES, "Permission denied")))
    with pytest.raises(PermissionError):
        save_artifact(small_artifact, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_the_same_version_again_is_left_as_it_is(small_artifact: Artifact, bundle: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in bundle.iterdir()}
    save_artifact(small_artifact, bundle)
    save_artifact(small_artifact, bundle, replace=True)
    assert {path: path.stat().st_mtime_ns for path in bundle.iterdir()} == before


def test_a_directory_with_something_else_is_kept_unless_it_is_to_be_replaced(artifact: Artifact, bundle: Path) -> None:
    before = contents(bundle)
    with pytest.raises(ArtifactError, match=f"{bundle}: exists and is not this version"):
        save_artifact(artifact, bundle)
    assert contents(bundle) == before
    save_artifact(artifact, bundle, replace=True)
    assert load_artifact(bundle).version == artifact.version
    assert sorted(contents(bundle)) == sorted(FILES)
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_a_damaged_copy_of_the_same_version_is_no_copy(small_artifact: Artifact, bundle: Path) -> None:
    (bundle / "items.parquet").write_bytes(b"")
    with pytest.raises(ArtifactError, match="exists and is not this version"):
        save_artifact(small_artifact, bundle)
    save_artifact(small_artifact, bundle, replace=True)
    assert_same_artifact(load_artifact(bundle), small_artifact)


def test_an_empty_directory_is_filled_and_a_file_is_kept(small_artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save_artifact(small_artifact, tmp_path / "empty")
    assert load_artifact(tmp_path / "empty").version == small_artifact.version
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(ArtifactError, match="file: exists and is not this version"):
        save_artifact(small_artifact, tmp_path / "file")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_loaded_artifact_goes_on_while_its_directory_is_replaced(
    small_artifact: Artifact, artifact: Artifact, bundle: Path
) -> None:
    loaded = load_artifact(bundle)
    save_artifact(artifact, bundle, replace=True)
    assert_same_artifact(loaded, small_artifact)


def test_a_loaded_artifact_can_be_saved_again(pristine_bundle: Path, tmp_path: Path) -> None:
    save_artifact(load_artifact(pristine_bundle), tmp_path / "deeper" / "copy")
    assert contents(tmp_path / "deeper" / "copy") == contents(pristine_bundle)


@pytest.mark.parametrize("there", ["nothing of ours", "another command's", "no JSON"])
def test_a_folder_that_is_no_artifact_is_not_replaced(small_artifact: Artifact, tmp_path: Path, there: str) -> None:
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "photo.jpg").write_bytes(b"mine")
    if there != "nothing of ours":
        text = '{"format": "igd-recommendations"}' if there == "another command's" else "mine"
        (folder / "manifest.json").write_text(text, encoding="utf-8")
    before = contents(folder)
    with pytest.raises(DataError, match=r"precious: holds no manifest.json of an igd-artifact, so --force leaves"):
        save_artifact(small_artifact, folder, replace=True)
    assert contents(folder) == before


def test_a_file_beside_an_artifact_is_not_lost_with_it(artifact: Artifact, bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine", encoding="utf-8")
    before = contents(bundle)
    with pytest.raises(DataError, match=r"holds 'notes.txt', no part of an artifact"):
        save_artifact(artifact, bundle, replace=True)
    assert contents(bundle) == before


def test_a_link_stays_and_leads_to_the_new_artifact(artifact: Artifact, bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(bundle)
    save_artifact(artifact, link, replace=True)
    assert link.is_symlink()
    assert load_artifact(bundle).version == artifact.version
