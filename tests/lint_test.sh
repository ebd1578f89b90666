#!/bin/sh
# Breaks every rule of tests/lint.sh once, in a tree of its own, and wants exactly that rule to be named.
lint=$(cd "$(dirname "$0")" && pwd)/lint.sh
tree=$(mktemp -d) || exit 1
trap 'rm -rf "$tree"' EXIT
passed=0 failed=0

# A small tree that breaks nothing, near misses included.
clean_tree() {
    rm -rf "${tree:?}"/*
    mkdir -p "$tree/base" "$tree/data" "$tree/kernels" "$tree/model" "$tree/cli" "$tree/tests"
    printf 'int f(const char *format) __attribute__((format(printf, 1, 2)));\n' >"$tree/base/text.h"
    printf '#include "base/text.h"\nint n = snprintf(s, 4, "%%d", sscanf(t, "%%9s", u) + vsnprintf(s));\n' >"$tree/base/text.c"
    printf '#include <stdlib.h>\nvoid f(void) { abort(); }\n' >"$tree/base/memory.c"
    printf '#include "base/text.h"\n#include "model/model.h"\nint main(void) { printf("x"); exit(on_exit_count); }\n' >"$tree/cli/main.c"
    printf '#include "base/text.h"\n// relative ../wo''rk/x, hub/ro''ot/y, a workplace, $HOME\n' >"$tree/model/model.h"
    printf 'CFLAGS += -O3 -ffp-contract=fast\nall:\n\techo\n' >"$tree/Makefile"
    printf 'static const char DIR[] = "/tmp/x";\n' >"$tree/tests/test_x.c"
}

# breaks RULE FILE TEXT: with a file that holds the text, lint.sh fails and names this rule and no other.
breaks() {
    clean_tree
    [ -n "$2" ] && printf "$3" >"$tree/$2"
    said=$(sh "$lint" "$tree")
    status=$?
    named=$(echo "$said" | sed -n 's/^lint: //p')
    if [ "$named" = "$1" ] && { [ -z "$1" ] || [ $status -ne 0 ]; } && { [ -n "$1" ] || [ $status -eq 0 ]; }; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "lint_test: wanted \"$1\" for $2, got (status $status):"
        echo "$said" | sed 's/^/    /'
    fi
}

against='an include against the direction of the folders'
print='printf outside cli/, tests/, bench/ and examples/'
stream='writing to stdout or stderr outside cli/, tests/, bench/, examples/ and the checks of operations and memory'
unsafe='a function that cannot fail safely'
machine='a path of one machine'

breaks '' '' ''
breaks "$against" data/x.c '#include "model/model.h"\n'
breaks "$against" base/x.c '#include "data/x.h"\n'
breaks "$against" kernels/x.c '  #  include "model/model.h"\n'
breaks "$against" model/x.c '#include "base/gone.h"\n'
breaks "$against" model/x.cu '#include "cli/flags.h"\n'
breaks 'an include that is not "folder/file.h"' base/x.c '#include "text.h"\n'
breaks 'a source file is included' tests/test_y.c '#include "base/text.c"\n'
breaks 'headers of the tree stand in quotes, not in angle brackets' model/x.c '#include <base/text.h>\n'
breaks 'exit outside cli/, tests/ and bench/' model/x.c 'void f(void) { exit(1); }\n'
breaks "$print" model/x.c 'void f(void) { printf("x"); }\n'
breaks "$print" base/x.c 'void f(void) {\n    puts("x");\n}\n'
breaks "$stream" model/x.c 'void f(void) { fprintf(stderr, "x"); }\n'
breaks 'abort outside the checks of operations and memory' data/x.c 'void f(void) { abort(); }\n'
breaks "$unsafe" data/x.c 'int f(char *s) { return atoi(s); }\n'
breaks "$unsafe" tests/x.c 'void f(char *s) { strcpy(s, s); }\n'
breaks "$unsafe" cli/x.c 'void f(char *s) { sprintf(s, s); }\n'
breaks 'scanf without a limit' data/x.c 'int f(char *s) { return sscanf(s, "%%s", s); }\n'
breaks 'a compiler flag that breaks NaN' Makefile 'CFLAGS += -O3 -ffast-math\n'
breaks 'a compiler flag that breaks NaN' tests/x.mk 'CFLAGS += -Ofast\n'
breaks 'an unfinished place' tests/x.py '# TODO: more\n'
breaks "a typedef'd struct" base/x.h 'typedef struct x x;\n'
breaks '#if CUDA outside kernels/backend.c' kernels/x.c '#ifdef CUDA\n#endif\n'
breaks 'a file name that says nothing' base/utils.c 'int x;\n'
breaks 'a file name that says nothing' model/block_v2.c 'int x;\n'
breaks 'a line wider than 120 columns' model/x.c "// $(printf '%0118d' 0)\n"
breaks '' model/x.c "// ö$(printf '%0116d' 0)\n"
breaks 'a file longer than 800 lines' model/x.c "$(printf '%0801d' 0 | sed 's/0/\\n/g')"
breaks '' model/x.c "$(printf '%0800d' 0 | sed 's/0/\\n/g')"
breaks 'a tab' model/x.c '\tint x;\n'
breaks "$machine" model/x.c '// see /wo''rk/notes\n'
breaks "$machine" data.json '{"base": "/ro''ot/model"}\n'
breaks "$machine" README.md 'cd /home/someone\n'
breaks '/tmp outside tests/' model/x.c 'const char *d = "/tmp/x";\n'

echo "lint_test: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
