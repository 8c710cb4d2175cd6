#!/bin/sh
# Starts what lies beside this file on a machine that has a driver and CUDA's run-time libraries. Finds
# cuBLASLt, cuDNN and NCCL: in LD_LIBRARY_PATH, toolkit folders, or a Python environment's nvidia/*/lib.
#
#   ./run shardlab ARGS...           any command of the program
#   ./run gpu-check | gpu-bench      the same as ./run shardlab gpu-check
#   ./run gpu-peers ARGS...          PyTorch beside; GPU_PYTHON names its python3
#   ./run libs                       where the libraries were found
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 1
python=${GPU_PYTHON:-python3}

# Folders that may hold CUDA's libraries, one a line, those that the user named first.
folders() {
    printf '%s\n' "$LD_LIBRARY_PATH" | tr ':' '\n'
    for home in "$CUDA_HOME" "$CUDA_PATH" /usr/local/cuda /usr/local/cuda-* /usr/local/nvidia; do
        [ -n "$home" ] && printf '%s\n' "$home/lib64" "$home/lib" "$home/targets/$(uname -m)-linux/lib"
    done
    command -v "$python" >/dev/null 2>&1 && "$python" -c '
import glob, sys
for p in sys.path:
    for f in sorted(glob.glob((p or ".") + "/nvidia/*/lib")):
        print(f)' 2>/dev/null
    printf '%s\n' /opt/*/lib/python3*/site-packages/nvidia/*/lib \
        /usr/local/lib/python3*/*-packages/nvidia/*/lib
}

# Where the loader finds it by itself counts too.
system_has() {
    for ldconfig in ldconfig /sbin/ldconfig /usr/sbin/ldconfig; do
        if command -v "$ldconfig" >/dev/null 2>&1; then
            "$ldconfig" -p 2>/dev/null | grep -q "[[:space:]]$1 " && return 0
            return 1
        fi
    done
    return 1
}

found= missing=
want() { # library
    if system_has "$1"; then
        [ -n "$show" ] && echo "$1: known to the loader"
        return
    fi
    while IFS= read -r folder; do
        for file in "$folder/$1" "$folder/$1".*; do
            if [ -n "$folder" ] && [ -e "$file" ]; then
                [ -n "$show" ] && echo "$1: $folder"
                case :$found: in *":$folder:"*) ;; *) found=$found${found:+:}$folder ;; esac
                return
            fi
        done
    done <<LIST
$list
LIST
    missing="$missing $1"
    [ -n "$show" ] && echo "$1: not found"
}

list=$(folders)
show=
[ "$1" = libs ] && show=1
# One name a line, as the CUDA half in this folder wants them.
while IFS= read -r library; do want "$library"; done <"$here/lib/needs"
[ -n "$show" ] && exit 0
if [ -n "$found" ]; then
    LD_LIBRARY_PATH=$LD_LIBRARY_PATH${LD_LIBRARY_PATH:+:}$found
    export LD_LIBRARY_PATH
fi
[ -n "$missing" ] && echo "not found:$missing (./run libs says where was looked for them)" >&2

what=${1:-help}
[ $# -gt 0 ] && shift
case $what in
shardlab) exec "$here/bin/shardlab" "$@" ;;
gpu-check | gpu-bench) exec "$here/bin/shardlab" "$what" "$@" ;;
gpu-peers) exec "$python" "$here/bench/peers/gpu_peers.py" --program "$here/bin/shardlab" "$@" ;;
*)
    sed -n '2,/^here=/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
