"""The tables of docs/reference are what docs/generate.py makes of the code."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    return module


def test_the_committed_pages_are_what_the_code_says(generate: ModuleType) -> None:
    stale = [path.name for path, text in generate.pages().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run python docs/generate.py"
    assert not [path.name for path, text in generate.pages().items() if "Undefined" in text]


def test_a_page_that_the_code_has_left_behind_is_named_and_written_again(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in generate.PAGES.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        (tmp_path / path.name).write_text(text.replace("`IGD_PORT` | `8000`", "`IGD_PORT` | `80`"), encoding="utf-8")
    monkeypatch.setattr(generate, "PAGES", tmp_path)
    monkeypatch.setattr(generate, "ROOT", tmp_path.parent)
    code = ROOT / "server"
    monkeypatch.setattr(generate, "CODE", code)
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().out == f"{tmp_path.name}/settings.md: stale: run python docs/generate.py\n"
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    assert (tmp_path / "settings.md").read_bytes() == (ROOT / "docs" / "reference" / "settings.md").read_bytes()


def test_words_about_what_is_not_there_and_things_without_words_are_refused(
    generate: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = dict(generate.WORDS["problems"])
    del problems["forbidden"]
    monkeypatch.setitem(generate.WORDS, "problems", problems)
    with pytest.raises(generate.WordsDiffer, match="no words for problems forbidden"):
        generate.problems()
    events = {**generate.WORDS["log_events"], "no_such_event": {"fields": "", "meaning": ""}}
    monkeypatch.setitem(generate.WORDS, "log_events", events)
    with pytest.raises(generate.WordsDiffer, match="no_such_event: not in the code"):
        generate.log_events()
    monkeypatch.setitem(events, "keys_read", {"fields": "", "meaning": ""})
    with pytest.raises(generate.WordsDiffer, match="keys_read: no words for field keys"):
        generate.log_events()
