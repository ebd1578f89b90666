#!/bin/sh
# The base model of the examples, from nothing. The same seed gives the same model.
#   sh examples/base/run.sh [BUILD] [OUT] [short]
# BUILD holds the binaries (build/release), OUT is written (build/base) and a run that was stopped goes on. With "short"
# everything is tiny and nothing is learned; the tests run that.
set -e
build=${1:-build/release} out=${2:-build/base} length=$3
from=$(dirname "$0")
graft=$build/graft
. "$from/../steps.sh"
if [ "$length" = short ]; then
    amounts='12 12 12 8' steps='--max_steps 2'
else
    amounts='12000 12000 8000 300' steps=''
fi

mkdir -p "$out"
cp "$from"/*.yaml "$out"
[ -f "$out/data/val.json" ] || run "$build/examples/make_base_data" "$out/data" 1 $amounts
[ -f "$out/start/config.json" ] || run "$graft" init idefics2-clips --out "$out/start" --dtype bf16 --seed 1 --quiet
[ -f "$out/pictures/model.safetensors" ] || run "$graft" train "$out/pictures.yaml" --dtype bf16 $steps
[ -f "$out/clips/model.safetensors" ] || run "$graft" train "$out/clips.yaml" --dtype bf16 $steps
[ -f "$out/model/model.safetensors" ] || run "$graft" train "$out/verdicts.yaml" --dtype bf16 $steps
