"""Methods added to vLLM's worker: load and unload catalogues while it runs.

vLLM mixes `CatalogueWorker` into its own worker class (``worker_extension_cls``), and ``collective_rpc`` calls it
between two engine steps. A catalogue is mapped, not read, so a step waits for microseconds, not seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import safetensors.numpy
from safetensors.torch import load_file

from igd_core.engines.vllm.processors import TrieProcessorV1, TrieProcessorV2
from igd_core.engines.vllm.runner_v1 import install
from igd_core.search.scores import TrieWeights

if TYPE_CHECKING:
    from pathlib import Path

_TENSORS = ("row_start", "edge_token", "sibling_gain")


def write_trie(trie: TrieWeights, path: Path) -> None:
    """Write what scoring needs, for workers on this machine to map."""
    safetensors.numpy.save_file({name: getattr(trie, name) for name in _TENSORS}, path)


class CatalogueWorker:
    """The methods that every worker process of an engine gets."""

    model_runner: Any  # vLLM's

    def load_catalogue(self, version: str, path: str) -> None:
        """Map a file of `write_trie`, which may then be removed."""
        self._hook_runner()
        tensors = load_file(path)  # torch's maps, numpy's reads
        weights = TrieWeights(**{name: tensors[name].numpy() for name in _TENSORS})
        self._trie_processor().constraint.load(version, weights)

    def unload_catalogue(self, version: str) -> None:
        """Unload a version; its memory is free once its last request has ended."""
        self._trie_processor().constraint.unload(version)

    def catalogue_versions(self) -> list[str]:
        """The loaded versions."""
        return list(self._trie_processor().constraint.versions)

    def _hook_runner(self) -> None:
        processor = self._trie_processor()
        if isinstance(processor, TrieProcessorV1) and not processor.hooked:
            install(self.model_runner, processor)
            processor.hooked = True

    def _trie_processor(self) -> TrieProcessorV1 | TrieProcessorV2:
        sampler = getattr(self.model_runner, "sampler", None)
        processors = getattr(sampler, "logits_processors", None)  # runner V2
        if processors is None:
            processors = self.model_runner.input_batch.logitsprocs.all
        ours = [each for each in processors if isinstance(each, TrieProcessorV1 | TrieProcessorV2)]
        if len(ours) != 1:
            raise RuntimeError(f"{len(ours)} trie processors in this worker; 1 is needed")
        return ours[0]
