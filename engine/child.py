"""Command line and environment of child processes that run Samovar's own modules."""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path
from typing import Final

_PACKAGES: Final = str(Path(__file__).resolve().parent.parent)
"""The folder that this process loaded the packages from: children must load the same ones."""
SPINS: Final = "2000"
"""Iterations for which an engine's thread spins at a barrier before it sleeps.

libgomp's default, 300 000, lasts longer than a time slice. While another process used one of two cores, the threads of
an engine waited a time slice for each other at each of the about 600 barriers of a step: a step of 40 to 150 ms took 1
to 14 s on a machine with a load of 10. Measured with a Qwen-class Q4_K_M on two threads, ms for one row, with real-time
priority and at a load of 16: 300 000: 38.5; 3 000: 39.4 and 142; 2 000: 39.6 and 127; 1 000: 42.3 and 111; 200: 56."""


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs `module` in this interpreter.

    With `-P`, so that an `engine.py` or a `cache` folder in the working folder is never imported.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Return the environment for a child process.

    GGML_NO_BACKTRACE: the backtrace of a crash would start a debugger that outlives its process. PYTHONPATH: names the
    folder of the packages unless they are installed, as the working folder is no longer searched. Its empty entries,
    which mean the working folder, are left out. PYTHONUTF8: a child reads paths in the encoding of its parent.
    GOMP_SPINCOUNT: see SPINS; libgomp's own variables, if set, take precedence.
    """
    search = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    # Not for installed packages: everything in that folder would precede the standard library.
    if _PACKAGES not in (*site.getsitepackages(), site.getusersitepackages()):
        search = [_PACKAGES, *search]
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    paths = {"PYTHONPATH": os.pathsep.join(search)} if search else {}
    spins = {} if "OMP_WAIT_POLICY" in own else {"GOMP_SPINCOUNT": SPINS}
    fixed = {"PYTHONSAFEPATH": "1", "PYTHONUTF8": str(sys.flags.utf8_mode), "GGML_NO_BACKTRACE": "1"}
    return {**spins, **own, **paths, **fixed}
