"""The release: in the code, so that a checkout that was never installed has one too; `pyproject.toml` reads it here."""

from typing import Final

RELEASE: Final = "0.1.0"
