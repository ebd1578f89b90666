#!/bin/sh
# What a machine with a GPU can check and no other: every op on the device, whole trainings there beside the CPU and
# beside the fixtures, the device's memory, two runs with one hash, then the benchmark. Ends at the first failure; a
# machine without a usable GPU is one.
#   sh tests/gpu-check.sh BUILD
build=$1
export GRAFT="$build/graft" GRAFT_DEVICE=cuda GRAFT_TEST_DEVICE=cuda
log=$build/gpu-check.log
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT

fail() {
    echo "gpu-check: $*" >&2
    exit 1
}

# step NAME COMMAND...: its last lines are shown when it fails.
step() {
    name=$1
    shift
    begin=$(date +%s)
    if "$@" >"$log" 2>&1; then
        printf '%-44s passed, %d s\n' "$name" $(($(date +%s) - begin))
    else
        grep -v '^\[ *\(OK\|RUN\) *\]' "$log" | tail -n 60
        fail "$name failed"
    fi
}

"$GRAFT" doctor | sed -n '/^gpu/,/^libraries/{/^libraries/!p}'
"$GRAFT" doctor --device cuda --json >"$folder/doctor.json" || fail 'graft doctor failed'
grep -q 'compute capability' "$folder/doctor.json" || fail 'there is no GPU that this graft can use'

# Programs of cmocka are there when they could be built; the trainings below need none.
for test in test_backend test_ops test_gemm test_linear test_attention test_weights test_device test_golden; do
    [ -x "$build/tests/$test" ] || continue
    step "$test" "$build/tests/$test"
    grep -q '^\[ *SKIPPED *\] [a-z]' "$log" && fail "$test skipped something"
done
# What happens inside of a kernel of cuBLAS is not ours to judge; what it is given is, by memcheck. Children of a test
# program are there to abort.
sanitizer=$(command -v compute-sanitizer || command -v /usr/local/cuda/bin/compute-sanitizer)
if [ -n "$sanitizer" ]; then
    for tool in memcheck racecheck initcheck synccheck; do
        theirs='regex=.*(cublas|cutlass|nvjet|gemm|splitK).*'
        [ $tool = memcheck ] && theirs=
        for test in test_backend test_ops test_attention test_gemm; do
            [ -x "$build/tests/$test" ] || continue
            step "compute-sanitizer $tool, $test" "$sanitizer" --tool $tool --error-exitcode 1 \
                --target-processes application-only ${theirs:+--kernel-name-exclude "$theirs"} "$build/tests/$test"
        done
    done
else
    echo 'compute-sanitizer is not there; its checks are left out'
fi

# train OUT DEVICE DTYPE FLAGS...: a fixture's training into the folder.
train() {
    out=$1 device=$2 dtype=$3
    shift 3
    "$GRAFT" train "$config" --quiet --device "$device" --dtype "$dtype" --output_dir "$folder/$out" "$@"
}

# The first and last losses of two logs, to a part of themselves.
near() {
    for which in 1 '$'; do
        a=$(grep -o '"loss": *[0-9.e+-]*' "$folder/$1/log.jsonl" | sed -n "${which}s/.*: *//p")
        b=$(grep -o '"loss": *[0-9.e+-]*' "$folder/$2/log.jsonl" | sed -n "${which}s/.*: *//p")
        echo "$a $b" | awk -v rel="$3" '{ d = $1 - $2; if (d < 0) d = -d; exit !(NF == 2 && d <= rel * $1) }' ||
            { echo "losses of $1 and $2: $a and $b"; return 1; }
    done
}

same() { cmp "$folder/$1/adapter_model.safetensors" "$folder/$2/adapter_model.safetensors"; }

models=tests/golden/models
for name in lora nf4-lora fp4-lora dora rslora bias-all saved-modules qwen2-heads mllava-lora; do
    config=$models/$name/config.yaml
    [ -f "$config" ] || continue
    step "$name: trained on the CPU" train "$name-cpu" cpu f32
    step "$name: trained on the GPU" train "$name-gpu" cuda f32
    step "$name: the same losses" near "$name-cpu" "$name-gpu" 1e-4
    step "$name: trained in bf16" train "$name-bf16" cuda bf16
    step "$name: losses near those of f32" near "$name-cpu" "$name-bf16" 2e-2
    step "$name: trained in bf16 again" train "$name-again" cuda bf16
    step "$name: the same bytes" same "$name-bf16" "$name-again"
    export CUDA_LAUNCH_BLOCKING=1
    step "$name: trained in bf16 call by call" train "$name-calls" cuda bf16
    unset CUDA_LAUNCH_BLOCKING
    step "$name: without graphs the same bytes" same "$name-bf16" "$name-calls"
done

if [ -x "$build/bench/gpu" ]; then
    "$build/bench/gpu" || fail 'the benchmark failed'
else
    echo 'bench/gpu is not built; there are no figures'
fi
echo 'gpu-check: all passed'
