"""Lines of libraries that write their own beside the server's log."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

# As vLLM's (`vllm/logger.py`), which has a handler of its own.
FORMATS = ("%(process)d %(message)s", "%(thread)d %(message)s", "%(processName)s %(threadName)s %(message)s")


@pytest.mark.parametrize("format_", FORMATS)
def test_a_librarys_own_handler_can_write_what_it_knows_of_a_record(format_: str) -> None:
    code = (
        "import logging, sys; from igd_server.observe.logs import log_to_stderr; log_to_stderr('info');"
        f"own = logging.StreamHandler(sys.stdout); own.setFormatter(logging.Formatter({format_!r}));"
        "library = logging.getLogger('library'); library.propagate = False; library.addHandler(own);"
        "library.warning('kernels are %s', 'disabled')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(" kernels are disabled\n")
    assert done.stderr == ""
    assert logging.raiseExceptions  # what would print the traceback that is not there
