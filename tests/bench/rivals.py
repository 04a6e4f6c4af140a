"""What one would otherwise take to constrain a model to a catalogue, behind one seam.

All of these only say which tokens may follow. None carries a weight per token, so information-gain decoding would need
another pass over the logits, and none knows which tokens are forced, so each is decoded one by one.

Measured forms, the best supported of several tried at 10,000 titles (SmolLM2's tokenizer):

- ``transformers``: ``prefix_allowed_tokens_fn`` over a marisa trie of one character per token, as in GENRE. Lists every
  title below the prefix, so its cost is the size of the subtree; the root's answer is cached, as there.
- ``llguidance``: one Lark terminal of all titles, with the lexer's limits raised (with the default ones 100,000 titles
  are refused). A choice of rules stops above 2,000 titles, a grammar of token ids above 65,535 symbols. It constrains
  text: spellings of a title that its tokenizer would not produce are allowed too. Its automaton grows as it is used.
- ``xgrammar-text``: an EBNF choice of strings, which is what vLLM makes of a choice. Constrains text, as above.
- ``xgrammar-token``: an EBNF choice of token sequences, exact by token path.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from bench.workload import PathWorkload
    from numpy.typing import NDArray

    Int32 = NDArray[np.int32]

_FIRST_SURROGATE = 0xD800
_SURROGATES = 0x800
_UNLIMITED = 2**31 - 1


class StandingRows(Protocol):
    """Rows of a beam search, each at a prefix."""

    def mask_row(self, row: int) -> None:
        """Compute what one row may continue with, in the library's own form."""

    def process(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask every row: ``(rows, vocab)`` float32 in, the same with -inf for barred tokens out (maybe in place)."""


class Constraint(Protocol):
    """A built catalogue."""

    def stand(self, prefixes: Int32) -> StandingRows:
        """Bring ``(rows, depth)`` prefixes into the library's state; not timed."""


class Rival(Protocol):
    """A library that can constrain generation to a catalogue."""

    @property
    def name(self) -> str:
        """Short name for tables."""

    def build(self, workload: PathWorkload, *, rows: int) -> Constraint:
        """Build the constraint for at most ``rows`` rows at once.

        Raises:
            RuntimeError: the library refuses the catalogue; its own message.
        """


def make_rivals() -> dict[str, Rival]:
    """Every rival by name; their libraries are imported when one builds."""
    rivals: list[Rival] = [MarisaPrefixes(), LLGuidanceTerminal(), XGrammarChoice("text"), XGrammarChoice("token")]
    return {rival.name: rival for rival in rivals}


def allowed_tokens(rows: StandingRows, shape: tuple[int, int]) -> list[set[int]]:
    """What each row lets through, read off processed logits of ``shape``."""
    processed = rows.process(torch.zeros(shape))
    return [set(torch.isfinite(row).nonzero()[:, 0].tolist()) for row in processed]


class MarisaPrefixes:
    """transformers' ``PrefixConstrainedLogitsProcessor`` over a ``marisa_trie.Trie``."""

    name = "transformers"

    def build(self, workload: PathWorkload, *, rows: int) -> Constraint:  # noqa: ARG002 - has no state per row
        """Encode each path as a string and build the trie."""
        import marisa_trie

        paths = workload.paths()
        trie = marisa_trie.Trie(_as_key(path) for path in paths)
        return _MarisaConstraint(trie, sorted({path[0] for path in paths}))


class _MarisaConstraint:
    def __init__(self, trie: Any, first_tokens: list[int]) -> None:
        self._trie = trie
        self._first_tokens = first_tokens

    def stand(self, prefixes: Int32) -> StandingRows:
        return _MarisaRows(self.allowed, torch.from_numpy(prefixes).long())

    def allowed(self, prefix: Sequence[int]) -> list[int]:
        if not prefix:
            return self._first_tokens
        key = _as_key(prefix)
        return list({_as_token(found[len(key)]) for found in self._trie.keys(key) if len(found) > len(key)})


class _MarisaRows:
    def __init__(self, allowed: Callable[[Sequence[int]], list[int]], input_ids: torch.Tensor) -> None:
        from transformers import PrefixConstrainedLogitsProcessor

        def allowed_after(_batch_id: int, sentence: torch.Tensor) -> list[int]:
            return allowed(sentence.tolist())

        self._allowed_after = allowed_after
        self._input_ids = input_ids
        self._processor = PrefixConstrainedLogitsProcessor(allowed_after, num_beams=len(input_ids))

    def mask_row(self, row: int) -> None:
        self._allowed_after(0, self._input_ids[row])

    def process(self, logits: torch.Tensor) -> torch.Tensor:
        masked: torch.Tensor = self._processor(self._input_ids, logits)
        return masked


def _as_key(tokens: Sequence[int]) -> str:
    return "".join([chr(token + 1 if token + 1 < _FIRST_SURROGATE else token + 1 + _SURROGATES) for token in tokens])


def _as_token(character: str) -> int:
    code = ord(character)
    return code - 1 if code < _FIRST_SURROGATE else code - 1 - _SURROGATES


class LLGuidanceTerminal:
    """llguidance with all titles in one Lark terminal."""

    name = "llguidance"

    def build(self, workload: PathWorkload, *, rows: int) -> Constraint:
        """Compile the grammar and make one matcher for each row."""
        import llguidance
        import llguidance.hf

        tokenizer = llguidance.hf.from_tokenizer(
            _load_tokenizer(workload.tokenizer_dir), n_vocab=workload.vocab_size, eos_token=workload.eos_id
        )
        limits = llguidance.LLParserLimits(
            initial_lexer_fuel=_UNLIMITED, step_lexer_fuel=_UNLIMITED, max_lexer_states=_UNLIMITED
        )
        choice = " | ".join(_quoted(title) for title in workload.titles)
        grammar = llguidance.LLMatcher.grammar_from_lark(f'start: TITLE "\\n"\nTITLE: {choice}')
        matcher = llguidance.LLMatcher(tokenizer, grammar, limits=limits)
        if matcher.is_error():
            raise RuntimeError(matcher.get_error().splitlines()[0])
        matchers = [matcher, *(matcher.deep_copy() for _ in range(rows - 1))]
        return _LLGuidanceConstraint(matchers, workload.vocab_size)


class _LLGuidanceConstraint:
    def __init__(self, matchers: list[Any], vocab_size: int) -> None:
        import llguidance
        import llguidance.numpy

        self._matchers = matchers
        self._executor = llguidance.LLExecutor(num_threads=torch.get_num_threads())
        self._bitmask = llguidance.numpy.allocate_token_bitmask(len(matchers), vocab_size)

    def stand(self, prefixes: Int32) -> StandingRows:
        for matcher, prefix in zip(self._matchers, prefixes.tolist(), strict=False):
            matcher.reset()
            if not matcher.consume_tokens(prefix):
                raise RuntimeError(
                    f"refuses the catalogue's own prefix {prefix}: {matcher.get_error().splitlines()[0]}"
                )
        return _LLGuidanceRows(self._matchers[: len(prefixes)], self._executor, self._bitmask[: len(prefixes)])


class _LLGuidanceRows:
    def __init__(self, matchers: list[Any], executor: Any, bitmask: Int32) -> None:
        self._matchers = matchers
        self._executor = executor
        self._bitmask = bitmask

    def mask_row(self, row: int) -> None:
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matchers[row], self._bitmask, row)

    def process(self, logits: torch.Tensor) -> torch.Tensor:
        from llguidance.numpy import apply_token_bitmask_inplace, fill_next_token_bitmask_par

        fill_next_token_bitmask_par(self._executor, [(m, row) for row, m in enumerate(self._matchers)], self._bitmask)
        apply_token_bitmask_inplace(logits.numpy(), self._bitmask)
        return logits


class XGrammarChoice:
    """xgrammar with an EBNF choice, of strings or of token sequences."""

    def __init__(self, form: str) -> None:
        self._form = form

    @property
    def name(self) -> str:
        """Short name for tables."""
        return f"xgrammar-{self._form}"

    def build(self, workload: PathWorkload, *, rows: int) -> Constraint:
        """Compile the grammar and make one matcher for each row."""
        import xgrammar

        info = xgrammar.TokenizerInfo.from_huggingface(
            _load_tokenizer(workload.tokenizer_dir), vocab_size=workload.vocab_size, stop_token_ids=[workload.eos_id]
        )
        compiler = xgrammar.GrammarCompiler(info, max_threads=torch.get_num_threads(), cache_enabled=False)
        if self._form == "token":  # EOS is the grammar's end
            choices = (" ".join(f"Token({token})" for token in path[:-1]) for path in workload.paths())
        else:
            choices = (_quoted(title + "\n") for title in workload.titles)
        compiled = compiler.compile_grammar("root ::= " + " | ".join(choices))
        return _XGrammarConstraint([xgrammar.GrammarMatcher(compiled) for _ in range(rows)], workload.vocab_size)


class _XGrammarConstraint:
    def __init__(self, matchers: list[Any], vocab_size: int) -> None:
        import xgrammar

        self._matchers = matchers
        self._bitmask = xgrammar.allocate_token_bitmask(len(matchers), vocab_size)

    def stand(self, prefixes: Int32) -> StandingRows:
        for matcher, prefix in zip(self._matchers, prefixes.tolist(), strict=False):
            matcher.reset()
            if not all(matcher.accept_token(token) for token in prefix):
                raise RuntimeError(f"refuses the catalogue's own prefix {prefix}")
        return _XGrammarRows(self._matchers[: len(prefixes)], self._bitmask[: len(prefixes)])


class _XGrammarRows:
    def __init__(self, matchers: list[Any], bitmask: torch.Tensor) -> None:
        self._matchers = matchers
        self._bitmask = bitmask

    def mask_row(self, row: int) -> None:
        self._matchers[row].fill_next_token_bitmask(self._bitmask, row)

    def process(self, logits: torch.Tensor) -> torch.Tensor:
        from xgrammar import apply_token_bitmask_inplace

        for row in range(len(self._matchers)):
            self.mask_row(row)
        apply_token_bitmask_inplace(logits, self._bitmask)
        return logits


def _quoted(text: str) -> str:
    """A string literal that JSON, Lark and EBNF read alike."""
    return json.dumps(text, ensure_ascii=False)


def _load_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, local_files_only=True)
