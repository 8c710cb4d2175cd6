#!/bin/bash
# Installs into a folder of its own and uses what lies there as a stranger would: header alone, exported
# symbols, example by pkg-config, shared and static. usage: install.sh BUILD PROFILE SONAME
build=$1 profile=$2 soname=$3
prefix=$PWD/$build/$profile/test-out/prefix
[ "${build#/}" != "$build" ] && prefix=$build/$profile/test-out/prefix
work=$prefix-work
rm -rf "$prefix" "$work"
mkdir -p "$work"

fail() {
    echo "FAILED: $*"
    exit 1
}

command -v pkg-config >/dev/null || { echo 'skipped: pkg-config is not installed' && exit 77; }
# The make that runs this test has a job server of its own. What needs CUDA takes minutes to compile, and
# is a step of its own in .ci/run.
env -u MAKEFLAGS -u MAKELEVEL "${MAKE:-make}" -s install CUDA=0 BUILD="$build" \
    PROFILE="$profile" PREFIX="$prefix" || fail 'make install'
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
header=$prefix/include/shardlab.h
[ "$(cd "$prefix/include" && echo ./*)" = ./shardlab.h ] || fail 'more than one header'

# The header needs nothing else, in C and in C++.
echo '#include <shardlab.h>' >"$work/alone.c"
for std in c99 c11; do
    $CC -std=$std -Wall -Wextra -Wpedantic -Werror -fsyntax-only $(pkg-config --cflags shardlab) \
        "$work/alone.c" || fail "the header as $std"
done
if command -v c++ >/dev/null; then
    c++ -x c++ -std=c++11 -Wall -Wextra -Wpedantic -Werror -fsyntax-only \
        $(pkg-config --cflags shardlab) "$work/alone.c" || fail 'the header as C++'
fi
includes=$(grep -o '^#include .*' "$header" | sort | tr '\n' ' ')
[ "$includes" = '#include <stdbool.h> #include <stddef.h> #include <stdint.h> ' ] ||
    fail "the header includes $includes"

# What the shared library exports is what the header declares, no more and no less.
$CC -E -P "$header" | grep -o 'shl_lab_[a-z0-9_]*(' | tr -d '(' | sort -u >"$work/declared"
nm -D --defined-only "$prefix/lib/$soname" | awk '$2 ~ /[A-Z]/ { print $3 }' | sort -u \
    >"$work/exported"
[ "$(wc -l <"$work/declared")" -gt 20 ] || fail 'no functions found in the header'
diff "$work/declared" "$work/exported" || fail 'exported (>) and declared (<) functions differ'
readelf -d "$prefix/lib/$soname" | grep -q "SONAME.*\[$soname\]" || fail 'soname'

# The example, once with each library: the same losses, and they fall.
example=$prefix/share/shardlab/examples/example_train.c
$CC -Wall -Wextra -Werror "$example" $(pkg-config --cflags --libs shardlab) -o "$work/shared" ||
    fail 'the example with the shared library'
$CC "$example" $(pkg-config --static --cflags --libs shardlab | sed 's/-lshardlab/-l:libshardlab.a/') \
    -o "$work/static" || fail 'the example with the archive'
LD_LIBRARY_PATH=$prefix/lib "$work/shared" >"$work/shared.out" || fail 'running, shared'
"$work/static" >"$work/static.out" || fail 'running, static'
cmp "$work/shared.out" "$work/static.out" || fail 'shared and static train differently'
awk '{ loss[NR] = $4 } END { exit !(NR == 10 && loss[1] > 5 && loss[10] < loss[1] - 0.5) }' \
    "$work/shared.out" || fail "losses: $(cat "$work/shared.out")"
ldd "$work/shared" | grep -q "$soname" || fail 'shared is not'
ldd "$work/static" | grep -q libshardlab && fail 'static is not'
echo ok
