"""One versioned, checksummed bundle: trie, information-gain table, items and manifest."""

from igd_core.artifact.build import BuildOptions, build_artifact
from igd_core.artifact.bundle import Artifact
from igd_core.artifact.files import load_artifact, save_artifact
from igd_core.artifact.manifest import Manifest

__all__ = ["Artifact", "BuildOptions", "Manifest", "build_artifact", "load_artifact", "save_artifact"]
