#!/bin/sh
# All checks of the sources. usage: lint.sh archive source... (the Makefile calls it from the root)
[ $# -ge 2 ] && [ -f "$1" ] || { echo 'usage: lint.sh archive source... (make lint)' >&2; exit 2; }
lib=$1
shift
here=tests/lint
failed=0

check() { # name command...
    name=$1
    shift
    if out=$("$@" 2>&1); then
        case $out in skipped*) echo "lint  $name: $out" ;; *) echo "lint  $name: ok" ;; esac
    else
        echo "lint  $name: FAILED"
        printf '%s\n' "$out" | head -n 60
        failed=$((failed + 1))
    fi
}

# Every external symbol starts with shl_.
symbols() {
    ! nm -g --defined-only "$lib" | awk 'NF == 3 && $3 !~ /^shl_/ { print "symbol " $3 }' | grep .
}

# No writable globals but the heap's counters, the log's levels and the lock around HDF5; bench may
# keep its own.
globals() {
    ! for f in "$@"; do echo "$f"; done | awk '
        /^(bench\/.*|kernels\/base\/(heap|log)|checkpoints\/h5)\.c$/ {
            sub(".*/", ""); sub("c$", "o:"); allowed[$0] = 1
        }
        /file format/ { object = $1 }
        / O \.(data|bss)[ \t]/ && !(object in allowed) { print "writable " $NF " in " object }
        ' - "$lib.symbols" | grep .
}

# cppcheck does not know vector types: a vector filled by elements looks uninitialised to it;
# nor that a sum over at least one exponential is positive.
cppcheck_all() {
    command -v cppcheck >/dev/null || { echo 'skipped, cppcheck is not installed' && return 0; }
    for f in "$@"; do case $f in tests/*) ;; *.c) echo "$f" ;; esac; done |
        cppcheck --file-list=- --std=c11 --enable=warning,performance,portability --quiet -j 2 \
            --inline-suppr --error-exitcode=1 --template=gcc -I. -D_GNU_SOURCE -DSHL_ISA=base \
            -D__x86_64__=1 -DSHL_HAVE_X86_ISA=1 --suppress=missingIncludeSystem \
            --suppress=invalidPointerCast --suppress=uninitvar:kernels/cpu/cpu_simd.h \
            --suppress=invalidFunctionArg:kernels/ops/op_reference.c
}

check itself sh $here/selftest.sh "$(dirname "$lib")/lint-selftest"
check layers awk -f $here/layers.awk $here/layers.txt "$@"
check bans awk -f $here/strip.awk -f $here/bans.awk "$@"
check shape awk -f $here/shape.awk "$@"
check symbols symbols
objdump -t "$lib" >"$lib.symbols"
check globals globals "$@"
check format "${MAKE:-make}" --no-print-directory -s format-check
check clang "${MAKE:-make}" --no-print-directory -s syntax-clang
check cppcheck cppcheck_all "$@"
[ $failed -eq 0 ]
