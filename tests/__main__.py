"""Run the tests: three files at a time, then those marked `serial`.

python -m tests [arguments of pytest, such as -k words, -m unit or -x]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Final

import pytest

PARALLEL: Final = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
"""As many workers as a small machine has cores: with three, browsers now and then miss the time-outs of their tests.

A file stays with one worker, which starts its gateways once. `tests/conftest.py` sorts the files.
"""


def main(arguments: list[str]) -> int:
    """Return pytest's exit code: that of the first run that failed, and NO_TESTS_COLLECTED only if no run had tests."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-m", dest="marks")
    options, others = parser.parse_known_args(arguments)
    marks = f"({options.marks}) and " if options.marks else ""
    codes = [run(f"{marks}not serial", *PARALLEL, *others), run(f"{marks}serial", *others)]
    failures = [code for code in codes if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)]
    return failures[0] if failures else min(codes)


def run(marks: str, *arguments: str) -> int:
    """Run the tests that have these marks, and return the exit code.

    Bytecode is always stored: several hundred processes of the tests would compile the same sources, which takes each
    of them a third of a second.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "pytest", "-m", marks, *arguments]
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
