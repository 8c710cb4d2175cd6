#!/bin/bash
# Runs test programs, SHL_TEST_JOBS side by side (default: one per core, two at most), then one after
# another those that watch the clock (SHL_TEST_ALONE: words in their names). A line with seconds for
# each, the output of those that fail, and a closing line alone. Exit 77 of a program means skipped.
# SHL_TEST_TIMEOUT is in seconds.
out=${SHL_TEST_OUT:-build/test-out}
cores=$(nproc 2>/dev/null || echo 1)
jobs=${SHL_TEST_JOBS:-$((cores < 2 ? 1 : 2))}
alone=${SHL_TEST_ALONE-overlap comm_processes comm_faults failures speed}
mkdir -p "$out"
export OMP_WAIT_POLICY=passive CMOCKA_MESSAGE_OUTPUT=stdout

# The head of a sanitizer's report, or the end of what the program said.
show() {
    if grep -q -E 'Sanitizer|runtime error:' "$1"; then
        grep -m 1 -A 45 -E 'Sanitizer|runtime error:' "$1"
    else
        grep -v -e '\[       OK \]' -e '\[ RUN      \]' "$1" | tail -n 60
    fi
}

# Runs one program; its report is printed at once and whole, its result lies in $out/NAME.rc.
run() {
    local program=$1 name log start rc ms word
    name=$(basename "$program")
    log=$out/$name.log
    start=$(date +%s%N)
    timeout -k 5 "${SHL_TEST_TIMEOUT:-120}" "$program" >"$log" 2>&1 </dev/null
    rc=$?
    ms=$((($(date +%s%N) - start) / 1000000))
    case $rc in
    0) word=ok ;;
    77) word=skipped ;;
    124 | 137) word=TIMEOUT ;;
    *) word="FAILED($rc)" ;;
    esac
    echo "$rc" >"$out/$name.rc"
    printf '%-12s %-36s %4d.%02d s\n%s' "$word" "$name" $((ms / 1000)) $((ms % 1000 / 10)) "$(
        case $rc in
        0) ;;
        77) tail -n 3 "$log" | sed 's/^/    /' && echo . ;;
        *) show "$log" | sed 's/^/    /' && echo . ;;
        esac
    )" | sed '$ { /^\.$/ d }'
}

is_alone() {
    local word
    for word in $alone; do
        [[ $(basename "$1") == *$word* ]] && return 0
    done
    return 1
}

together=() apart=()
for program in "$@"; do
    rm -f "$out/$(basename "$program").rc"
    if [ "$jobs" -gt 1 ] && ! is_alone "$program"; then together+=("$program"); else apart+=("$program"); fi
done
for program in "${together[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
    run "$program" &
done
wait
for program in "${apart[@]}"; do run "$program"; done

passed=0 failed=0 skipped=0
for program in "$@"; do
    case $(cat "$out/$(basename "$program").rc" 2>/dev/null) in
    0) passed=$((passed + 1)) ;;
    77) skipped=$((skipped + 1)) ;;
    *) failed=$((failed + 1)) ;;
    esac
done
echo "$passed passed, $failed failed$([ $skipped -gt 0 ] && echo ", $skipped skipped")"
[ $failed -eq 0 ]
