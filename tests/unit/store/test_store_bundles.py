from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from bundles import contents
from stores import version_of

from igd_core.artifact.manifest import PART_NAMES
from igd_core.errors import ArtifactError
from igd_core.store.bundles import MANIFEST, Bundle, Chunk, Layout, holds_version, receive

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("chunk_bytes", [7, 1000, 1024, 1 << 20])
def test_chunks_put_together_are_the_files(pristine_bundle: Path, chunk_bytes: int) -> None:
    bundle = Bundle.open(pristine_bundle)
    layout = Layout.of(bundle.sizes, chunk_bytes)
    files = dict.fromkeys((*PART_NAMES, MANIFEST), b"")
    for chunk in layout.chunks():
        data = bundle.read(chunk, chunk_bytes)
        assert 1 <= len(data) <= chunk_bytes
        files[chunk.name] += data
    assert files == contents(pristine_bundle)


def test_a_file_that_changes_under_the_publisher_is_noticed(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    (bundle / "items.parquet").write_bytes(b"short")
    with pytest.raises(ArtifactError, match=r"items\.parquet: altered"):
        opened.read(Chunk(name="items.parquet", index=0), 1024)
    (bundle / "items.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"items\.parquet: altered"):
        opened.read(Chunk(name="items.parquet", index=0), 1024)


@pytest.mark.parametrize("damaged", [False, True])
async def test_a_copy_that_another_process_made_meanwhile_stays_if_it_is_whole(
    pristine_bundle: Path, tmp_path: Path, damaged: bool
) -> None:
    version = version_of(pristine_bundle)
    bundle = Bundle.open(pristine_bundle)
    layout = Layout.of(bundle.sizes, 1 << 20)
    target = tmp_path / "cache" / version
    made: list[int] = []

    async def read(chunk: Chunk, _: int) -> bytes | None:
        if not target.exists():
            shutil.copytree(pristine_bundle, target)
            if damaged:
                (target / "items.parquet").write_bytes(b"")
            made.append(target.stat().st_ino)
        return bundle.read(chunk, layout.chunk_bytes)

    assert await receive(version, layout, read, tmp_path / "cache") == target
    assert contents(target) == contents(pristine_bundle)
    assert (target.stat().st_ino in made) == (not damaged)
    assert [path.name for path in target.parent.iterdir()] == [version]


def test_a_directory_holds_a_version_only_whole_and_under_its_name(bundle: Path, tmp_path: Path) -> None:
    version = version_of(bundle)
    assert holds_version(bundle, version)
    assert not holds_version(bundle, "0" * 16)
    assert not holds_version(tmp_path / "nothing", version)
    (bundle / "trie.safetensors").unlink()
    assert not holds_version(bundle, version)
