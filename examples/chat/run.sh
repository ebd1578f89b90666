#!/bin/sh
# Multi-image chat with QLoRA, from nothing to a scored adapter.
#   sh examples/chat/run.sh [BUILD] [OUT] [short]
# BUILD holds the binaries (build/release), OUT is removed and written (build/chat), BASE in the environment names
# another base model than examples/base/model. With "short" everything is tiny and nothing is learned; the tests run
# that.
set -e
build=${1:-build/release} out=${2:-build/chat} length=$3
from=$(dirname "$0")
graft=$build/graft
. "$from/../steps.sh"
base=${BASE:-$(dirname "$from")/base/model}
tab=$(printf '\t')
if [ "$length" = short ]; then
    amounts='60 60 20' steps='--max_steps 2 --eval_steps 1' ask=4
else
    amounts='2000 4000 100' steps='' ask=100
fi

# answer PICTURES QUESTION [--adapter DIR]: the greedy answer of the 4-bit base, on one line.
answer() {
    images='' question=$2
    for picture in $1; do images="$images --image $out/data/$picture"; done
    shift 2
    "$graft" generate "$out/base-nf4" "$@" $images --prompt "$question" --max_new_tokens 48 --dtype bf16 --quiet \
        </dev/null | tr '\n' ' ' | sed 's/ *$//'
}

# score FILE [--adapter DIR]: asks the held-out questions and writes pictures, question, wanted and given answer.
score() {
    file=$1
    shift
    head -n $ask "$out/data/val.tsv" | while IFS=$tab read -r pictures question wanted; do
        given=$(answer "$pictures" "$question" "$@")
        printf '%s\t%s\t%s\t%s\n' "$pictures" "$question" "$wanted" "$given"
    done >"$file"
}

right() { awk -F'\t' '$3 == $4' "$1" | wc -l; }

loss() {
    "$graft" eval "$out/base-nf4" --data "$out/data.yaml" --batch_size 10 --dtype bf16 --quiet "$@" |
        sed -n 's/^loss *//p'
}

began=$(date +%s)
rm -rf "$out"
mkdir -p "$out"
cp "$from"/*.yaml "$out"

say '1. Pictures of coloured shapes, and questions about two or three of them.'
run "$build/examples/make_chat_data" "$out/data" 1 $amounts

say '2. The base in 4 bits (NF4); frozen from here on. It has learned to describe single pictures and clips
   (examples/base), and never seen these questions.'
run "$graft" quantize "$base" --out "$out/base-nf4" --quiet

say "3. Before: the val loss, and $ask questions about pictures that no training row has."
before=$(loss)
[ -n "$before" ]
score "$out/before.tsv"
echo "val loss $before, $(right "$out/before.tsv") of $ask answers right"

say '4. An adapter is trained on the questions.'
train "$out/config.yaml" --dtype bf16 $steps
[ -f "$out/adapter/adapter_model.safetensors" ]

say '5. After: the same with the adapter.'
after=$(loss --adapter "$out/adapter")
[ -n "$after" ]
score "$out/after.tsv" --adapter "$out/adapter"
echo "val loss $after, $(right "$out/after.tsv") of $ask answers right"

# The first question that is answered rightly now; a short run may have none.
line=$(awk -F'\t' '$3 == $4 { print NR; exit }' "$out/after.tsv")
column() { sed -n "${line:-1}p" "$1" | cut -f "$2"; }
say 'What it learned'
printf '  %-26s %12s %12s\n' '' before after \
    'val loss' "$before" "$after" \
    "right answers of $ask" "$(right "$out/before.tsv")" "$(right "$out/after.tsv")"
printf '\n  pictures  %s (in %s)\n  question  %s\n  before    %s\n  after     %s\n' \
    "$(column "$out/after.tsv" 1)" "$out/data" "$(column "$out/after.tsv" 2)" \
    "$(column "$out/before.tsv" 4)" "$(column "$out/after.tsv" 4)"
printf '\n  adapter   %s (PEFT layout)\n  report    %s\n  answers   %s, %s\n  time      %s s\n' \
    "$out/adapter" "$out/adapter/report.html" "$out/before.tsv" "$out/after.tsv" $(($(date +%s) - began))
