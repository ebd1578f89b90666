#!/bin/sh
# What ptxas said of the hot kernels against tests/ptxas.txt, for every architecture that a build holds. A line for each
# kernel that takes more than it may, and for each row of the table that no kernel answers to; the last line counts.
# Exit status 1 if there is one, 77 if the build has no kernels of nvcc.
#   sh tests/ptxas.sh BUILD
build=${1:?usage: ptxas.sh BUILD}
if [ ! -f "$build/cuda-1" ] || [ -d "$build/tests/cudasim" ]; then
    echo 'this build has no kernels of nvcc'
    exit 77
fi
found=$build/kernels/cuda
for object in "$found"/*.o; do
    [ -f "${object%.o}.ptxas" ] && continue
    echo "ptxas: $object has no ${object%.o}.ptxas beside it; remove it and build again"
    exit 1
done

# file, kernel without blanks and arguments, architecture, registers, bytes of local memory (the stack frame, or the
# spills, whichever are more)
for file in "$found"/*.ptxas; do
    c++filt <"$file" | awk -v file="$(basename "$file" .ptxas)" '
        /Compiling entry function/ {
            name = arch = $0
            bytes = 0
            sub(/.*entry function ./, "", name)
            sub(/. for .sm_[0-9a-z]*.$/, "", name)
            sub(/.*. for ./, "", arch)
            sub(/.$/, "", arch)
            sub(/^void /, "", name)
            gsub(/ /, "", name)
            end = index(name, "(")
            angle = index(name, "<")
            if (angle && angle < end) end = index(name, ">(") + 1
            name = substr(name, 1, end - 1)
        }
        /bytes stack frame/ { for (i = 1; i <= 9; i += 4) if ($i + 0 > bytes) bytes = $i + 0 }
        / Used [0-9]+ registers/ {
            registers = $0
            sub(/.* Used /, "", registers)
            print file, name, arch, registers + 0, bytes + 0
        }'
done | awk '
    NR == FNR && (/^#/ || !NF) { next }
    NR == FNR {
        if (NF != 4 && NF != 5) { print "ptxas: a row of the table is not understood: " $0; bad++; next }
        rows++
        file[rows] = $1; kernel[rows] = $2; most[rows] = $3; local[rows] = $4; only[rows] = $5
        next
    }
    {
        archs[$3]
        fits = 0
        for (i = 1; i <= rows; i++) {
            if (only[i] != "" && only[i] != $3) continue
            if ($1 != file[i] || $2 !~ ("^(" kernel[i] ")$")) continue
            seen[i, $3]
            if (fits++) continue
            judged++
            where = "ptxas: " $1 ".cu: " $2 ", " $3 ": "
            if ($4 > most[i]) { print where $4 " registers, " most[i] " allowed"; bad++ }
            if ($5 > local[i]) { print where $5 " bytes of local memory, " local[i] " allowed"; bad++ }
        }
    }
    END {
        for (i = 1; i <= rows; i++)
            for (a in archs)
                if ((only[i] == "" || only[i] == a) && !((i, a) in seen)) {
                    print "ptxas: " file[i] ".cu: no kernel " kernel[i] " for " a
                    bad++
                }
        n = 0
        for (a in archs) n++
        print judged + 0 " kernels for " n " architectures, " bad + 0 " against the table"
        exit bad > 0 || judged == 0
    }' "$(dirname "$0")/ptxas.txt" -
