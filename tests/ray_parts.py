"""Ray for tests: whether it is here."""

from __future__ import annotations

import importlib.util

import pytest

_NEEDED_BY = {"serve": ("mmh3", "aiohttp", "watchfiles")}


def require_ray(part: str | None = None) -> None:
    """Skip the calling module where Ray is not installed; ``part`` is one with packages of its own: ``serve``."""
    needed = ["ray", *(_NEEDED_BY[part] if part else ())]
    if any(importlib.util.find_spec(each) is None for each in needed):
        pytest.skip("ray is not installed (deploy/locks/batch.txt, make batch)", allow_module_level=True)
