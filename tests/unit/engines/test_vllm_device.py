"""A start without a device names the device, whatever vLLM would say of it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest

from igd_core.engines.vllm.device import attention_where_flashinfer_cannot_compile, require_device
from igd_core.errors import ModelError


@dataclass(frozen=True)
class Found:
    """A platform as vLLM's `current_platform` tells it."""

    kind: str
    family: int = 90

    def is_unspecified(self) -> bool:
        return self.kind == "none"

    def is_cuda(self) -> bool:
        return self.kind == "cuda"

    def is_device_capability_family(self, capability: int) -> bool:
        return self.family == capability


def test_without_a_device_the_message_names_it_and_the_engine_that_needs_none() -> None:
    with pytest.raises(ModelError, match=r"no GPU is visible.*--gpus all.*nvidia\.com/gpu.*--engine tree"):
        require_device(Found("none"))


def test_a_card_that_cuda_cannot_use_is_told_with_torchs_reason() -> None:
    def runs() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old\nand more", stacklevel=1)
        return False

    with pytest.raises(ModelError, match=r"The NVIDIA driver on your system is too old$"):
        require_device(Found("cuda"), cuda_runs=runs)
    with pytest.raises(ModelError, match="torch sees no device"):
        require_device(Found("cuda"), cuda_runs=lambda: False)


def test_a_device_that_runs_and_a_cpus_vllm_pass() -> None:
    require_device(Found("cuda"), cuda_runs=lambda: True)
    require_device(Found("cpu"), cuda_runs=lambda: False)


def test_vllms_own_platform_of_no_device_is_refused() -> None:
    interface = pytest.importorskip("vllm.platforms.interface", reason="vllm is not installed (deploy/locks/vllm.txt)")
    with pytest.raises(ModelError, match="no GPU is visible"):
        require_device(interface.UnspecifiedPlatform())


@pytest.mark.parametrize(
    ("found", "flashinfer_runs", "named"),
    [
        (Found("cuda", 100), False, "FLASH_ATTN"),
        (Found("cuda", 100), True, None),
        (Found("cuda", 90), False, None),
        (Found("cpu", 100), False, None),
    ],
)
def test_attention_is_named_only_where_vllm_would_take_a_flashinfer_that_cannot_compile(
    found: Found, *, flashinfer_runs: bool, named: str | None
) -> None:
    assert attention_where_flashinfer_cannot_compile(found, flashinfer_runs=lambda: flashinfer_runs) == named
