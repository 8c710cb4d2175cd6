#!/bin/sh
# Starts what lies beside this file on a machine that has a driver and CUDA's run-time libraries. Finds
# cuBLASLt, cuDNN and NCCL: in LD_LIBRARY_PATH, in a Python environment's nvidia/*/lib, where the loader looks
# by itself, in toolkit folders; the first that has one gives it.
#
#   ./run gpu-check ARGS...          any command of the program; results go to build/gpu, or --out FOLDER
#   ./run gpu-bench ARGS...
#   ./run gpu-peers ARGS...          PyTorch beside; GPU_PYTHON names its python3
#   ./run libs                       where the libraries were found, and what each is for
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 1
python=${GPU_PYTHON:-python3}
what=${1:-help}
[ $# -gt 0 ] && shift

# PyTorch brings its own libraries; it gets none of the folders below. The program comes back here for its own.
if [ "$what" = gpu-peers ]; then
    exec "$python" "$here/bench/peers/gpu_peers.py" --program "$here/run" "$@"
fi
case $what in
help | -h | --help)
    sed -n '2,/^here=/{/^here=/d;s/^# \{0,1\}//;p;}' "$0" >&2
    exit 2
    ;;
esac

# Folders that may hold CUDA's libraries, one a line; @loader: whatever the loader knows.
folders() {
    printf '%s\n' "$LD_LIBRARY_PATH" | tr ':' '\n'
    command -v "$python" >/dev/null 2>&1 && "$python" -c '
import glob, sys
for p in sys.path:
    for f in sorted(glob.glob((p or ".") + "/nvidia/*/lib")):
        print(f)' 2>/dev/null
    echo @loader
    for home in "$CUDA_HOME" "$CUDA_PATH" /usr/local/cuda /usr/local/cuda-* /usr/local/nvidia; do
        [ -n "$home" ] && printf '%s\n' "$home/lib64" "$home/lib" "$home/targets/$(uname -m)-linux/lib"
    done
    printf '%s\n' /opt/*/lib/python3*/site-packages/nvidia/*/lib \
        /opt/*/.venv/lib/python3*/site-packages/nvidia/*/lib \
        /usr/local/lib/python3*/*-packages/nvidia/*/lib
}

loader_has() {
    for ldconfig in ldconfig /sbin/ldconfig /usr/sbin/ldconfig; do
        if command -v "$ldconfig" >/dev/null 2>&1; then
            "$ldconfig" -p 2>/dev/null | grep -q "[[:space:]]$1 " && return 0
            return 1
        fi
    done
    return 1
}

found= missing=
want() { # library, what it is for
    while IFS= read -r folder; do
        if [ "$folder" = @loader ] && loader_has "$1"; then
            [ -n "$show" ] && echo "$1: where the loader looks ($2)"
            return
        fi
        if [ -n "$folder" ] && [ -e "$folder/$1" ]; then
            [ -n "$show" ] && echo "$1: $folder ($2)"
            case :$found: in *":$folder:"*) ;; *) found=$found${found:+:}$folder ;; esac
            return
        fi
    done <<LIST
$list
LIST
    missing="$missing
  $1 ($2)"
    [ -n "$show" ] && echo "$1: not found ($2)"
}

list=$(folders)
show=
[ "$what" = libs ] && show=1
# One a line, as the CUDA half in this folder wants them.
while read -r library use; do want "$library" "$use"; done <"$here/lib/needs"
if [ -n "$show" ]; then
    echo 'looked in:' && echo "$list" | sed '/^$/d;s/^/  /'
    exit 0
fi
# In the order of the list, so that each library comes from the folder that `libs` names.
path=
while IFS= read -r folder; do
    case :$found: in *":$folder:"*) path=$path${path:+:}$folder ;; esac
done <<LIST
$list
LIST
if [ -n "$path" ]; then
    LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$path
    export LD_LIBRARY_PATH
fi
[ -n "$missing" ] && echo "not found ($0 libs says where was looked):$missing" >&2

if [ "$what" = shardlab ]; then
    exec "$here/bin/shardlab" "$@"
fi
exec "$here/bin/shardlab" "$what" "$@"
