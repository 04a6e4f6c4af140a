"""Where models and logits can be here: a test that takes a device runs on each; one that needs a GPU says so."""

from __future__ import annotations

import pytest
import torch

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
needs_cuda = pytest.mark.skipif("cuda" not in DEVICES, reason="needs a CUDA device")
