#!/bin/bash
# Plants one fault at a time in a copy of one source, links a test program against it, and demands
# that the test turns red. A fault that no test sees is a failure, and so is one that does not apply.
# Usage: run.sh OUT_DIR; SHL_COMPILE and SHL_LINK hold the build's own commands and flags. Every eighth
# fault, from a start that is printed (SHL_MUTATION_START sets it); all of them under SHL_TEST_ALL.
out=${1:?usage: run.sh OUT_DIR}
list=$(dirname "$0")/list.txt
work=$out/mutations
mkdir -p "$work"
missed=0 n=0 at=0
start=${SHL_MUTATION_START:-$((RANDOM % 8))}
[ -n "$SHL_TEST_ALL" ] || echo "every eighth fault, from $start"
while IFS='|' read -r name file edit test; do
    case $name in '' | '#'*) continue ;; esac
    at=$((at + 1))
    [ -n "$SHL_TEST_ALL" ] || [ $((at % 8)) -eq "$start" ] || continue
    n=$((n + 1))
    mutant=$work/$(basename "$file")
    sed -e "$edit" "$file" >"$mutant"
    if cmp -s "$file" "$mutant"; then
        echo "does not apply: $name ($file)"
        missed=$((missed + 1))
        continue
    fi
    source=$(find tests -name "$test.c")
    object=$out/${source%.c}.o
    if ! $SHL_COMPILE -w -c "$mutant" -o "$work/mutant.o" ||
        ! $SHL_LINK "$object" "$work/mutant.o" "$out/libsupport.a" "$out/libshardlab.a" \
            $SHL_LIBS -o "$work/mutant"; then
        echo "does not build: $name"
        missed=$((missed + 1))
        continue
    fi
    if timeout -k 5 100 "$work/mutant" >"$work/mutant.log" 2>&1; then
        echo "NOT SEEN by $test: $name"
        missed=$((missed + 1))
    else
        echo "seen by $test: $name"
    fi
done <"$list"
rm -f "$work/mutant" "$work/mutant.o"
echo "$((n - missed)) of $n faults seen"
[ "$missed" -eq 0 ]
