#!/bin/sh
# Runs every test program of a build, and the checks of the tree, and adds up what they counted. Exit status 1 if anything failed.
#   sh tests/run.sh build/release
build=$1
passed=0 failed=0 skipped=0
log=$build/tests/log
for program in "$build"/tests/test_*; do
    case $program in *.o | *.d | *.log) continue ;; esac
    name=$(basename "$program")
    GRAFT=$build/graft "$program" >"$log" 2>&1
    status=$?
    ok=$(grep -c '^\[ *OK *\]' "$log")
    bad=$(grep -c '^\[ *FAILED *\] test_\|^\[ *FAILED *\] [a-z_0-9]*$' "$log")
    skip=$(grep -c '^\[ *SKIPPED *\] [a-z]' "$log")
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
rm -f "$log"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
