#!/bin/sh
# A classifier of clips by QLoRA: which fault does a clip have?
#   sh examples/classification/run.sh [BUILD] [OUT] [short]
# BUILD holds the binaries (build/release), OUT is removed and written (build/classification), BASE in the environment
# names another base model than examples/base/model. With "short" everything is tiny and nothing is learned; the tests
# run that.
set -e
build=${1:-build/release} out=${2:-build/classification} length=$3
from=$(dirname "$0")
graft=$build/graft
. "$from/../steps.sh"
base=${BASE:-$(dirname "$from")/base/model}
if [ "$length" = short ]; then
    amounts='24 12' steps='--max_steps 2'
else
    amounts='1000 200' steps=''
fi

# measure FILE ADAPTER: accuracy, macro F1 and the F1 of each class over the held-out clips, one a line.
measure() {
    run "$graft" eval "$out/base-nf4" --adapter "$2" --data "$out/data.yaml" --split val --dtype bf16 --batch_size 16 \
        --quiet >"$out/eval.txt"
    cat "$out/eval.txt"
    awk '/accuracy +macro_f1/ { table = 1; next }
         table && $1 == "all" { printf "accuracy\t%s\nmacro F1\t%s\n%s", $2, $3, classes; exit }
         table { classes = classes "F1 of " $1 "\t" $3 "\n" }' "$out/eval.txt" >"$1"
    [ -s "$1" ]
}

began=$(date +%s)
rm -rf "$out"
mkdir -p "$out"
cp "$from"/*.yaml "$out"

say '1. Clips of moving shapes as lists of pictures, with one fault or none. No scene that is held out is trained on.'
run "$build/examples/make_classification_data" "$out/data" 1 $amounts

say '2. The base in 4 bits (NF4); frozen from here on.'
run "$graft" quantize "$base" --out "$out/base-nf4" --quiet

say '3. Before: a new head as it is.'
train "$out/config.yaml" --dtype bf16 --max_steps 1 --learning_rate 0 --head_learning_rate 0 \
    --output_dir "$out/untrained"
measure "$out/before.tsv" "$out/untrained"

say '4. Adapters and head are trained: QLoRA.'
train "$out/config.yaml" --dtype bf16 $steps

say '5. After: the same clips.'
measure "$out/after.tsv" "$out/adapter"

say '6. Clips by themselves. Labels are not read; the fault that a clip has stands at the end of its name.'
run "$graft" score "$out/base-nf4" --adapter "$out/adapter" --data "$out/data.yaml" --split val \
    --csv "$out/scores.csv" --dtype bf16 --quiet >/dev/null
head -n 4 "$out/scores.csv"

say 'What it learned'
printf '  %-12s %8s %8s\n' '' before after
paste "$out/before.tsv" "$out/after.tsv" |
    awk -F'\t' '{ printf "  %-12s %8s %8s\n", $1, $2, $4 }'
printf '\n  adapter   %s (PEFT layout)\n  report    %s\n  scores    %s\n  time      %s s\n' \
    "$out/adapter" "$out/adapter/report.html" "$out/scores.csv" $(($(date +%s) - began))
