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
# Libraries are found in the wheels of a Python environment, whose own process gets none of the folders.
wheels=$folder/env/lib/python3/site-packages/nvidia
mkdir -p "$wheels/cu13/lib" "$wheels/cudnn/lib" "$wheels/nccl/lib"
touch "$wheels/cu13/lib/libcublasLt.so.13" "$wheels/cu13/lib/libnvrtc.so.13" "$wheels/cudnn/lib/libcudnn.so.9" \
    "$wheels/nccl/lib/libnccl.so.2" "$wheels/nccl/lib/libcuda.so.1.old"
cat >"$folder/python" <<PYTHON
#!/bin/sh
if [ "\$1" = -c ]; then
    printf '%s\n' "$wheels/cu13/lib" "$wheels/cudnn/lib" "$wheels/nccl/lib"
else
    echo "peers with \$* and LD_LIBRARY_PATH=\$LD_LIBRARY_PATH"
fi
PYTHON
chmod +x "$folder/python"
clean GPU_PYTHON="$folder/python" "$folder/b/run" libs >"$folder/libs"
for library in cudnn/lib/libcudnn.so.9 cu13/lib/libnvrtc.so.13 nccl/lib/libnccl.so.2; do
    grep -q "^${library##*/}: $wheels/${library%/*} (" "$folder/libs" || { cat "$folder/libs"; exit 1; }
done
grep -q '^libcuda.so.1: .*nccl' "$folder/libs" && exit 1
clean GPU_PYTHON="$folder/python" "$folder/b/run" gpu-peers --rounds 1 |
    grep -q "peers with $folder/b/bench/peers/gpu_peers.py --program $folder/b/run --rounds 1 and LD_LIBRARY_PATH=\$"
clean "$folder/b/run" info 2>&1 | grep -q '^version'
mv "$folder/b/lib/$(basename "$object")" "$folder/b/lib/libshardlab-cuda.so"
cd "$folder"
for part in golden gradients memory; do
    clean "$folder/b/run" gpu-check --quick --part $part --out none >check 2>&1 || { cat check; exit 1; }
    grep -q "^passed .* $part" check || { cat check; exit 1; }
done
tail -n 1 check
