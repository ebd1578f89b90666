# What the scripts of the examples share; they set $graft.

say() { printf '\n%s\n' "$*"; }

# Prints a command as one could type it, then runs it.
run() {
    printf '$ %s\n' "$*"
    "$@"
}

# A training prints a line a step; here only the scores of the val split and what went wrong are shown.
train() {
    printf '$ %s\n' "$graft train $*"
    { "$graft" train "$@" 2>&1 >/dev/null || echo "graft: the training failed"; } |
        sed -un '/^val/p; /^graft/p'
}
