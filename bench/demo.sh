#!/bin/bash
# bench: the demo: six strategies on real text, bit for bit; a sharded checkpoint; a plan for a 7B model;
# figures. Usage: bench/demo.sh PROGRAM OUT. Uses nothing but the built program and the shell's tools.
set -euo pipefail
export LC_ALL=C

if [ $# -ne 2 ] || [ ! -x "$1" ]; then
    echo "error: usage: bench/demo.sh PROGRAM OUT" >&2
    echo "  try: make demo" >&2
    exit 2
fi
program=$1
out=$2
strategies=ddp,zero1,zero2,zero3,fsdp,fsdp-grad-op
steps=30
limit=80GiB
rm -rf "$out"
mkdir -p "$out"

fail() {
    echo "demo: FAILED: $1" >&2
    exit 1
}

say() {
    printf '\n== %s\n' "$1"
}

# Shows a command as the reader would type it, and runs it.
run() {
    echo "\$ shardlab $*"
    "$program" "$@"
}

# The value of a nested key of each record: value 'peak_bytes device total'.
value() {
    awk -v path="$1" '{
        n = split(path, key, " ")
        rest = $0
        for (i = 1; i <= n; i++) {
            at = index(rest, "\"" key[i] "\":")
            if (!at) { print "missing"; next }
            rest = substr(rest, at + length(key[i]) + 3)
        }
        sub(/^ *"?/, "", rest)
        sub(/[",}].*/, "", rest)
        print rest
    }'
}

# strategy, step and loss bits of every step record of the files.
losses() {
    grep -h '"kind": *"step"' "$@" |
        sed -E 's/.*"strategy": *"([^"]*)".*"step": *([0-9]+).*"loss_bits": *"([0-9a-f]+)".*/\1 \2 \3/'
}

began=$SECONDS

say "1. gpt2-tiny on Shakespeare, 2 ranks, $steps steps, six strategies"
run train --model gpt2-tiny --strategy $strategies --ranks 2 --batch 4 --steps $steps --lr 6e-4 --clip 1 \
    --timeline --out "$out/train.jsonl"
n_runs=$(losses "$out/train.jsonl" | cut -d' ' -f1 | sort -u | wc -l)
n_lines=$(losses "$out/train.jsonl" | wc -l)
n_bits=$(losses "$out/train.jsonl" | cut -d' ' -f2,3 | sort -u | wc -l)
n_hashes=$(grep '"kind": *"run"' "$out/train.jsonl" | value param_hash | sort -u | wc -l)
[ "$n_runs" -eq 6 ] || fail "some strategies are missing"
[ "$n_lines" -eq $((6 * steps)) ] || fail "some steps are missing"
[ "$n_bits" -eq $steps ] || fail "losses differ between strategies"
[ "$n_hashes" -eq 1 ] || fail "final parameters differ between strategies"
echo "bit-identical: $n_lines losses of $n_runs strategies have $n_bits values, one per step," \
    "and the final parameters have one hash"

say "2. a sharded checkpoint: 10 steps == 5 + resume + 5"
for strategy in zero3 fsdp; do
    common=(--model gpt2-tiny --strategy "$strategy" --ranks 2 --batch 4 --clip 1
        --schedule cosine --schedule-steps 10 --warmup 2)
    dir=$out/ckpt-$strategy
    "$program" train "${common[@]}" --steps 10 --jsonl > "$out/whole-$strategy.jsonl"
    run train "${common[@]}" --steps 5 --ckpt-dir "$dir" --jsonl > "$out/first-$strategy.jsonl"
    "$program" train "${common[@]}" --steps 10 --ckpt-dir "$dir" --resume --jsonl \
        > "$out/second-$strategy.jsonl"
    cmp -s <(losses "$out/whole-$strategy.jsonl") \
        <(losses "$out/first-$strategy.jsonl" "$out/second-$strategy.jsonl") ||
        fail "$strategy: losses after resuming differ"
    whole=$(tail -n 1 "$out/whole-$strategy.jsonl" | value param_hash)
    second=$(tail -n 1 "$out/second-$strategy.jsonl" | value param_hash)
    [ "$whole" = "$second" ] || fail "$strategy: parameters after resuming differ"
    echo "$strategy: ten losses and the final parameters ($whole) are the same bits"
done
find "$out/ckpt-fsdp" -type f | sort | sed 's/^/  /'

say "3. plan: gpt-7b on the virtual device, $limit per rank"
run plan --model gpt-7b --strategy $strategies --ranks 1,8,64,1024 --batch 1 --seq 1024 \
    --device-memory $limit
"$program" plan --model gpt-7b --strategy $strategies --ranks '1-1024*2' --batch 1 --seq 1024 \
    --device-memory $limit --jsonl > "$out/plan.jsonl"

say "4. figures"
figures=$(
    for figure in loss timeline; do
        "$program" plot "$out/train.jsonl" --figure $figure --out "$out/figures"
    done
    for figure in memory_by_tag memory_vs_ranks wire; do
        "$program" plot "$out/plan.jsonl" --figure $figure --ranks 8 --device-memory $limit \
            --out "$out/figures"
    done
)

# One line per strategy: what training two ranks took, and what gpt-7b would take.
gib() {
    awk -v bytes="$1" 'BEGIN { printf "%.1f", bytes / 1073741824 }'
}
mib() {
    awk -v bytes="$1" 'BEGIN { printf "%.1f", bytes / 1048576 }'
}
row() {
    printf '%-14s %10s %10s %10s %12s | %8s %8s %8s %8s\n' "$@"
}
planned() { # strategy ranks -> GiB, with a star when it does not fit
    local record
    record=$(grep "\"strategy\": *\"$1\"" "$out/plan.jsonl" | grep "\"ranks\": *$2,")
    printf '%s%s' "$(gib "$(value 'peak_bytes device total' <<< "$record")")" \
        "$(grep -q '"fits": *"no"' <<< "$record" && echo '*' || echo ' ')"
}
{
    row '' 'last loss' 'peak MiB' 'state MiB' 'traffic MiB' 'N=1' 'N=8' 'N=64' 'N=1024'
    for strategy in ${strategies//,/ }; do
        record=$(grep '"kind": *"run"' "$out/train.jsonl" | grep "\"strategy\": *\"$strategy\"")
        state=0
        for tag in param grad optim; do
            state=$((state + $(value "peak_bytes device $tag" <<< "$record")))
        done
        traffic=0
        for kind in all_gather reduce_scatter all_reduce; do
            traffic=$((traffic + $(value "comm $kind bytes" <<< "$record")))
        done
        row "$strategy" "$(printf '%.5f' "$(value loss <<< "$record")")" \
            "$(mib "$(value 'peak_bytes device total' <<< "$record")")" "$(mib $state)" \
            "$(mib $traffic)" "$(planned "$strategy" 1)" "$(planned "$strategy" 8)" \
            "$(planned "$strategy" 64)" "$(planned "$strategy" 1024)"
    done
} > "$out/table.txt"

say "result: gpt2-tiny trained on 2 ranks (per rank) | gpt-7b planned on N ranks (peak GiB per rank)"
cat "$out/table.txt"
echo "state: parameters, gradients, moments. traffic: full buffers per step. *: above $limit"
echo
echo "figures:"
while read -r path; do
    echo "  $path"
done <<< "$figures"
echo "done in $((SECONDS - began)) s; records and checkpoints are in $out"
