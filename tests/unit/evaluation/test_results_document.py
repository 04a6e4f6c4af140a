"""What the pages of docs/research say that `igd compare` prints is what it prints of the ranks kept in docs/runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from igd_core.cli.main import main
from igd_core.evaluation.ranks import RANKS_FILE, read_ranks

ROOT = Path(__file__).parents[3]
DOCUMENT = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "research").glob("*.md")))
SHOWN = re.findall(r"```sh\n(igd compare [^`]*docs/runs/[^`]*)```\n```\n([^`]*)```\n", DOCUMENT)
KEPT = sorted(path.parent for path in (ROOT / "docs" / "runs").glob(f"*/{RANKS_FILE}"))


@pytest.mark.parametrize(("command", "printed"), SHOWN, ids=range(len(SHOWN)))
def test_a_comparison_is_what_the_command_prints(
    command: str, printed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command.replace("\\\n", " "))[1:]) == 0
    assert capsys.readouterr().out == printed


def test_every_kept_run_is_read_and_named_in_a_document() -> None:
    assert SHOWN
    for folder in KEPT:
        assert read_ranks(folder).methods
        assert f"docs/runs/{folder.name}" in DOCUMENT, folder.name
