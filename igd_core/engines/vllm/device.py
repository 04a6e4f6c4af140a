"""Whether there is a device that vLLM can run on, which its own words do not say, and what it needs named there."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Protocol

from igd_core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable


class Platform(Protocol):
    """Of vLLM's platform, what is asked here."""

    def is_unspecified(self) -> bool:
        """Whether vLLM found no device that it was built for."""

    def is_cuda(self) -> bool:
        """Whether it found one of NVIDIA's."""

    def is_device_capability_family(self, capability: int) -> bool:
        """Whether the card's compute capability has the major number of this one, such as 100 for 10.0 and 10.3."""


def require_device(platform: Platform, *, cuda_runs: Callable[[], bool] | None = None) -> None:
    """Refuse to start where no device is: vLLM would fail later, in processes of its own.

    Args:
        platform: `vllm.platforms.current_platform`.
        cuda_runs: in place of `torch.cuda.is_available`, which makes no context on the card.

    Raises:
        ModelError: names what is missing.
    """
    if platform.is_unspecified():
        raise ModelError(
            "engine 'vllm': no GPU is visible, and this vLLM was built for one. Give one (docker run --gpus all; in "
            "Kubernetes nvidia.com/gpu: 1), or serve on the CPU with --engine tree"
        )
    if not platform.is_cuda():
        return
    if cuda_runs is None:
        import torch

        cuda_runs = torch.cuda.is_available
    with warnings.catch_warnings(record=True) as said:  # torch says why in a warning
        warnings.simplefilter("always")
        runs = cuda_runs()
    if not runs:
        why = str(said[-1].message).splitlines()[0] if said else "torch sees no device"
        raise ModelError(f"engine 'vllm': a GPU is there, but CUDA does not run on it: {why}")


def attention_where_flashinfer_cannot_compile(
    platform: Platform, *, flashinfer_runs: Callable[[], bool] | None = None
) -> str | None:
    """The attention backend to name where vLLM would choose FlashInfer, whose kernels are compiled at their first use.

    On compute capability 10 vLLM prefers it without asking for nvcc, which `pip install vllm` and our image do not put
    where FlashInfer looks; the worker then ends at its first step.

    Args:
        platform: `vllm.platforms.current_platform`.
        flashinfer_runs: in place of `vllm.utils.flashinfer.has_flashinfer`.

    Returns:
        ``FLASH_ATTN``, which comes compiled or brings its compiler along; None where vLLM may choose.
    """
    if not platform.is_cuda() or not platform.is_device_capability_family(100):
        return None
    if flashinfer_runs is None:
        from vllm.utils import flashinfer

        flashinfer_runs = flashinfer.has_flashinfer
    return None if flashinfer_runs() else "FLASH_ATTN"
