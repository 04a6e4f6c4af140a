"""Find out which extra of the package installs a missing module, for messages."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

EXTRA_OF_MODULE: Final = {
    **dict.fromkeys(("torch", "transformers", "gguf", "accelerate"), "core"),
    **dict.fromkeys(
        ("fastapi", "starlette", "uvicorn", "prometheus_client", "httpx", "redis"),
        "server",
    ),
    **dict.fromkeys(("limits", "httptools", "uvloop", "opentelemetry"), "server"),
    **dict.fromkeys(("peft", "yaml"), "train"),
    "implicit": "eval",
    "vllm": "vllm",
    "ray": "batch",
}
"""The smallest extra that installs each module."""

# What a command needs beyond that: named at once, or its user would install one extra after the other.
_EXTRA_OF_COMMAND: Final = {"batch": "batch", "demo": "server", "serve": "server", "start": "train", "tune": "train"}


def what_to_install(missing: ModuleNotFoundError, command: str) -> str | None:
    """What to install for ``command``, in one line; None if the error is our own fault."""
    module = (missing.name or "").partition(".")[0]
    extra = EXTRA_OF_MODULE.get(module)
    if extra is None or _is_installed(module):
        return None
    extra = _EXTRA_OF_COMMAND.get(command, extra)
    return f"igd {command} needs {module}, which is not installed: pip install 'igd-recommender[{extra}]'"


def require_modules(*modules: str) -> None:
    """Look for modules without importing them, before work that would be lost.

    Raises:
        ModuleNotFoundError: names the first that is missing.
    """
    for module in modules:
        if not _is_installed(module):
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def _is_installed(module: str) -> bool:
    """Whether a module is installed. A missing part of an installed module does not count as missing."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
