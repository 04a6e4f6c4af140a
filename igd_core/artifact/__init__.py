"""The artifact: one versioned, checksummed bundle of trie, information gains, items and manifest.

Names are loaded when they are first used, so that `igd build --help`, which needs `BuildOptions` alone, waits for none
of the libraries that build.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from igd_core.artifact.build import Built, build_artifact, build_reported
    from igd_core.artifact.bundle import Artifact
    from igd_core.artifact.files import load_artifact, save_artifact
    from igd_core.artifact.manifest import Manifest
    from igd_core.artifact.options import BuildOptions

__all__ = [
    "Artifact",
    "BuildOptions",
    "Built",
    "Manifest",
    "build_artifact",
    "build_reported",
    "load_artifact",
    "save_artifact",
]
_MODULES = {
    "Artifact": "bundle",
    "BuildOptions": "options",
    "Built": "build",
    "Manifest": "manifest",
    "build_artifact": "build",
    "build_reported": "build",
    "load_artifact": "files",
    "save_artifact": "files",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
