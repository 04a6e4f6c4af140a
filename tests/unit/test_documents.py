"""Files, pages and headings that the documents and the code's own texts name are there."""

from __future__ import annotations

import argparse
import ast
import os
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from igd_core.cli.main import make_parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [ROOT / "README.md", *PAGES, ROOT / "tests" / "device" / "README.md"]
NAMED = re.compile(r"`([\w./-]+\.py)`")
TEXTS = (".py", ".yaml", ".yml", ".toml", ".sh", ".md", "Dockerfile", "Makefile")


def exists(name: str, files: frozenset[str]) -> bool:
    """A path from the root, or the end of one."""
    return any(file == name or file.endswith(f"/{name}") for file in files)


def plain(document: Path) -> str:
    """A page without its blocks and spans of code, in which brackets are no links."""
    text = re.sub(r"^( *)```.*?^\1```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


@cache
def anchors(document: Path) -> frozenset[str]:
    """Anchors of a page's headings that are the same on GitHub and on the site."""
    text = re.sub(r"^( *)```.*?^\1```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        kept = re.sub(r"[^\w\s-]", "", re.sub(r"\]\([^)]*\)", "", heading)).strip().lower()
        on_github, on_site = kept.replace(" ", "-"), re.sub(r"[-\s]+", "-", kept)
        if on_github == on_site:
            found.add(on_site)
    return frozenset(found)


def broken_links(document: Path) -> list[str]:
    """Links of a page to files or headings that are not there, and from docs/ to what the site does not have."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", plain(document)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        page = Path(os.path.normpath(document.parent / path)) if path else document
        outside = document.is_relative_to(DOCS) and not page.is_relative_to(DOCS)
        if outside or not page.is_file() or (anchor and anchor not in anchors(page)):
            broken.append(target)
    return broken


@pytest.fixture(scope="module")
def files() -> frozenset[str]:
    return frozenset(
        path.relative_to(ROOT).as_posix()
        for folder in ("igd_core", "server", "tests", "deploy", "docs")
        for path in (ROOT / folder).rglob("*.py")
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_page_and_heading_that_a_document_names_is_there(document: Path, files: frozenset[str]) -> None:
    named = NAMED.findall(document.read_text(encoding="utf-8"))
    assert [name for name in named if not exists(name, files)] == []
    assert broken_links(document) == []
    assert run_on(document) == []


def run_on(document: Path) -> list[str]:
    """Lists and tables that follow a line of text at once: GitHub shows them, the site joins them to the text."""
    lines = ["", *plain(document).splitlines()]
    starts = re.compile(r"(\d+\.|[-*]|\|) ")
    belongs = re.compile(r"(\d+\.|[-*]|\|) | {2,}|#|<!--|$")
    found, inside = [], False
    for before, line in pairwise(lines):
        if starts.match(line) and before and not inside and not belongs.match(before):
            found.append(line)
        inside = bool(starts.match(line)) or (inside and bool(line))
    return found


def commands(text: str) -> list[list[str]]:
    """Words of each `igd` command in a page's blocks of shell, from its name on."""
    found = []
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        joined = re.sub(r"\\\n|(?<=\s)#.*", " ", block)
        for part in re.split(r"\n|&&|\|\|?|;|\$\(|(?<!\S)&(?!\S)", re.sub(r"'[^']*'|\"[^\"]*\"", "WORD", joined)):
            words = [word for word in part.split() if not re.match(r"\w+=|[\w.]+\(\)$|[{(]$", word)]
            if words and (words[0].endswith("/igd") or words[0] == "igd" or words[0].startswith("--")):
                found.append(words)
    return found


def strangers(words: list[str]) -> list[str]:
    """What of a command's words the command line does not have."""
    if words[0].startswith("--"):
        return words[:1]  # its command stands a line above, without a backslash
    parser = make_parser(words[1])
    for word in words[1:]:
        subcommands = next((each for each in parser._actions if isinstance(each, argparse._SubParsersAction)), None)
        if subcommands is not None and word in subcommands.choices:
            parser = subcommands.choices[word]
    known = parser._option_string_actions
    return [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_flag_of_an_igd_command_in_a_block_is_one(document: Path) -> None:
    found = commands(document.read_text(encoding="utf-8"))
    assert [(words[:3], unknown) for words in found if (unknown := strangers(words))] == []


def test_a_flag_that_is_not_there_and_one_that_stands_alone_are_found() -> None:
    page = (
        "```sh\nigd bench serve --rate 3   # three\n  --seconds 3\n"
        "X=1 .venv/bin/igd build --items F \\\n --itms G | wc --lines\n```\n"
    )
    assert [strangers(words) for words in commands(page)] == [[], ["--seconds"], ["--itms"]]


def test_a_link_to_a_page_or_a_heading_that_is_not_there_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A heading, here\n## Twice - dashed\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#a-heading-here) [c](gone.md) [d](there.md#gone) [e](#gone) `[f](code.md)` "
        "[g](there.md#twice-dashed) [h](https://example.org/x)\n```\n[i](block.md)\n```\n",
        encoding="utf-8",
    )
    assert run_on(page) == []
    page.write_text(page.read_text(encoding="utf-8") + "text\n- item\n- item\n\ntext\n| cell |\n", encoding="utf-8")
    assert run_on(page) == ["- item", "| cell |"]
    assert broken_links(page) == ["gone.md", "there.md#gone", "#gone", "there.md#twice-dashed"]


def test_the_site_shows_every_page_once_and_nothing_else() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]

    def shown(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        inner = entry.values() if isinstance(entry, dict) else entry
        assert isinstance(inner, list | type({}.values()))
        return [page for one in inner for page in shown(one)]

    assert sorted(shown(nav)) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


def defined_in(path: Path) -> frozenset[str]:
    """Names of a module's functions, classes and their methods (``Class.method``)."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {f"{node.name}.{each.name}" for each in methods}
    return frozenset(names)


def wrong_places(text: str) -> list[str]:
    """Rows of a table ``| behaviour | `file` | `name`, ... |`` whose file or names are not in the code."""
    wrong = []
    for file, cell in re.findall(r"^\|[^|]+\| `([\w/.]+)` \|([^|]+)\|$", text, re.MULTILINE):
        defined = defined_in(ROOT / file) if (ROOT / file).is_file() else frozenset()
        wrong += [f"{file}: {name}" for name in re.findall(r"`([\w.]+)`", cell) if name not in defined]
    return wrong


def test_the_map_says_of_every_behaviour_where_the_code_decides_it() -> None:
    _, _, table = (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8").partition("## Where behaviour")
    rows = [line for line in table.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) > 30
    assert all(re.fullmatch(r"\|[^|`]+\| `[\w/.]+` \| `[^|]+ \|", row) for row in rows)
    assert wrong_places(table) == []


def test_a_behaviour_that_moved_away_is_found() -> None:
    there, gone = "| a | `tests/films.py` | `Running`, `gone` |", "| b | `tests/gone.py` | `C.d` |"
    assert wrong_places(f"{there}\n{gone}\n") == ["tests/films.py: gone", "tests/gone.py: C.d"]


def test_every_page_that_a_text_of_the_code_names_is_there() -> None:
    missing = []
    for folder in ("igd_core", "server", "tests", "deploy"):
        for path in (ROOT / folder).rglob("*"):
            if path.name.endswith(TEXTS) and path.is_file():
                for page, anchor in re.findall(
                    r"(?<![\w/.-])docs/([\w/-]+\.md)(?:#([\w-]+))?", path.read_text(encoding="utf-8")
                ):
                    if not (DOCS / page).is_file() or (anchor and anchor not in anchors(DOCS / page)):
                        missing.append(f"{path.relative_to(ROOT)}: docs/{page}#{anchor}")
    assert missing == []


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
