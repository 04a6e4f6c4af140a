"""`igd demo`: a real model, real films, and a page to try them on; nothing to prepare."""

from __future__ import annotations

import argparse
import time

from igd_core.extras import require_modules
from igd_core.models import igd_home

RECIPE = "ml-100k-small-llama"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd demo`."""
    parser = subparsers.add_parser(
        "demo", help="build the MovieLens-100K catalogue and serve it with the small model in the package"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default="8000")
    parser.add_argument("--no-serve", action="store_true", help="prepare everything, and stop")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build the catalogue that the model in the package was made for, and serve both."""
    require_modules("torch", "yaml", "uvicorn")
    from igd_core.artifact import save_artifact
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.tuning.recipes import read_recipe, recipe_artifact
    from igd_core.tuning.shipped import shipped_model

    started = time.perf_counter()

    def say(what: str) -> None:
        print(f"[{time.perf_counter() - started:5.1f} s] {what}", flush=True)

    model = shipped_model(RECIPE)
    say(f"model: recipe {RECIPE}, in {model}")
    artifact = recipe_artifact(read_recipe(RECIPE), TitleTokenizer.from_directory(model))
    out = igd_home() / "artifacts" / "ml-100k" / artifact.version
    save_artifact(artifact, out, replace=True)
    say(f"catalogue: {artifact.manifest.counts.items} films, version {artifact.version}, in {out}")
    if args.no_serve:
        return 0
    from igd_server.launch import launch
    from igd_server.settings import read_settings

    say(f"serving: open http://{args.host}:{args.port}/ once it says ready; Ctrl-C stops")
    return launch(read_settings(artifact=str(out), model=str(model), host=args.host, port=args.port))
