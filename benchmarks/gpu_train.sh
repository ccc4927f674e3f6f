#!/usr/bin/env bash
# A real pre-training of some minutes, then `compare`: benchmarks/gpu_train.sh PICTURES [--labelled LABELLED] [--minutes 8]
#
# From a checkout with nothing installed, like gpu.sh. Stopped, it goes on when it is called again with the same --out.
set -eu
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m benchmarks.gpu_train "$@"
