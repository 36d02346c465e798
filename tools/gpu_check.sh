#!/usr/bin/env bash
# Run the CUDA tests and all benchmarks on a machine with a GPU, in one call.
#
#   tools/gpu_check.sh OUTDIR
#
# Needs torch and pytest, no network and no installation: the sources are found through PYTHONPATH.
# Writes OUTDIR/gpu_check.log and OUTDIR/results.tar.gz (one JSON file per benchmark) and goes on
# after a failure; exits non-zero at the end if there was one. Takes at most 9 minutes.
#
# WSSS_GPU_CHECK_DRY=1 tries the script itself: small sizes, and it may run without a GPU.
# PYTHON chooses the interpreter.
set -uo pipefail

if [ $# -ne 1 ]; then
  echo "usage: $0 OUTDIR" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 2

python=${PYTHON:-python3}
dry=${WSSS_GPU_CHECK_DRY:-0}
export PYTHONPATH="$PWD/src:$PWD/tests:$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
exec > >(tee "$out/gpu_check.log") 2>&1
log=$!

failed=()
step() { # step NAME SECONDS COMMAND...
  local name=$1 seconds=$2 begin=$SECONDS code
  shift 2
  [ "$dry" = 1 ] && seconds=$((4 * seconds)) # dry runs happen on busy machines
  echo
  echo "##### $name"
  timeout --kill-after=10 "$seconds" "$@"
  code=$?
  [ "$code" -eq 124 ] && echo "$name: stopped after $seconds s"
  [ "$code" -ne 0 ] && failed+=("$name (exit $code)")
  echo "##### $name: exit $code, $((SECONDS - begin)) s"
}

step machine 60 "$python" - <<'PYTHON'
import os
import platform
from importlib import metadata

import torch

print("python", platform.python_version(), "torch", torch.__version__, "cores", os.cpu_count())
for name in ("triton", "torchmetrics", "hypothesis", "pytest", "timm", "open_clip_torch", "POT"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "absent")
if torch.cuda.is_available():
    print("GPU:", torch.cuda.get_device_name(), "capability", torch.cuda.get_device_capability())
else:
    print("GPU: none")
    raise SystemExit(0 if os.environ.get("WSSS_GPU_CHECK_DRY") == "1" else 1)
PYTHON

# Only the files that have CUDA tests: others may import what this machine lacks. Options of
# pyproject.toml that need more than pytest itself are left out.
mapfile -t files < <(grep -rlE 'mark\.cuda' tests --include='test_*.py' | sort)
if [ ${#files[@]} -eq 0 ]; then
  echo "no CUDA tests were found"
  failed+=("no CUDA tests")
else
  step "CUDA tests" 200 "$python" -m pytest -q -ra -m cuda -o addopts=--strict-markers \
    -p no:cacheprovider --durations=10 "${files[@]}"
fi

device=cuda
quick=()
if [ "$dry" = 1 ]; then
  device=all
  quick=(--quick)
fi
results=$(mktemp -d)
step benchmarks 260 "$python" -m benchmarks.run_all --device "$device" --output "$results" \
  ${quick[@]+"${quick[@]}"}
tar -czf "$out/results.tar.gz" -C "$results" . || failed+=("results archive")
rm -r "$results"

echo
if [ ${#failed[@]} -gt 0 ]; then
  printf 'FAILED: %s\n' "${failed[@]}"
else
  echo "all passed in $SECONDS s"
fi
code=$((${#failed[@]} > 0))
exec >&- 2>&-
wait "$log"
exit "$code"
