"""Files that the documents and the code's own texts name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "tests" / "device" / "README.md"]
NAMED = re.compile(r"`([\w./-]+\.py)`")


def exists(name: str, files: frozenset[str]) -> bool:
    """A path from the root, or the end of one."""
    return any(file == name or file.endswith(f"/{name}") for file in files)


@pytest.fixture(scope="module")
def files() -> frozenset[str]:
    return frozenset(
        path.relative_to(ROOT).as_posix()
        for folder in ("igd_core", "server", "tests", "deploy")
        for path in (ROOT / folder).rglob("*.py")
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_python_file_that_a_document_names_exists(document: Path, files: frozenset[str]) -> None:
    named = NAMED.findall(document.read_text(encoding="utf-8"))
    assert [name for name in named if not exists(name, files)] == []


def test_every_module_that_a_text_in_the_code_names_exists(files: frozenset[str]) -> None:
    modules = {
        file.removeprefix("server/").removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files
    }
    missing = []
    for file in sorted(files):
        for name in re.findall(r"`((?:igd_core|igd_server)(?:\.\w+)+)`", (ROOT / file).read_text(encoding="utf-8")):
            owners = {name, name.rpartition(".")[0], name.rpartition(".")[0].rpartition(".")[0]}
            if not owners & modules:
                missing.append(f"{file}: {name}")
    assert missing == []
