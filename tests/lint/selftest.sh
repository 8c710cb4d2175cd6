#!/bin/sh
# The lint must be able to fail: each line below is a fault in a scratch tree and the words that the
# report of its check must hold. usage: selftest.sh scratch-folder
here=$(cd "$(dirname "$0")" && pwd)
rm -rf "$1" && mkdir -p "$1" && cd "$1" || exit 1
bad=0

expect() { # check path text words...
    check=$1 path=$2 text=$3 words=$4
    mkdir -p "$(dirname "$path")"
    printf "/* room: why.\n * second. */\n$text\n" >"$path"
    case $check in
    layers) out=$(awk -f "$here/layers.awk" "$here/layers.txt" "$path") ;;
    bans) out=$(awk -f "$here/strip.awk" -f "$here/bans.awk" "$path") ;;
    shape) out=$(awk -f "$here/shape.awk" "$path") ;;
    esac
    rc=$?
    if [ "$words" = clean ]; then
        [ $rc -eq 0 ] && return
    else
        case $out in *"$words"*) [ $rc -ne 0 ] && return ;; esac
    fi
    echo "$check on $path: expected \"$words\", got \"$out\""
    bad=1
}

expect layers models/a.c '#include "engines/comm/comm.h"' 'models may not include engines/comm'
expect layers engines/zero/a.c '#include "engines/fsdp/fsdp.h"' 'may not include engines/fsdp'
expect layers engines/zero/b.c '#include <hdf5.h>' 'may not include <hdf5.h>'
expect layers models/b.c '#include "gpt.h"' 'root-relative'
expect layers attic/a.c 'int x;' 'not in layers.txt'
expect layers engines/zero/c.c '#include "models/module.h"\n#include <math.h>' clean
expect bans models/c.c 'char *s = getenv("X");' 'getenv'
expect bans models/d.c 'void *p = malloc(3);' 'malloc'
expect bans models/e.c 'd->free(x); p.free (1); shl_heap_free(&p);' clean
expect bans models/f.c 'printf("x");' 'printf'
expect bans models/g.c '/* printf("x") */ snprintf(a, 2, "printf(malloc(");' clean
expect bans models/h.c 'fprintf(stderr, "x");' 'stderr'
expect bans bench/a.c 'printf("x"); exit(1);' 'exit'
expect bans models/i.c '#if 0' 'no build compiles'
expect bans models/j.c '\tint x;' 'tab'
expect bans models/k.c '// TODO later' 'unfinished'
expect bans engines/zero/d.c 'x = shl_cpu_device_ops;' 'backend is named'
expect bans engines/zero/e.c 'ncclAllGather(1);' 'backend is named'
expect bans engines/zero/f.c 'x = "cpu"; int64_t cpu_ns; cpu_set_t s; /* cuda */' clean
expect bans engines/zero/g.c 'int gpt2_layers;' 'name no model'
expect bans models/l.c 'int is_zero3;' 'no engine'
expect shape engines/comm/a.h '\nint shl_x(int a);' 'no contract comment'
expect shape engines/comm/b.h '/* What. */\nint shl_x(int a);\nint shl_y(int a);' clean
expect shape models/m.c "$(printf '%0601d' 0 | sed 's/0/x;\\n/g')" 'more than 600'
expect shape models/n.c "int\nf(void)\n{\n$(printf '%081d' 0 | sed 's/0/x;\\n/g')}" 'function of 81'

mkdir -p x y && echo '/* */' | tee x/same.c >y/same.c
out=$(awk -f "$here/shape.awk" x/same.c y/same.c)
case $out in *"base name also used by x/same.c"*) ;; *) echo "same base names passed" && bad=1 ;; esac
exit $bad
