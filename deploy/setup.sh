#!/bin/sh
# Finds a Python that is new enough and runs the package deploy.setup.
# Plain sh, because this part must also run where Python is missing, or too old to parse the rest.
cd "$(dirname "$0")/.." || exit 1

for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        exec "$python" -m deploy.setup "$@"
    fi
done

found=$("${PYTHON:-python3}" --version 2>&1) || found="no Python"
echo "Samovar needs Python 3.11 or newer, and this machine has ${found}." >&2
echo "Samovar 需要 Python 3.11 或更高版本。" >&2
[ "$(id -u)" = 0 ] && sudo= || sudo="sudo "
command -v g++ >/dev/null && compiler= || compiler=" g++"
for minor in 14 13 12 11; do
    if apt-cache show "python3.$minor-venv" >/dev/null 2>&1; then
        echo "Install it, then run the same command again:  ${sudo}apt-get install -y python3.$minor-venv$compiler" >&2
        exit 1
    fi
done
echo "Install it, then run the same command again:  ${sudo}apt-get update && ${sudo}apt-get install -y python3-venv$compiler" >&2
echo "(Debian 12, Ubuntu 24.04 and later releases have a new enough one.)" >&2
exit 1
