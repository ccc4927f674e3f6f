#!/usr/bin/env bash
# The ablation and the rivals with a ResNet-50 at 128 pixels on a GPU, in slices: benchmarks/gpu_arms.sh DATA [SECONDS]
#
# DATA has train/, val/ (and test/) folders. After SECONDS (480) what runs is stopped as by Ctrl-C, which writes its
# checkpoint; called again with the same OUT (runs/gpu-arms) it goes on there. What is complete is a line in
# benchmarks/results/. From a checkout with nothing installed, like gpu.sh; the rivals where lightly can be imported.
# PRETRAIN_EPOCHS (300), FINETUNE_EPOCHS (60), SEEDS (3) and BATCH (256) are those of all arms.
set -u
cd "$(dirname "$0")/.."
data=$1 seconds=${2:-480}
: "${OUT:=runs/gpu-arms}" "${PRETRAIN_EPOCHS:=300}" "${FINETUNE_EPOCHS:=60}" "${SEEDS:=3}" "${PYTHON:=python3}"
: "${MODEL:=resnet50}" "${SIZE:=128}" "${BATCH:=256}"
export PYTHONUNBUFFERED=1
end=$((SECONDS + seconds - 20))  # to stop in

slice() {  # slice MODULE: until the time is over; fails if it ended in an error before
    local left=$((end - SECONDS))
    [ "$left" -lt 20 ] && return 0
    timeout --signal=INT --kill-after=18 "$left" "$PYTHON" -m "benchmarks.$1" "$data" --out "$OUT" --model "$MODEL" \
        --size "$SIZE" --pretrain-epochs "$PRETRAIN_EPOCHS" --finetune-epochs "$FINETUNE_EPOCHS" --seeds "$SEEDS" \
        --batch-size "$BATCH" --fractions 0.1 1
    local status=$?
    [ "$status" -eq 124 ] && return 0 # the time is over
    return "$status"
}

failed=0
slice ablation || failed=1
if "$PYTHON" -c "import lightly" 2>/dev/null; then slice rivals || failed=1; fi
exit "$failed"
