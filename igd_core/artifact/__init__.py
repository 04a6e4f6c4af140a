"""The artifact: one versioned, checksummed bundle of trie, information gains, items and manifest."""

from igd_core.artifact.build import BuildOptions, Built, build_artifact, build_reported
from igd_core.artifact.bundle import Artifact
from igd_core.artifact.files import load_artifact, save_artifact
from igd_core.artifact.manifest import Manifest

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
