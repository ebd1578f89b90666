#!/bin/sh
# A video-quality scorer by QLoRA, from clips with scores to numbers for clips that nobody has scored.
#   sh examples/video/run.sh [BUILD] [OUT] [short]
# BUILD holds the binaries (build/release), OUT is removed and written (build/demo), BASE in the environment names
# another base model than examples/base/model. With "short" everything is tiny and nothing is learned; the tests run
# that.
set -e
build=${1:-build/release} out=${2:-build/demo} length=$3
from=$(dirname "$0")
graft=$build/graft
. "$from/../steps.sh"
base=${BASE:-$(dirname "$from")/base/model}
if [ "$length" = short ]; then
    amounts='24 12' steps='--max_steps 2'
else
    amounts='2400 300' steps=''
fi

# measure FILE MODEL [--adapter DIR]: Spearman's correlation with the scores of the held-out clips, one label a line.
measure() {
    file=$1 model=$2
    shift 2
    "$graft" eval "$model" --data "$out/data.yaml" --split val --dtype bf16 --batch_size 16 --quiet "$@" |
        awk '/spearman +kendall/ { table = 1; next }
             /^ *$/ { table = 0 }
             table && NF > 6 { name = $1; for (i = 2; i <= NF - 6; i++) name = name " " $i
                               printf "%s\t%s\n", name, $(NF - 5) }
             table && NF == 7 { exit }' >"$file"
    [ -s "$file" ]
}

mean() { awk -F'\t' '$1 == "all" { print $2 }' "$1"; }

began=$(date +%s)
rm -rf "$out"
mkdir -p "$out"
cp "$from"/*.yaml "$out"

say '1. Clips of moving shapes, each with five scores. No scene that is held out is trained on.'
run "$build/examples/make_video_data" "$out/data" 1 $amounts

say '2. The base in 4 bits (NF4); frozen from here on. It was trained to answer questions about such clips
   (examples/base); it has never seen a score.'
run "$graft" quantize "$base" --out "$out/base-nf4" --quiet

say '3. Without adapters: a new head as it is, then the best head on the frozen features (a linear probe).'
train "$out/config.yaml" --dtype bf16 --max_steps 1 --learning_rate 0 --head_learning_rate 0 \
    --output_dir "$out/untrained"
measure "$out/untrained.tsv" "$out/base-nf4" --adapter "$out/untrained"
train "$out/config.yaml" --dtype bf16 $steps --output_dir "$out/probe" --model_name_or_path "$base" \
    --finetuning_type full --freeze '(?!score).*'
measure "$out/probe.tsv" "$out/probe"

say '4. Adapters and head are trained: QLoRA.'
train "$out/config.yaml" --dtype bf16 $steps
[ -f "$out/adapter/adapter_model.safetensors" ]
measure "$out/adapter.tsv" "$out/base-nf4" --adapter "$out/adapter"
in_training=$(sed -n 's/.*"eval_spearman": *\([-0-9.e]*\).*/\1/p' "$out/adapter/log.jsonl" | sort -g | tail -n 1)
echo "mean Spearman in training $(printf %.4f "$in_training"), of the adapter loaded again $(mean "$out/adapter.tsv")"

say '5. Clips that nobody has scored, with what was said about them, as from a spreadsheet.'
run "$graft" score "$out/base-nf4" --adapter "$out/adapter" --video "$out/data/val" --prompts "$out/data/val.csv" \
    --prompt_file "$from/prompt.txt" --num_frames 0 --csv "$out/scores.csv" --dtype bf16 --quiet >/dev/null
head -n 4 "$out/scores.csv"

say 'What it learned: Spearman correlation with the scores of held-out clips'
printf '  %-26s %10s %13s %8s\n' '' 'new head' 'linear probe' QLoRA
paste "$out/untrained.tsv" "$out/probe.tsv" "$out/adapter.tsv" |
    awk -F'\t' '$1 != "all" { printf "  %-26s %10s %13s %8s\n", $1, $2, $4, $6 }'
printf '  %-26s %10s %13s %8s\n' mean \
    "$(mean "$out/untrained.tsv")" "$(mean "$out/probe.tsv")" "$(mean "$out/adapter.tsv")"
printf '\n  adapter   %s (PEFT layout)\n  report    %s\n  scores    %s\n  time      %s s\n' \
    "$out/adapter" "$out/adapter/report.html" "$out/scores.csv" $(($(date +%s) - began))
