from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundles import contents
from factories import make_catalogue

from igd_core.artifact import Artifact, BuildOptions, build_artifact, load_artifact, save_artifact
from igd_core.search.scores import TrieWeights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.catalogue.tokenization import TitleTokenizer


def mapped_file(array: np.ndarray[Any, Any]) -> Path | None:
    """The file that an array is a view of, if it is one."""
    base: Any = array
    while base is not None:
        if isinstance(base, np.memmap):
            assert base.mode == "c"
            return Path(str(base.filename))
        base = getattr(base, "base", None)
    return None


def stored_arrays(loaded: Artifact) -> Sequence[tuple[str, np.ndarray[Any, Any]]]:
    trie = [("trie.safetensors", array) for array in loaded.trie.arrays().values()]
    return [*trie, *(("infogain.safetensors", array) for array in loaded.gains.arrays().values())]


def test_arrays_are_mapped_from_their_files(pristine_bundle: Path) -> None:
    for part, array in stored_arrays(load_artifact(pristine_bundle)):
        assert mapped_file(array) == pristine_bundle / part
        assert array.flags.aligned


def test_scoring_takes_the_mapped_arrays_without_a_copy(pristine_bundle: Path) -> None:
    loaded = load_artifact(pristine_bundle)
    weights = TrieWeights.of(loaded)
    assert weights.row_start is loaded.trie.row_start
    assert weights.edge_token is loaded.trie.edge_token
    assert weights.sibling_gain is loaded.gains.sibling_gain


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_two_loads_of_a_bundle_hold_no_page_of_their_own(tokenizer: TitleTokenizer, tmp_path: Path) -> None:
    """Pages of a private mapping that nobody wrote to are the file's, shared by all who map it."""
    save_artifact(build_artifact(make_catalogue(3000), tokenizer, BuildOptions()), tmp_path / "large")
    loads = [load_artifact(tmp_path / "large") for _ in range(2)]
    dirty, mappings, ours = 0, 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split(maxsplit=1)[0]:
            ours = line.endswith(".safetensors") and str(tmp_path) in line
            mappings += ours
        elif ours and line.startswith("Private_Dirty:"):
            dirty += int(line.split()[1])
    assert mappings >= 2
    assert dirty == 0
    assert np.array_equal(loads[0].trie.row_start, loads[1].trie.row_start)


def test_what_is_written_to_a_mapped_array_reaches_neither_file_nor_other_loads(bundle: Path) -> None:
    before = contents(bundle)
    one, other = load_artifact(bundle), load_artifact(bundle)
    one.trie.edge_token[:] = 1
    assert contents(bundle) == before
    assert not np.array_equal(one.trie.edge_token, other.trie.edge_token)
