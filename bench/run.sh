#!/bin/sh
# Runs the benchmarks that this machine can run: bench/run.sh build/release
#   PEER_PYTHON   an interpreter that has bench/requirements.txt; without it graft is measured alone
#   ROUNDS        turns of each program and its peer (1)
#   THREADS       threads of both (2)
#   TOKENIZERS    folders that hold a tokenizer.json; without it those of the models in build/bench
#   SHAPES, MODES as bench/train.py takes them
#   LLAMA_CPP     a checkout of llama.cpp, to export beside its converter
#   EXPORT_MODEL  the model that is exported; its tokenizer is one that the converter knows
set -eu
build=${1:?usage: run.sh BUILD}
rounds=${ROUNDS:-1}
threads=${THREADS:-2}
work=build/bench
peer=${PEER_PYTHON:-}

echo "== products of matrices"
"$build/bench/gemm" "$threads"

if [ -f "$build/cuda-1" ] && "$build/graft" doctor --device cuda --json 2>/dev/null | grep -q 'compute capability'; then
    echo "== operations on the GPU"
    "$build/bench/gpu"
    echo "== bench/gpu.py measures trainings there; it writes models of 16 GB"
fi

if ! command -v python3 >/dev/null; then
    echo "== python3 is missing, so there are no comparisons; alone:"
    "$build/bench/quant" "$threads"
    "$build/bench/image"
    exit 0
fi
[ -n "$peer" ] || echo "== PEER_PYTHON is not set: graft alone"

for what in quant image; do
    echo "== $what"
    python3 bench/beside.py $what "$build" --python "$peer" --rounds "$rounds" --threads "$threads"
done

if [ -n "$peer" ]; then
    "$peer" bench/train_setup.py "$work" $(echo "${SHAPES:-smollm2-135m}" | tr , ' ')
fi
if [ ! -f "$work/data.yaml" ]; then
    echo "== skip: tokenizer and training; bench/train_setup.py makes their models, and needs PEER_PYTHON"
    exit 0
fi
echo "== tokenizer"
# shellcheck disable=SC2086
python3 bench/beside.py tokenizer "$build" --python "$peer" --rounds "$rounds" ${TOKENIZERS:-"$work"/*-bf16}
echo "== training"
python3 bench/train.py "$build" "$work" --python "$peer" --rounds "$rounds" --threads "$threads" \
    --shapes "${SHAPES:-smollm2-135m}" --modes "${MODES:-f32,bf16,nf4-bf16}"

if [ -z "$peer" ]; then
    echo "== skip: merging, quantising and exporting whole models; they need PEER_PYTHON"
    exit 0
fi
export GRAFT="$build/graft"
for shape in $(echo "${SHAPES:-smollm2-135m}" | tr , ' '); do
    echo "== merging, $shape"
    "$peer" bench/merge_peer.py "$work/$shape-bf16" "$work/$shape-adapter" "$work/merge"
    echo "== quantising, $shape"
    "$peer" bench/quantize_peer.py "$work/$shape-bf16" "$work/quantize"
done
if [ -z "${LLAMA_CPP:-}" ] || [ -z "${EXPORT_MODEL:-}" ]; then
    echo "== skip: exporting; it needs LLAMA_CPP and EXPORT_MODEL"
    exit 0
fi
echo "== exporting $EXPORT_MODEL"
"$peer" bench/export_peer.py "$EXPORT_MODEL" "$LLAMA_CPP" "$work/export"
