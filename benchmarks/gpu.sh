#!/usr/bin/env bash
# All that is to be measured on a GPU, most important first, in at most 8 minutes: benchmarks/gpu.sh
#
# From a checkout with nothing installed: Python, PyTorch, torchvision, Lightning and what those bring, no network; and timm
# as pyproject.toml asks for it (older ones have a LAMB that takes longer than the rest of a step).
# Each part is a process of its own with a limit in seconds. LIMIT (480) is that of all together, OUT the file of results
# (benchmarks/results/gpu.jsonl), TRACES a folder for the profiler's traces, DEVICE cuda or, to rehearse, cpu:
#     DEVICE=cpu CONVSPARK_COMPILE=0 SIZE=64 BATCH=2 LARGE=4 REPEATS=2 OUT=/tmp/gpu.jsonl benchmarks/gpu.sh
set -u
cd "$(dirname "$0")/.."
: "${DEVICE:=cuda}" "${LIMIT:=480}" "${SIZE:=224}" "${BATCH:=128}" "${LARGE:=512}" "${REPEATS:=9}" "${PYTHON:=python3}"
: "${BEFORE:=150}" "${TRACES:=}" "${OUT:=benchmarks/results/gpu.jsonl}"
export PYTHONUNBUFFERED=1
[ -n "$TRACES" ] && mkdir -p "$TRACES"
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

# Compilations take most of the time, and there are cores for some of them at once: what is compiled and tested first is
# found in the compilers' caches when it is measured. (Six at once took longer than one after the other.) `torch.compile`
# takes minutes on one core: it goes on while recorded steps are timed, which hardly need the host.
first=$(mktemp -d) others=(efficientnet_b0 convnext_small)
beforehand() {  # beforehand SECONDS NAME ARGUMENTS...
    local limit=$1 name=$2
    shift 2
    timeout --kill-after=5 "$limit" "$PYTHON" -m benchmarks.gpu "$@" --batch-sizes "$BATCH" --device "$DEVICE" \
        --out "$first/$name.jsonl" --size "$SIZE" --repeats 1 >"$first/$name.log" 2>&1
    echo "--- beforehand: $name, exit $? after $((SECONDS)) s: $(tail -n 1 "$first/$name.log" | cut -c 1-200)"
}
echo "--- tests and compilations (at most $BEFORE s)"
new=layer_norm,column_sums,products  # not measured yet
beside=$("$PYTHON" -c "import xdist" 2>/dev/null && echo "-n 6")
{
    timeout --kill-after=5 "$BEFORE" "$PYTHON" -m pytest -q -p no:cacheprovider -p no:benchmark $beside \
        -m "not slow" -k "not spilling" -W ignore::DeprecationWarning -W ignore::FutureWarning \
        tests/runs/test_graphs.py tests/kernels/test_gpu.py
    echo "--- tests: exit $? after $SECONDS s"
} &
tests=$!
CONVSPARK_KERNELS=$new beforehand "$BEFORE" encoders encoder "${others[@]}" --ways "visible only" --modes graph &
encoders=$!
beforehand $((LIMIT / 2)) compiled encoder resnet50 --modes compiled &
compiled=$!
wait $tests $encoders

batch=(--batch-sizes "$BATCH") traces=(${TRACES:+--traces "$TRACES"})
part 60 encoder "${others[@]}" "${batch[@]}" --modes graph --ways "visible only,dense"
CONVSPARK_KERNELS=$new part 60 encoder resnet50 "${others[@]}" "${batch[@]}" --modes graph --ways "visible only"
part 40 encoder resnet50 "${batch[@]}" --modes graph
part 40 step resnet50 "${batch[@]}" --modes graph
part 30 profile resnet50 "${batch[@]}" --whole "${traces[@]}"
CONVSPARK_KERNELS=$new part 40 profile "${others[@]}" "${batch[@]}" "${traces[@]}"
wait $compiled
part 60 pretrain resnet50 "${batch[@]}"
part 60 pretrain resnet50 "${batch[@]}" --decode device
part 160 encoder resnet50 "${batch[@]}" --modes compiled
part 45 decoding resnet50 "${batch[@]}"
part 40 step resnet50 "${batch[@]}" --modes eager
part 40 encoder resnet50 "${batch[@]}" --modes eager
part 120 step resnet50 "${batch[@]}" --modes compiled
TRITON_PRINT_AUTOTUNING=1 CONVSPARK_KERNELS=implicit_gemm part 90 encoder resnet50 "${batch[@]}" --modes graph
part 90 encoder "${others[@]}" "${batch[@]}" --modes compiled
part 30 encoder resnet50 --batch-sizes "$LARGE" --modes graph
part 70 correctness
part 45 feeding "${batch[@]}"
"$PYTHON" -m benchmarks.gpu table --out "$OUT"
