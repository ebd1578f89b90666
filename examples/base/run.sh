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
    amounts='40 8' steps='--max_steps 2 --eval_steps 1'
else
    amounts='12000 300' steps=''
fi

mkdir -p "$out"
cp "$from"/*.yaml "$out"
[ -f "$out/data/val.json" ] || run "$build/examples/make_base_data" "$out/data" 1 $amounts
[ -f "$out/start/config.json" ] || run "$graft" init idefics2-clips --out "$out/start" --seed 1 --quiet
run "$graft" train "$out/config.yaml" --dtype bf16 $steps
