#!/bin/sh
# Makes .venv ready, or finds that it is. Finds a Python that can make virtual environments; install.py does the rest.
# -q: say nothing when there is nothing to do. PYTHON=... in the environment names the interpreter to use.
set -eu
cd "$(dirname "$0")/.."

if [ -x .venv/bin/python ] && .venv/bin/python -I setup/install.py --if-ready "$@" 2>/dev/null; then
    exit 0
fi

# find_python CODE: the first Python of the path for which CODE ends well.
# A name on the path may be a stub that only reports a missing version, so each candidate is run.
find_python() {
    old_ifs=$IFS
    for name in python3.13 python3.12 python3.11 python3 python3.14; do
        IFS=:
        for folder in $PATH; do
            IFS=$old_ifs
            if [ -x "$folder/$name" ] && "$folder/$name" -I -c "$1" >/dev/null 2>&1; then
                echo "$folder/$name"
                return 0
            fi
        done
        IFS=$old_ifs
    done
    return 1
}

recent='import sys; sys.exit(sys.version_info < (3, 11))'
complete='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'

python=${PYTHON:-$(find_python "$complete" || true)}
if [ -z "$python" ]; then
    bare=$(find_python "$recent" || true)
    if [ -n "$bare" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        package=$("$bare" -I -c 'import sys; print("python3.%d-venv" % sys.version_info[1])')
        echo "set-up: $bare cannot make virtual environments yet; installing $package"
        export DEBIAN_FRONTEND=noninteractive
        apt-get install -y -qq "$package" >/dev/null 2>&1 ||
            { apt-get update -qq >/dev/null 2>&1 && apt-get install -y -qq "$package" >/dev/null 2>&1; } || true
        python=$(find_python "$complete" || true)
    fi
    if [ -z "$python" ] && [ -n "$bare" ]; then
        echo "set-up: $bare lacks venv and ensurepip; install them (Debian, Ubuntu: apt-get install python3-venv) and run this again" >&2
        exit 1
    fi
fi
if [ -z "$python" ]; then
    echo "set-up: no Python 3.11 or newer on the path; install one (Debian, Ubuntu: apt-get install python3 python3-venv) or name one by PYTHON=..." >&2
    exit 1
fi
exec "$python" -I setup/install.py
