#!/bin/bash
# Runs every `shardlab ...` line of README's code blocks, in order, in an empty folder: each must end
# with status 0. Usage: readme.sh PROGRAM
set -u
program=$(readlink -f "${1:?usage: readme.sh PROGRAM}")
readme=$(readlink -f "$(dirname "$0")/../../README.md")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/bin"
ln -s "$program" "$folder/bin/shardlab"
cd "$folder" || exit 1
export PATH=$folder/bin:$PATH
n=0 failed=0
while IFS= read -r line; do
    n=$((n + 1))
    if ! bash -c "$line" >out 2>err </dev/null; then
        echo "failed: $line"
        head -n 5 err
        failed=$((failed + 1))
    fi
done < <(sed -n '/^```/,/^```/p' "$readme" | grep '^shardlab ' | sed 's/ *# .*//')
echo "$n commands of README, $failed failed"
[ "$n" -gt 5 ] && [ "$failed" -eq 0 ]
