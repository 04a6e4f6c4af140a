"""Ray for tests: whether it is here."""

from __future__ import annotations

import importlib.util

import pytest


def require_ray() -> None:
    """Skip the calling module where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed (deploy/locks/batch.txt, make batch)", allow_module_level=True)
