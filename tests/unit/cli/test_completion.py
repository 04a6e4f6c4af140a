"""`igd completion bash`: what a real bash completes with it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from igd_core.cli.completion import SHELLS
from igd_core.cli.main import COMMANDS, main

if TYPE_CHECKING:
    from pathlib import Path

# Does what readline does when TAB is pressed at the end of the words.
PRESS = """
source "$1"; shift
read -ra found <<< "$(complete -p igd)"
for at in "${!found[@]}"; do [[ ${found[at]} == -F ]] && function=${found[at + 1]}; done
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMPREPLY=()
"$function" igd "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def test_bash_completes_commands_flags_choices_and_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "igd.bash"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "rows.csv").touch()
    (tmp_path / "runs").mkdir()

    def completed(*words: str) -> list[str]:
        call = ["bash", "--norc", "-c", PRESS, "bash", str(script), "igd", *words]
        done = subprocess.run(call, capture_output=True, text=True, check=True, cwd=tmp_path)
        return done.stdout.split()

    assert set(completed("")) == set(COMMANDS)
    assert completed("tu") == ["tune"]
    assert completed("tune", "--epochs", "3", "--wei") == ["--weighting", "--weight-decay"]
    assert completed("tune", "--schedule", "") == ["linear", "cosine", "constant"]
    assert completed("bench", "serve", "--find") == ["--find-capacity"]
    assert set(completed("serve", "--po")) == {"--poll-s", "--port"}
    assert set(completed("evaluate", "--rows", "r")) == {"rows.csv", "runs"}
    assert completed("evaluate", "--out", "r") == ["runs"]


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_a_script_that_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in (*COMMANDS, "lora-rank", "print-config"))
