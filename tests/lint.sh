#!/bin/sh
# What the tree must look like, as far as grep can tell. One line for each rule that is broken, with the places; the last
# line counts. Exit status 1 if a rule is broken. tests/lint_test.sh breaks each of them once.
#   sh tests/lint.sh [ROOT]
cd "${1:-.}" || exit 1
export LC_ALL=C.UTF-8
held=0 broken=0

# Files of the tree by name pattern, without what is built or generated.
files() {
    for pattern in "$@"; do
        find . -type d \( -name build -o -name .git -o -path ./tests/golden/models \) -prune -o -type f -name "$pattern" -print
    done | sed 's|^\./||' | sort
}

# Prints the lines of the files on stdin that match an extended regular expression, as file:line:text.
matches() { xargs -r grep -HnE -e "$1" 2>/dev/null; }

# rule NAME PLACES: the places break it; none, and it holds.
rule() {
    if [ -z "$2" ]; then
        held=$((held + 1))
        return
    fi
    broken=$((broken + 1))
    echo "lint: $1"
    echo "$2" | head -n 20 | sed 's/^/    /'
}

without() { grep -vE "^($1)" || true; }

sources=$(files '*.c' '*.h' '*.cu' '*.cuh')
texts=$(files '*.c' '*.h' '*.cu' '*.cuh' '*.py' '*.sh' Makefile '*.mk' | without 'tests/lint(_test)?\.sh$')

# ---------------------------------------------------------------- includes

# base <- quant <- kernels <- model <- lora <- cli and base <- data <- lora <- cli
may_include() {
    case $1 in
        base) echo base ;;
        quant) echo base quant ;;
        kernels) echo base quant kernels ;;
        model) echo base quant kernels model ;;
        data) echo base data ;;
        lora) echo base quant kernels model data lora ;;
        cli) echo base quant kernels model data lora cli ;;
        bench) echo base quant kernels model data lora cli bench ;;
        tests) echo base quant kernels model data lora cli tests ;;
        examples) echo base examples ;;
    esac
}

# file:line:#include "header" on stdin -> what is wrong with it
judge_includes() {
    while IFS=: read -r file line text; do
        header=$(echo "$text" | sed 's/^[^"]*"\([^"]*\)".*/\1/')
        case " $(may_include "${file%%/*}") " in
            *" ${header%%/*} "*) [ -f "$header" ] || echo "$file:$line: $header does not exist" ;;
            *) echo "$file:$line: ${file%%/*} may not include $header" ;;
        esac
    done
}

quoted=$(echo "$sources" | matches '^[[:space:]]*#[[:space:]]*include[[:space:]]*"')
folded=$(echo "$quoted" | grep '"[^"]*/[^"]*"')
rule 'an include that is not "folder/file.h"' "$(echo "$quoted" | grep -v '"[^"]*/[^"]*"' | grep .)"
rule 'an include against the direction of the folders' "$(echo "$folded" | grep . | judge_includes)"
rule 'a source file is included' "$(echo "$quoted" | grep -E '\.(c|cu)"')"
rule 'headers of the tree stand in quotes, not in angle brackets' \
    "$(echo "$sources" | matches '#[[:space:]]*include[[:space:]]*<(base|quant|kernels|model|data|lora|cli|tests)/')"

# ---------------------------------------------------------------- what must never appear

# calls FUNCTIONS ELSEWHERE: calls of one of the functions outside the folders and files of the second expression.
calls() { echo "$sources" | without "$2" | matches "(^|[^A-Za-z0-9_>.])($1)[[:space:]]*\\("; }

aborters='base/(memory|arena|tensor)\.c|kernels/ops\.c'
rule 'exit outside cli/, tests/ and bench/' "$(calls 'exit|_exit|_Exit|quick_exit' 'cli/|tests/|bench/')"
rule 'printf outside cli/, tests/, bench/ and examples/' \
    "$(calls 'printf|vprintf|puts|putchar|perror' 'cli/|tests/|bench/|examples/')"
rule 'writing to stdout or stderr outside cli/, tests/, bench/, examples/ and the checks of operations and memory' \
    "$(echo "$sources" | without "cli/|tests/|bench/|examples/|$aborters" |
        matches '(fprintf|fputs|fwrite|fputc|vfprintf)[[:space:]]*\(.*(stderr|stdout)')"
rule 'abort outside the checks of operations and memory' "$(calls 'abort|assert' "tests/|$aborters")"
rule 'a function that cannot fail safely' \
    "$(calls 'atoi|atol|atoll|atof|strcpy|stpcpy|strcat|sprintf|vsprintf|gets|strtok' '-')"
rule 'scanf without a limit' "$(echo "$sources" | matches 'scanf[[:space:]]*\(.*%(\[|s)')"
rule 'a compiler flag that breaks NaN' "$(files Makefile '*.mk' '*.sh' | without 'tests/lint(_test)?\.sh$' |
    matches '(-ffast-math|-Ofast|-use_fast_math)')"
rule 'an unfinished place' "$(echo "$texts" | matches '(^|[^A-Za-z_])(TODO|FIXME|XXX|HACK)([^A-Za-z_]|$)')"
rule "a typedef'd struct" "$(echo "$sources" | matches 'typedef[[:space:]]+(struct|union|enum)')"
rule '#if CUDA outside kernels/backend.c' \
    "$(echo "$sources" | without 'kernels/backend\.c' | matches '#[[:space:]]*if.*[^A-Za-z_]CUDA([^A-Za-z_]|$)')"
rule 'a file name that says nothing' \
    "$(echo "$sources" | grep -E '(^|/)(utils?|helpers?|misc)\.|_(v[0-9]+|new|old)\.')"

# ---------------------------------------------------------------- size

long_files() {
    while read -r file; do
        lines=$(wc -l <"$file")
        [ "$lines" -gt 800 ] && echo "$file: $lines lines"
    done
}

rule 'a file longer than 800 lines' "$(echo "$texts" | grep . | long_files)"
wrapped=$(echo "$texts" | without '(tests/golden|bench)/[^.]*\.py$') # data and tables in Python may be wide
rule 'a line wider than 120 columns' "$(echo "$wrapped" | matches '^.{121}' | cut -c1-100)"
rule 'a tab' "$(echo "$texts" | without '(.*/)?Makefile$|.*\.mk$' | matches "$(printf '\t')")"

# ---------------------------------------------------------------- paths of somebody's machine

everything=$(find . -type d \( -name build -o -name .git \) -prune -o -type f -print | sed 's|^\./||' |
    without 'tests/lint(_test)?\.sh$')
before='(^|[^A-Za-z0-9_.~$}/*-])'
after='(/|[^A-Za-z0-9_/]|$)'
named() { tr '\n' '\0' | xargs -0 -r grep -IHnE -e "$1" | cut -c1-160; }
rule 'a path of one machine' "$(echo "$everything" | named "$before/(work|root|home)$after")"
rule '/tmp outside tests/' "$(echo "$everything" | without 'tests/' | named "$before/tmp$after")"

echo "$held rules hold, $broken broken"
[ "$broken" -eq 0 ]
