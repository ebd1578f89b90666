#!/bin/sh
# Runs every test program of a build, and the checks of the tree, and adds up what they counted; and with two more
# builds what they run in the simulator (sim.sh). Exit status 1 if anything failed.
#   sh tests/run.sh build/release [build/sim build/race]
build=$1 sim=$2 race=$3
export CUDA_VISIBLE_DEVICES= # the same tests on every machine; make gpu-check is for its GPU
passed=0 failed=0 skipped=0
log=$build/tests/log
for program in "$build"/tests/test_*; do
    case $program in *.o | *.d | *.log) continue ;; esac
    name=$(basename "$program")
    GRAFT=$build/graft "$program" >"$log" 2>&1
    status=$?
    ok=$(grep -c '^\[ *OK *\]' "$log")
    bad=$(sed -n 's/^\[ *FAILED *\] \([0-9]*\) test(s).*/\1/p' "$log")
    bad=${bad:-0} # no summary when the program crashed
    skip=$(sed -n 's/^\[ *SKIPPED *\] \([0-9]*\) test(s).*/\1/p' "$log")
    skip=${skip:-0}
    [ $status -ne 0 ] && [ "$bad" -eq 0 ] && bad=1
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
    printf '%-28s %4d passed' "$name" "$ok"
    [ "$skip" -ne 0 ] && printf ', %d skipped' "$skip"
    if [ $status -ne 0 ]; then
        printf ', FAILED (status %d)\n' $status
        grep -v '^\[ *\(OK\|RUN\) *\]' "$log" | tail -n 60
    else
        printf '\n'
    fi
done
if [ -n "$sim" ]; then
    sh tests/sim.sh "$sim" "$race" | tee "$log"
    counts=$(sed -n '$s/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$log")
    set -- ${counts:-0 1 0}
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
fi
rm -f "$log"
for check in lint lint_test "ptxas $build"; do # each check counts as one test; 77 is a skip
    # shellcheck disable=SC2086
    set -- $check
    name=$1.sh
    shift
    said=$(sh "tests/$name" "$@" 2>&1)
    status=$?
    if [ $status -eq 0 ]; then
        passed=$((passed + 1))
        printf '%-28s %4d passed (%s)\n' "$name" 1 "$(echo "$said" | tail -n 1)"
    elif [ $status -eq 77 ]; then
        skipped=$((skipped + 1))
        printf '%-28s %4d passed, 1 skipped (%s)\n' "$name" 0 "$said"
    else
        failed=$((failed + 1))
        printf '%-28s FAILED\n%s\n' "$name" "$said"
    fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
