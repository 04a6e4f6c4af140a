"""Write the tables of docs/reference that the code decides: ``python docs/generate.py``; ``--check`` only looks.

Each page holds blocks between ``<!-- generated: NAME -->`` and ``<!-- end -->``. What stands between them comes from
here; the rest of a page is written by hand. `tests/unit/test_reference_pages.py` holds the pages to this script.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import io
import json
import pkgutil
import re
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import igd_server
import numpy as np
import pyarrow.parquet as pq
from igd_server.api.problems import ProblemKind
from igd_server.settings import PREFIX, Settings
from safetensors.numpy import load

from igd_core.artifact.counts import Counts
from igd_core.artifact.files import encode_parts
from igd_core.artifact.manifest import (
    FORMAT,
    FORMAT_VERSION,
    FORMAT_VERSION_WITH_MODEL,
    FORMAT_VERSION_WITH_SCORER,
    Manifest,
)
from igd_core.catalogue.attribute_types import AttributeType
from igd_core.catalogue.gain import InfoGainTable
from igd_core.catalogue.items import Catalogue
from igd_core.catalogue.prompts import PromptTemplate
from igd_core.catalogue.trie import TokenTrie
from igd_core.cli.main import make_parser
from igd_core.scorers.counting import transition_rows
from igd_core.scorers.record import ScorerRecord
from igd_core.scorers.rows import SparseRows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ROOT = Path(__file__).parents[1]
CODE = ROOT / "server"
PAGES = ROOT / "docs" / "reference"
WORDS = tomllib.loads((ROOT / "docs" / "words.toml").read_text(encoding="utf-8"))
_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_MIB = 1 << 20
_KINDS = {
    "Counter": "counter",
    "CounterMetricFamily": "counter",
    "Gauge": "gauge",
    "GaugeMetricFamily": "gauge",
    "Histogram": "histogram",
}
_LEVELS = {"exception": "error"}


class WordsDiffer(Exception):  # noqa: N818 - the name says what happened
    """words.toml and the code name different things."""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def linked(text: str) -> str:
    """Pages of docs/ that a docstring names, as links; double backquotes as single ones."""

    def link(named: re.Match[str]) -> str:
        page, anchor = named[1], named[2] or ""
        return f"[{Path(page).stem}](../{page}{anchor})"

    return re.sub(r"\bdocs/([\w/-]+\.md)(#[\w-]+)?", link, text.replace("``", "`"))


def attributes_of(described: type) -> dict[str, str]:
    """What a class's docstring says under ``Attributes:``, by name."""
    text = inspect.getdoc(described) or ""
    block = text.partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", block, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", words).strip().removesuffix(".") for name, words in entries}


def same(kind: str, written: Iterable[str], found: Iterable[str]) -> None:
    """Refuse words about things that are not there, and things without words."""
    if missing := sorted(set(found) - set(written)):
        raise WordsDiffer(f"docs/words.toml: no words for {kind} {', '.join(missing)}")
    if extra := sorted(set(written) - set(found)):
        raise WordsDiffer(f"docs/words.toml: {kind} {', '.join(extra)}: not in the code")


def settings() -> str:
    """Every setting: variable, default, flag, values, meaning."""
    schema = Settings.model_json_schema()["properties"]
    (commands,) = (at for at in make_parser("serve")._actions if isinstance(at, argparse._SubParsersAction))
    flags = {at.dest: at.option_strings[0] for at in commands.choices["serve"]._actions}
    rows = []
    for name, field in Settings.model_fields.items():
        default = "required" if field.is_required() else _shown(field.default)
        flag = f"`{flags[name]}`" if name in flags else ""
        rows.append(
            [f"`{PREFIX}{name.upper()}`", default, flag, _values(schema[name]), linked(field.description or "")]
        )
    return table(("variable", "default", "flag", "values", "what it is"), rows)


def _shown(default: object) -> str:
    if default is None or default == ():
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, float):
        return f"`{default:g}`"
    if isinstance(default, int) and default >= _MIB and default % _MIB == 0:
        return f"{default // _MIB} MiB"
    return f"`{default}`"


def _values(schema: dict[str, Any]) -> str:
    """Bounds, choices or pattern of a setting."""
    kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    if len(kinds) != 1:
        return ""
    (kind,) = kinds
    if "enum" in kind:
        return ", ".join(f"`{value}`" for value in kind["enum"])
    if "pattern" in kind:
        return f"`{kind['pattern']}`"
    if "maxItems" in kind:
        return f"at most {kind['maxItems']}"
    return "`true`, `false`" if kind["type"] == "boolean" else _bounds(kind)


def _bounds(kind: dict[str, Any]) -> str:
    low = kind.get("minimum", kind.get("exclusiveMinimum"))
    if low is None:
        return ""
    start = f"above {low:,}" if "exclusiveMinimum" in kind else f"{low:,}"
    return f"{start} to {kind['maximum']:,}" if "maximum" in kind else f"{start} or more"


@cache
def _calls(root: Path) -> tuple[ast.Call, ...]:
    """Every call in the files below ``root``, file by file, as they are written."""
    found: list[ast.Call] = []
    for path in sorted(root.rglob("*.py")):
        calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
        found += sorted(calls, key=lambda call: (call.lineno, call.col_offset))
    return tuple(found)


def metrics() -> str:
    """Every metric of the server: name, kind, labels, meaning; read off the calls that declare them."""
    rows = {}
    for call in _calls(CODE):
        kind = _KINDS.get(call.func.id) if isinstance(call.func, ast.Name) else None
        if kind and call.args and isinstance(call.args[0], ast.Constant):
            name = f"{call.args[0].value!s}{'_total' if kind == 'counter' else ''}"
            meaning = str(ast.literal_eval(call.args[1]))
            rows[name] = [f"`{name}`", kind, ", ".join(f"`{label}`" for label in _labels(call)), meaning]
    return table(("metric", "kind", "labels", "what it counts"), (rows[name] for name in sorted(rows)))


def _labels(call: ast.Call) -> tuple[str, ...]:
    named = next((at.value for at in call.keywords if at.arg in ("labels", "labelnames")), None)
    third = call.args[2] if len(call.args) > 2 else None
    labels = named or (third if isinstance(third, ast.Tuple) else None)
    return ast.literal_eval(labels) if labels is not None else ()


def problems() -> str:
    """Every problem document: name, status, title, whether to try again."""
    kinds: dict[str, ProblemKind] = {}
    for module in pkgutil.walk_packages(igd_server.__path__, "igd_server."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, ProblemKind):
                kinds[value.name] = value
    words = WORDS["problems"]
    same("problems", words, kinds)
    ordered = sorted(kinds.values(), key=lambda kind: (kind.status, kind.name))
    rows = ([str(kind.status), f"`{kind.name}`", kind.title, words[kind.name]["advice"]] for kind in ordered)
    return table(("status", "name", "title", "try again?"), rows)


def log_events() -> str:
    """Every line of the server's log: event, level, fields, meaning."""
    words = WORDS["log_events"]
    levels: dict[str, set[str]] = {"log": set()}
    for call in _calls(CODE):
        if not (isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "_log"):
            continue
        event = next((at.value for at in call.args if isinstance(at, ast.Constant)), None)
        if isinstance(event, str):
            levels.setdefault(event, set()).add(_LEVELS.get(call.func.attr, call.func.attr))
            if missing := [name for name in _fields(call) if f"`{name}`" not in words.get(event, {}).get("fields", "")]:
                raise WordsDiffer(f"docs/words.toml: log event {event}: no words for field {', '.join(missing)}")
    same("log events", words, levels)
    rows = []
    for event, said in words.items():
        level = said.get("level") or ", ".join(sorted(levels[event] - {"log"}))
        rows.append([f"`{event}`", level, said["fields"], said["meaning"]])
    return table(("event", "level", "fields", "when"), rows)


def _fields(call: ast.Call) -> list[str]:
    """Names of the fields that a call of the log spells out."""
    extra = next((at.value for at in call.keywords if at.arg == "extra"), None)
    inner = (
        next((at for at in ast.walk(extra) if isinstance(at, ast.Dict) and at is not extra), None) if extra else None
    )
    keys = [at.value for at in inner.keys if isinstance(at, ast.Constant)] if inner else []
    return [str(key) for key in keys]


def commands() -> str:
    """Every command of ``igd`` with its flags."""
    return "\n".join(_command(parser) for parser in _parsers(make_parser()))


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _parsers(inner)


def _command(parser: argparse.ArgumentParser) -> str:
    shown = parser._get_formatter()
    rows, inner = [], []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        text = linked(shown._expand_help(action) if action.help else "").replace("<", "&lt;")
        if isinstance(action, argparse._SubParsersAction):
            inner = [[f"`{parser.prog} {at.dest}`", at.help or ""] for at in action._choices_actions]
            continue
        names = ", ".join(f"`{name}`" for name in action.option_strings)
        value = shown._format_args(action, action.dest.upper()) if action.nargs != 0 else ""
        needed = "required" if action.required and action.option_strings else ""
        rows.append([names or "argument", f"`{value}`" if value else "", needed, text])
    parts = [f"## {parser.prog}\n", f"{linked(parser.description)}\n" if parser.description else ""]
    parts += [table(("command", "what it does"), inner) if inner else ""]
    parts += [table(("flag", "value", "", "what it is"), rows) if rows else ""]
    return "\n".join(part for part in parts if part)


def manifest() -> str:
    """The fields of an artifact's manifest."""
    versions = f"{FORMAT_VERSION}, {FORMAT_VERSION_WITH_SCORER} with a scorer, {FORMAT_VERSION_WITH_MODEL} with a model"
    own = {"format": f'`"{FORMAT}"`', "format_version": versions, "version": "the content's hash"}
    words = {**own, **attributes_of(Manifest)}
    words |= {f"template.{name}": text for name, text in attributes_of(PromptTemplate).items()}
    words |= {f"scorer.{name}": text for name, text in attributes_of(ScorerRecord).items()}
    words["counts"] += ": " + ", ".join(f"`{name}`" for name in Counts.__slots__)
    return table(("field", "what it is"), ([f"`{name}`", linked(text)] for name, text in words.items()))


def arrays() -> str:
    """The arrays of a small artifact as it is written: file, name, type, meaning."""
    words = {**attributes_of(TokenTrie), **attributes_of(InfoGainTable), **attributes_of(SparseRows)}
    rows = []
    for name, part in _small_parts().items():
        if name.endswith(".safetensors"):
            found = load(part)
            rows += [[f"`{name}`", f"`{key}`", str(found[key].dtype), linked(words[key])] for key in sorted(found)]
    return table(("file", "array", "type", "what it is"), rows)


def columns() -> str:
    """The columns of a small artifact's items as they are written: name, type, meaning."""
    words = attributes_of(Catalogue)
    meaning = {"item_id": words["item_ids"], "title": words["titles"], "text": words["texts"], **words}
    schema = pq.read_schema(io.BytesIO(_small_parts()["items.parquet"]))
    rows = []
    for field in schema:
        is_attribute = field.name.startswith("meta.")
        said = "an attribute named `year`, in its own type" if is_attribute else meaning[field.name]
        rows.append([f"`{field.name}`", str(field.type), linked(said)])
    return table(("column", "type", "what it is"), rows)


def _small_parts() -> dict[str, bytes]:
    catalogue = Catalogue(
        item_ids=["a", "b"],
        titles=["Tin Kites", "Tin Drums"],
        texts=["<k_1><k_2>", "<k_1><k_3>"],
        frequency=np.array([3, 1], np.int64),
        metadata={"year": [1990, 1991]},
        types={"year": AttributeType.of("integer")},
    )
    trie = TokenTrie.build(np.array([0, 3, 6], np.int64), np.array([1, 2, 0, 1, 3, 0], np.int32))
    gains = InfoGainTable.build(trie, np.array([0.75, 0.25]))
    scorer = transition_rows([np.array([0, 1], np.int32)], num_items=2, most=1)
    return {name: part.data for name, part in encode_parts(catalogue, trie, gains, scorer).items()}


BLOCKS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "settings": settings,
    "metrics": metrics,
    "problems": problems,
    "log-events": log_events,
    "manifest": manifest,
    "arrays": arrays,
    "columns": columns,
}


def pages() -> dict[Path, str]:
    """Each page of docs/reference with blocks, as it should be."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(PAGES.glob("*.md"))}
    named = [name for text in texts.values() for _, name, _ in _BLOCK.findall(text)]
    if sorted(named) != sorted(BLOCKS):
        raise WordsDiffer(f"docs/reference: blocks {json.dumps(sorted(named))}; there are {json.dumps(sorted(BLOCKS))}")
    return {
        path: _BLOCK.sub(lambda at: f"{at[1]}{BLOCKS[at[2]]()}{at[3]}", text)
        for path, text in texts.items()
        if _BLOCK.search(text)
    }


def main(argv: list[str] | None = None) -> int:
    """Write the pages, or with ``--check`` name those that the code has left behind: exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(argv).check
    stale = {path: text for path, text in pages().items() if path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        if not check:
            path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {'stale: run python docs/generate.py' if check else 'written'}")  # noqa: T201
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
