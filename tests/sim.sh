#!/bin/sh
# What touches a device, in the simulator of tests/cudasim: the programs that test operations, layers and trainings, in
# three orders of threads where memory is checked (build/sim) and in one where races are (build/race); trainings that
# must write the same bytes in every order; and some of it on a device of compute capability 7.5. One line for each run;
# the last line counts. Exit status 1 if anything failed.
#   sh tests/sim.sh build/sim build/race
programs='test_backend test_ops test_gemm test_attention test_linear test_weights test_device'
own="test_cudasim test_cudasim_instructions test_graphs" # orders make no difference to these, or they set them
configs='lora nf4-lora mllava-lora'

# one FLAVOUR ORDER PROGRAM [CAPABILITY TESTS]: leaves its counts in $logs. TESTS: a pattern of names, `*` for all.
one() {
    name=$(basename "$1").$3.$(echo "$2" | tr -d :)$4
    log=$logs/$name.log
    begin=$(date +%s)
    GRAFT=$1/graft GRAFT_SIM_ORDER=$2 GRAFT_SIM_CAPABILITY=${4:-8.0} GRAFT_TEST_ONLY=${5:-*} GRAFT_TEST_DEVICE=cuda \
        "$1/tests/$3" >"$log" 2>&1
    status=$?
    ok=$(grep -c '^\[ *OK *\]' "$log")
    bad=$(sed -n 's/^\[ *FAILED *\] \([0-9]*\) test(s).*/\1/p' "$log")
    bad=${bad:-0}
    [ $status -ne 0 ] && [ "$bad" -eq 0 ] && bad=1
    echo "$ok $bad 0" >"$logs/$name.count" # what a program skips here is the CPU's part, which the release build runs
    said=
    [ $status -ne 0 ] && said=", FAILED (status $status)"
    printf '%-28s %4d passed%s (%s, %s, %d s)\n' "$3" "$ok" "$said" "$(basename "$1")" \
        "$2${4:+, compute capability $4}" $(($(date +%s) - begin))
    [ $status -eq 0 ] || grep -v '^\[ *\(OK\|RUN\) *\]' "$log" | tail -n 40
}

# trainings FLAVOUR ORDER CONFIG: the same steps in the order and forward give the same bytes.
trainings() {
    name=$(basename "$1").$3.$(echo "$2" | tr -d :)
    log=$logs/$name.log
    for order in forward "$2"; do
        out=$logs/$name-$(echo "$order" | tr -d :)
        GRAFT_SIM_ORDER=$order "$1/graft" train "tests/golden/models/$3/config.yaml" --quiet --device cuda \
            --dtype bf16 --max_steps 2 --output_dir "$out" >"$log" 2>&1 || break
    done
    if cmp "$logs/$name-forward/adapter_model.safetensors" "$out/adapter_model.safetensors" >>"$log" 2>&1; then
        echo '1 0 0' >"$logs/$name.count"
        echo "training of $3 gives the same bytes forward and $2"
    else
        echo '0 1 0' >"$logs/$name.count"
        echo "training of $3, $2: FAILED"
        tail -n 40 "$log"
    fi
}

# capabilities FLAVOUR CONFIG: a step in bf16 on devices of 7.5 and 8.0 gives the same loss but for rounding.
capabilities() {
    name=$(basename "$1").$2.capabilities
    log=$logs/$name.log
    for capability in 7.5 8.0; do
        GRAFT_SIM_CAPABILITY=$capability "$1/graft" train "tests/golden/models/$2/config.yaml" --quiet --device cuda \
            --dtype bf16 --max_steps 1 --output_dir "$logs/$name-$capability" >>"$log" 2>&1 &&
            sed -n 's/.*"loss": *\([0-9.e+-]*\).*/\1/p' "$logs/$name-$capability/log.jsonl" >>"$logs/$name.losses"
    done
    if awk '{ loss[NR] = $1 } END { d = loss[1] - loss[2]; exit !(NR == 2 && d * d <= 1e-6 * loss[2] * loss[2]) }' \
        "$logs/$name.losses"; then
        echo '1 0 0' >"$logs/$name.count"
        echo "training of $2 gives the same loss with compute capability 7.5 and 8.0"
    else
        echo '0 1 0' >"$logs/$name.count"
        echo "training of $2 with compute capability 7.5: FAILED"
        tail -n 40 "$log" "$logs/$name.losses"
    fi
}

if [ -n "$SIM_LOGS" ]; then # one of the jobs below
    logs=$SIM_LOGS
    "$@"
    exit 0
fi

sim=$1 race=$2
logs=$(mktemp -d) || exit 1
trap 'rm -rf "$logs"' EXIT
jobs() {
    for program in $programs; do
        for order in forward reverse shuffle:1; do echo "one $sim $order $program"; done
        echo "one $race forward $program"
    done
    for program in $own; do
        echo "one $sim forward $program"
        echo "one $race forward $program"
    done
    for config in $configs; do
        echo "trainings $sim reverse $config"
        echo "trainings $sim shuffle:1 $config"
    done
    echo "one $race forward test_ops 7.5"
    echo "one $race forward test_gemm 7.5 test_ma*"
    echo "one $race forward test_attention 7.5 test_attention_shapes_of_heads"
    echo "capabilities $race lora"
}
wanted=$(jobs | wc -l)
jobs | SIM_LOGS=$logs xargs -P "$(nproc)" -L 1 sh "$0"
ended=$(ls "$logs" | grep -c '\.count$')
echo "0 $((wanted - ended)) 0" >"$logs/missing.count"
cat "$logs"/*.count | awk '{ ok += $1; bad += $2; skip += $3 }
    END { printf "%d passed, %d failed, %d skipped\n", ok, bad, skip; exit !(ok > 0 && bad == 0) }'
