#!/usr/bin/env bash
# The tutorial's road, walked without stopping: checkpoint -> engine -> repository -> server -> load -> chart.
# Usage: docs/demo.sh OUT_FOLDER   (the commands must be on PATH; `make demo` sees to it)
set -euo pipefail
out=${1:?usage: docs/demo.sh OUT_FOLDER}

say() { printf '\n\033[1m== %s\033[0m\n' "$*" >&2; }
run() { printf '\033[2m$ %s\033[0m\n' "$*" >&2; "$@"; }

say "1. A real checkpoint: SmolLM2-135M-Instruct"
run unpack-checkpoint smollm2 --out "$out/smollm2" --force

say "2. Real quantization on this CPU, verified against the original"
run build-engine --checkpoint "$out/smollm2" --precision fp8 --gpu h100-sxm-80gb --until checkpoint \
    --out "$out/smollm2-fp8" --force

say "3. The 8B engine, planned and emulated"
run build-engine --precision fp8 --emulate --out "$out/engine" --force

say "4. Its Triton model repository"
run build-repo "$out/engine" --out "$out/repository" --force

say "5. The real Triton, on loopback"
run serve-repo "$out/repository" --http-port 18000 --grpc-port 18001 --metrics-port 18002 --detach --stop-after 1200
trap 'run serve-repo "$out/repository" --stop' EXIT

say "6. Load: closed loop, concurrency 1 to 128"
run run-load --url http://127.0.0.1:18000 --protocol triton-http --concurrency 1,2,4,8,16,32,64,128 \
    --isl 256 --osl 64 --requests 32 --out "$out/run" --force

say "7. Latency against batch size"
run report-load "$out/run" --out "$out/report" --force
