#!/bin/sh
# The static checks, each in one line; what a failing one says is shown in full. All run, even after one has failed.
cd "$(dirname "$0")/.." || exit 1
bin=.venv/bin
failed=0

check() {
    name=$1
    shift
    if said=$("$@" 2>&1); then
        echo "ok      $name"
    else
        echo "FAILED  $name"
        echo "$said"
        failed=1
    fi
}

check "ruff check" $bin/ruff check -q .
check "ruff format" $bin/ruff format -q --check --diff .
check "mypy --strict" $bin/mypy --no-error-summary chain broker provider requester tests setup
check "import contracts" $bin/lint-imports --no-logo
exit $failed
