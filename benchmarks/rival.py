"""llama-server, built from the llama.cpp that llama-cpp-python contains: the same commit, the same kernels.

python -m benchmarks.rival: builds llama-server and llama-batched-bench once into the cache folder (6 minutes on two
cores) and prints their paths.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.machine import ENGINE_PACKAGE, cache_folder, engine_version
from deploy.setup.progress import CommandFailedError, run

PROGRAMS: Final = ("llama-server", "llama-batched-bench")
SOURCE: Final = "vendor/llama.cpp"
"""Path of llama.cpp in llama-cpp-python's source archive."""
OPTIONS: Final = (
    "CMAKE_BUILD_TYPE=Release",
    "GGML_NATIVE=ON",  # as llama-cpp-python is compiled here
    "LLAMA_CURL=OFF",
    "LLAMA_OPENSSL=OFF",
    "LLAMA_BUILD_UI=OFF",
    "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_BUILD_EXAMPLES=OFF",
)


class RivalError(Exception):
    """llama-server cannot be built here; the text says what to do."""


def program(name: str) -> Path:
    """Return the path of one of PROGRAMS, which is built at the first call. Raises RivalError."""
    folder = cache_folder() / f"llama.cpp-{engine_version()}"
    path = folder / "build" / "bin" / name
    if not path.exists():
        try:
            build(folder)
        except CommandFailedError as error:
            raise RivalError(str(error)) from error
    return path


def build(folder: Path) -> None:
    """Download the source, configure and compile. Raises RivalError, CommandFailedError."""
    if missing := [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool) is None]:
        raise RivalError(
            f"{', '.join(missing)} is missing, which compiling llama-server needs: "
            "apt-get install cmake ninja-build g++"
        )
    log = folder.with_suffix(".log")
    print("Building llama-server, once: about 6 minutes on two cores.", file=sys.stderr, flush=True)
    if not (folder / "CMakeLists.txt").exists():
        fetch(folder, log)
    build_folder = str(folder / "build")
    configure = ["cmake", "-G", "Ninja", "-S", str(folder), "-B", build_folder, *(f"-D{option}" for option in OPTIONS)]
    run(configure, log, sys.stderr, done="configured")
    run(["cmake", "--build", build_folder, "--target", *PROGRAMS], log, sys.stderr, done="llama-server is built")


def fetch(folder: Path, log: Path) -> None:
    """Unpack llama.cpp from llama-cpp-python's source archive into `folder`. Raises CommandFailedError."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--progress-bar", "off"]
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        archive = Path(temporary)
        wanted = f"{ENGINE_PACKAGE}=={engine_version()}"
        run([*pip, "--dest", temporary, wanted], log, sys.stderr, done="got the source")
        with tarfile.open(next(archive.glob("*.tar.gz"))) as tar:
            tar.extractall(archive / "unpacked", filter="data")
        next(archive.glob(f"unpacked/*/{SOURCE}")).rename(folder)


def version(server: Path) -> str:
    """Return the version line of `llama-server --version`."""
    answer = subprocess.run([server, "--version"], capture_output=True, text=True, check=True)
    return next(line for line in (answer.stdout + answer.stderr).splitlines() if "version" in line)


def main() -> None:
    """Build missing programs and print their paths."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        print(*(program(name) for name in PROGRAMS), sep="\n")
    except RivalError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
