"""Each module of the package: that it can be imported, and that the examples in its docstrings hold."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = {
    ".".join(path.relative_to(above).with_suffix("").parts).removesuffix(".__init__"): path
    for above, package in ((ROOT, "igd_core"), (ROOT / "server", "igd_server"))
    for path in sorted((above / package).rglob("*.py"))
    # Those of vLLM cannot be imported where it is not installed; `__main__` is a command.
    if "vllm" not in path.relative_to(ROOT).parent.parts and path.stem != "__main__"
}
WITH_EXAMPLES = [name for name, path in PLACES.items() if ">>> " in path.read_text(encoding="utf-8")]


def test_every_module_can_be_imported() -> None:
    assert [import_module(name).__name__ for name in PLACES] == list(PLACES)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_hold(name: str) -> None:
    result = doctest.testmod(import_module(name))
    assert result.attempted
    assert not result.failed
