#!/bin/sh
# Installs Ray into .venv-bench, apart from everything else, so that `make bench` can time its tasks beside ours.
# It is no dependency: where it cannot be installed this says so, and the benchmark goes without.
set -eu
cd "$(dirname "$0")/.."

if [ -x .venv-bench/bin/python ] && .venv-bench/bin/python -I -c 'import ray' 2>/dev/null; then
    exit 0
fi
rm -rf .venv-bench
if .venv/bin/python -m venv .venv-bench && .venv-bench/bin/python -m pip install -q --only-binary :all: 'ray>=2.40' 2>.venv-bench/pip.log; then
    exit 0
fi
echo "set-up: Ray could not be installed (see .venv-bench/pip.log); the benchmark goes without it" >&2
