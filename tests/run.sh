#!/bin/bash
# Runs test programs one after another: a line with seconds for each, the output of those that fail,
# and a closing line alone. Exit 77 of a program means skipped. SHL_TEST_TIMEOUT is in seconds.
passed=0 failed=0 skipped=0
out=${SHL_TEST_OUT:-build/test-out}
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

for program in "$@"; do
    name=$(basename "$program")
    log=$out/$name.log
    start=$(date +%s%N)
    timeout -k 5 "${SHL_TEST_TIMEOUT:-120}" "$program" >"$log" 2>&1 </dev/null
    rc=$?
    ms=$((($(date +%s%N) - start) / 1000000))
    case $rc in
    0) word=ok passed=$((passed + 1)) ;;
    77) word=skipped skipped=$((skipped + 1)) ;;
    124 | 137) word=TIMEOUT failed=$((failed + 1)) ;;
    *) word="FAILED($rc)" failed=$((failed + 1)) ;;
    esac
    printf '%-12s %-36s %4d.%02d s\n' "$word" "$name" $((ms / 1000)) $((ms % 1000 / 10))
    case $rc in
    0) ;;
    77) tail -n 3 "$log" | sed 's/^/    /' ;;
    *) show "$log" | sed 's/^/    /' ;;
    esac
done

echo "$passed passed, $failed failed$([ $skipped -gt 0 ] && echo ", $skipped skipped")"
[ $failed -eq 0 ]
