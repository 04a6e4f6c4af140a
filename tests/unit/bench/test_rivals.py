from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from bench.rivals import allowed_tokens, make_rivals
from bench.workload import ContinuationOracle, PathWorkload, random_prefixes
from numpy.typing import NDArray
from tokenizers import Tokenizer

Int32: TypeAlias = NDArray[np.int32]
DictTrie: TypeAlias = dict[int, "DictTrie"]

ROWS = 4


def dict_trie(paths: Iterable[Sequence[int]]) -> DictTrie:
    """Nested dicts; what the reference implementation walks."""
    root: DictTrie = {}
    for path in paths:
        node = root
        for token in path:
            node = node.setdefault(token, {})
    return root


def children(trie: DictTrie, prefix: Sequence[int]) -> set[int]:
    for token in prefix:
        trie = trie[token]
    return set(trie)


def token_bytes(workload: PathWorkload) -> list[bytes]:
    """Bytes of every token; byte-level BPE writes byte b as the b-th printable character, or else U+0100 and up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = (byte for byte in range(256) if byte not in printable)
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(shifted)}
    ids = Tokenizer.from_file(str(workload.tokenizer_dir / "tokenizer.json")).get_vocab()
    spelled = sorted(ids, key=ids.__getitem__)
    return [b"" if text == "<|im_end|>" else bytes(byte_of[character] for character in text) for text in spelled]


def text_continuations(workload: PathWorkload, prefix: Sequence[int]) -> set[int]:
    """Every token that keeps the text a beginning of some title, however spelled."""
    pieces = token_bytes(workload)
    written = b"".join(pieces[token] for token in prefix)
    spelled = [(title + "\n").encode() for title in workload.titles]
    fitting = {t for t, piece in enumerate(pieces) if piece and any(s.startswith(written + piece) for s in spelled)}
    return fitting | ({workload.eos_id} if written in spelled else set())


def stands(workload: PathWorkload, count: int, seed: int = 0) -> list[Int32]:
    rng = np.random.default_rng(seed)
    return [random_prefixes(workload, rows=ROWS, rng=rng) for _ in range(count)]


def allowed_by(rival: str, workload: PathWorkload, prefixes: Iterable[Int32]) -> Iterator[tuple[list[int], set[int]]]:
    constraint = make_rivals()[rival].build(workload, rows=ROWS)
    for stand in prefixes:
        yield from zip(
            stand.tolist(), allowed_tokens(constraint.stand(stand), (ROWS, workload.vocab_size)), strict=True
        )


@pytest.mark.parametrize("rival", ["transformers", "xgrammar-token"])
def test_rival_over_token_paths_allows_exactly_the_trie_s_children(rival: str, workload: PathWorkload) -> None:
    trie = dict_trie(workload.paths())
    for prefix, allowed in allowed_by(rival, workload, stands(workload, 25)):
        assert allowed == children(trie, prefix), prefix


def test_xgrammar_over_text_allows_exactly_what_spells_a_title(workload: PathWorkload) -> None:
    for prefix, allowed in allowed_by("xgrammar-text", workload, stands(workload, 15)):
        assert allowed == text_continuations(workload, prefix), prefix


def test_llguidance_over_text_bars_no_child_and_allows_nothing_that_spells_no_title(workload: PathWorkload) -> None:
    trie = dict_trie(workload.paths())
    for prefix, allowed in allowed_by("llguidance", workload, stands(workload, 15)):
        assert children(trie, prefix) <= allowed <= text_continuations(workload, prefix), prefix


@pytest.mark.parametrize("rival", make_rivals())
def test_rival_ends_a_title_with_eos_and_nothing_else(rival: str, workload: PathWorkload) -> None:
    whole = np.array([workload.paths()[0][:-1]] * ROWS, dtype=np.int32)
    assert all(allowed == {workload.eos_id} for _, allowed in allowed_by(rival, workload, [whole]))


def test_scanning_oracle_agrees_with_a_dict_trie(workload: PathWorkload) -> None:
    trie = dict_trie(workload.paths())
    oracle = ContinuationOracle(workload)
    for stand in stands(workload, 50):
        for prefix in stand.tolist():
            assert oracle(prefix) == children(trie, prefix)


def test_random_prefixes_stand_at_every_depth_of_the_paths(workload: PathWorkload) -> None:
    trie = dict_trie(workload.paths())
    depths: set[int] = set()
    for stand in stands(workload, 300):
        assert stand.shape[0] == ROWS
        depths.add(stand.shape[1])
        assert all(children(trie, prefix) for prefix in stand.tolist())
    assert depths >= set(range(10))


def test_workload_reads_back_as_it_was_written(workload: PathWorkload, tmp_path: Path) -> None:
    workload.save(tmp_path)
    read = PathWorkload.load(tmp_path)
    assert list(read.titles) == list(workload.titles)
    assert read.paths() == workload.paths()
    assert (read.eos_id, read.vocab_size, read.tokenizer_dir) == (
        workload.eos_id,
        workload.vocab_size,
        workload.tokenizer_dir,
    )
    assert np.array_equal(read.frequency, workload.frequency)


def test_head_of_a_workload_is_its_first_items(workload: PathWorkload) -> None:
    assert workload.head(3).paths() == workload.paths()[:3]
    assert list(workload.head(3).titles) == list(workload.titles[:3])
