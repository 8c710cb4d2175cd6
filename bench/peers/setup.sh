#!/bin/bash
# bench/peers: makes the virtual environment in which the peers run. usage: setup.sh DIR
# It takes about 6 GB of disk: the default wheel of torch brings CUDA's libraries, which are not used.
set -euo pipefail
dir=${1:?usage: setup.sh DIR}
here=$(dirname "$0")
rm -f "$dir/ready"
if ! python3 -m venv "$dir"; then
    echo 'try: apt-get install python3-venv' >&2
    exit 1
fi
"$dir/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
command -v g++ >/dev/null || echo 'note: torch.compile needs g++; its row will be left out' >&2
touch "$dir/ready"
