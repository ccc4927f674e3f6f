#!/usr/bin/env bash
# All that is to be measured on a GPU, most important first, in at most 8 minutes: benchmarks/gpu.sh
#
# From a checkout with nothing installed: Python, PyTorch, torchvision, timm, Lightning and what those bring; no network.
# Each part is a process of its own with a limit in seconds. LIMIT (480) is that of all together, OUT the file of results
# (benchmarks/results/gpu.jsonl), TRACES a folder for the profiler's traces, DEVICE cuda or, to rehearse, cpu:
#     DEVICE=cpu CONVSPARK_COMPILE=0 SIZE=64 BATCH=2 LARGE=4 REPEATS=2 OUT=/tmp/gpu.jsonl benchmarks/gpu.sh
set -u
cd "$(dirname "$0")/.."
: "${DEVICE:=cuda}" "${LIMIT:=480}" "${SIZE:=224}" "${BATCH:=128}" "${LARGE:=512}" "${REPEATS:=9}" "${PYTHON:=python3}"
: "${OUT:=benchmarks/results/gpu.jsonl}"
export PYTHONUNBUFFERED=1
[ -n "${TRACES:-}" ] && mkdir -p "$TRACES"
end=$((SECONDS + LIMIT - 12))  # the table takes a few

part() {  # part SECONDS ARGUMENTS...
    local limit=$1 left=$((end - SECONDS))
    shift
    [ "$left" -lt 10 ] && { echo "--- no time left for: $*"; return; }
    [ "$limit" -gt "$left" ] && limit=$left
    echo "--- $* (at most $limit s)"
    local started=$SECONDS
    timeout --kill-after=5 "$limit" "$PYTHON" -m benchmarks.gpu "$@" \
        --device "$DEVICE" --out "$OUT" --size "$SIZE" --repeats "$REPEATS"
    echo "--- exit $? after $((SECONDS - started)) s"
}

echo "--- tests"  # most of their time goes into compiling kernels, for which there are cores
beside=$("$PYTHON" -c "import xdist" 2>/dev/null && echo "-n 8")
timeout --kill-after=5 80 "$PYTHON" -m pytest -q -p no:cacheprovider $beside -m "not slow" -k "not spilling" \
    -W ignore::DeprecationWarning -W ignore::FutureWarning tests/runs/test_graphs.py tests/kernels/test_gpu.py
part 50 encoder resnet50 --batch-sizes "$BATCH" --modes eager,graph
CONVSPARK_KERNELS=batch_norm part 30 encoder resnet50 --batch-sizes "$BATCH" --modes graph
TRITON_PRINT_AUTOTUNING=1 CONVSPARK_KERNELS=batch_norm,implicit_gemm part 150 encoder resnet50 \
    --batch-sizes "$BATCH" --modes graph  # tries sizes of tiles at the first run: some hundred compilations
CONVSPARK_KERNELS=batch_norm,implicit_gemm,max_pool part 30 encoder resnet50 --batch-sizes "$BATCH" --modes graph
part 40 step resnet50 --batch-sizes "$BATCH" --modes graph,eager
CONVSPARK_KERNELS=batch_norm part 50 encoder efficientnet_b0 convnext_small --batch-sizes "$BATCH" --modes graph
CONVSPARK_KERNELS=batch_norm part 50 profile resnet50 efficientnet_b0 convnext_small --batch-sizes "$BATCH" \
    ${TRACES:+--traces "$TRACES"}
part 30 encoder resnet50 --batch-sizes "$LARGE" --modes graph
part 70 correctness
part 45 feeding --batch-sizes "$BATCH"
part 180 encoder resnet50 --batch-sizes "$BATCH" --modes compiled
part 180 step resnet50 --batch-sizes "$BATCH" --modes compiled
part 90 encoder efficientnet_b0 convnext_small --batch-sizes "$BATCH" --modes compiled
"$PYTHON" -m benchmarks.gpu table --out "$OUT"
