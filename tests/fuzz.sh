#!/bin/sh
# Runs each fuzzing program of a build for some seconds, starting from the fixtures that its parser reads.
#   sh tests/fuzz.sh build/fuzz 60
build=$1 seconds=$2 failed=0 ran=0
seeds_of() {
    case $1 in
    safetensors) find tests/golden -name '*.safetensors' -size -64k ;;
    gguf) find tests/golden/gguf -name '*.gguf' ;;
    tokenizer) find tests/golden -name 'tokenizer.json' -size -64k ;;
    video) find tests/golden/video -type f -size -16k ! -name '*.rgb' ! -name '*.csv' ;;
    image) find tests/golden/image -type f -size -16k ;;
    jinja) find tests/golden -name '*.jinja' ;;
    rows) find tests/golden -name 'rows.json*' -size -64k ;;
    config) find tests/golden \( -name '*.json' -o -name '*.yaml' \) -size -8k ;;
    text) find tests/golden \( -name '*.json' -o -name '*.yaml' \) -size -16k ;;
    esac
}
for program in "$build"/tests/fuzz_*; do
    case $program in *.o | *.d) continue ;; esac
    name=$(basename "$program" | sed 's/^fuzz_//')
    corpus=$build/corpus/$name
    mkdir -p "$corpus"
    seeds_of "$name" | while read -r file; do cp "$file" "$corpus/$(echo "$file" | tr / _)"; done
    ran=$((ran + 1))
    if "$program" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -artifact_prefix="$corpus-" \
        "$corpus" >"$corpus.log" 2>&1; then
        printf '%-14s %s\n' "$name" "$(grep -E '^Done|stat::number' "$corpus.log" | tail -n 1)"
    else
        failed=$((failed + 1))
        printf '%-14s FAILED, see %s.log\n' "$name" "$corpus"
        grep -E 'ERROR|SUMMARY|Test unit' "$corpus.log" | head -n 4
    fi
done
echo "$((ran - failed)) passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
