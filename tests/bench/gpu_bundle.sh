#!/bin/bash
# The bundle works where nothing but a C library is: packed without compression, unpacked in an empty folder,
# started with an empty environment. Usage: gpu_bundle.sh OUT CUDA_OBJECT
set -eu
out=$1 object=$(readlink -f "$2")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
COMPRESS=cat bash bench/gpu_bundle.sh "$out" "$folder/b.tar" "$object" 2>"$folder/note" | grep 'needs glibc' ||
    grep -q 'above 50 MiB' "$folder/note" # uncompressed
tar -C "$folder" -xf "$folder/b.tar"
# Every library is the bundle's own but glibc's.
if ldd "$folder/b/bin/shardlab" | awk '$2 == "=>" { print $3 }' | grep -v "^$folder/b/" |
    grep -v -E '/lib(c|m|dl|rt|pthread|resolv)\.so'; then
    echo 'a library of the system is used'
    exit 1
fi
clean() { env -i PATH=/usr/bin:/bin "$@"; }
clean "$folder/b/run" shardlab info 2>&1 | grep -q '^version'
clean "$folder/b/run" libs | grep -q libnccl
mv "$folder/b/lib/$(basename "$object")" "$folder/b/lib/libshardlab-cuda.so"
cd "$folder"
for part in golden gradients memory; do
    clean "$folder/b/run" gpu-check --quick --part $part --out none >check 2>&1 || { cat check; exit 1; }
    grep -q "^passed .* $part" check || { cat check; exit 1; }
done
tail -n 1 check
