from __future__ import annotations

import sys
import time

import pytest

from igd_core.progress import progress


@pytest.mark.parametrize(("is_terminal", "least", "most"), [(True, 4, 32), (False, 2, 3)])
def test_a_terminal_is_told_all_the_time_and_a_log_now_and_then(
    is_terminal: bool, least: int, most: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    for _ in progress(range(30), desc="tuning", unit="step"):
        time.sleep(0.02)
    shown = capsys.readouterr().err
    assert least <= shown.count("tuning:") <= most
    assert "30/30" in shown
