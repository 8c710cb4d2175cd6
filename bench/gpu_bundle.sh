#!/bin/bash
# Puts what a GPU machine needs into one archive: program, CUDA half, the tests of gpu-check, golden values, the
# libraries that are not glibc's. usage: gpu_bundle.sh OUT ARCHIVE [CUDA_OBJECT]
# OUT/bundle holds the binaries, linked to look beside themselves. COMPRESS: default "xz -6 -T0".
set -eu
out=${1:?usage: gpu_bundle.sh OUT ARCHIVE [CUDA_OBJECT]}
archive=$2
object=${3:-}
compress=${COMPRESS:-xz -6 -T0}
name=$(basename "${archive%.tar*}")
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
root=$stage/$name
mkdir -p "$root/bin/tests" "$root/lib" "$root/tests/golden" "$root/bench/data" "$root/bench/peers"

cp "$out/bundle/shardlab" "$root/bin/"
for program in "$out"/bundle/tests/*; do
    [ -f "$program" ] && cp "$program" "$root/bin/tests/"
done
cp tests/golden/*.h5 "$root/tests/golden/"
cp bench/data/tinyshakespeare.txt "$root/bench/data/"
cp bench/peers/gpu_peers.py "$root/bench/peers/"
cp LICENSE "$root/"
install -m 755 bench/gpu_run.sh "$root/run"

# All that the binaries load, but what belongs to the machine: glibc and the loader.
for binary in "$root"/bin/shardlab "$root"/bin/tests/*; do ldd "$binary"; done |
    awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
    grep -v -E '/(ld-linux[^/]*|lib(c|m|dl|rt|pthread|resolv|util|nsl|anl|BrokenLocale|mvec))\.so[.0-9]*$' |
    while IFS= read -r library; do
        cp -L "$library" "$root/lib/"
    done
# What a machine with a GPU has and the loader must find, with what it is for.
{
    echo 'libcuda.so.1 the driver'
    if [ -n "$object" ] && [ -f "$object" ]; then
        cp "$object" "$root/lib/"
        objdump -p "$object" | awk '$1 == "NEEDED" && $2 ~ /^libcublas/ { print $2, "everything on a GPU" }'
    fi
    echo 'libcudnn.so.9 --attention cudnn'
    echo "libnvrtc.so.$(objdump -p "$object" 2>/dev/null |
        sed -n 's/.*NEEDED.*libcublasLt\.so\.\([0-9]*\).*/\1/p' | grep . || echo 13) --attention cudnn"
    echo 'libnccl.so.2 --comm nccl'
} >"$root/lib/needs"
[ -n "$object" ] && [ -f "$object" ] ||
    echo "note: the CUDA half is not built here (nvcc); SHL_CUDA_OBJECT must name one" >&2
find "$root/bin" "$root/lib" -type f ! -name needs -exec strip -g {} + 2>/dev/null

tar -C "$stage" --owner=0 --group=0 --sort=name -cf - "$name" | $compress >"$archive.new"
mv "$archive.new" "$archive"

glibc=$(find "$root/bin" "$root/lib" -type f -exec objdump -T {} + 2>/dev/null |
    grep -o 'GLIBC_[0-9.]*' | sort -u -t_ -k2 -V | tail -n 1)
bytes=$(stat -c %s "$archive")
tree=$(git ls-files -z 2>/dev/null | xargs -0 stat -c %s 2>/dev/null | awk '{ s += $1 } END { print s + 0 }')
awk -v a="$bytes" -v t="$tree" -v file="$archive" -v glibc="${glibc#GLIBC_}" 'BEGIN {
    printf "%s: %.1f MiB; with the tracked tree %.1f MiB; needs glibc %s or later\n", file, a / 2^20,
        (a + t) / 2^20, glibc
    exit a + t > 50 * 2^20
}' || { echo "error: archive and tracked tree are above 50 MiB" >&2; exit 1; }
