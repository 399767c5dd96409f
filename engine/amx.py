"""Whether llama.cpp may repack weights for this processor."""

from __future__ import annotations

from pathlib import Path


def _has_amx() -> bool:
    """Whether llama.cpp would repack weights for AMX tiles, which is not safe.

    Its first `ldtilecfg` in a worker thread was seen to fault (SIGSEGV in ggml_backend_amx_mul_mat, Xeon on KVM). The
    AVX-512 kernels on weights as they lie are what is left there; elsewhere repacking is on.
    """
    try:
        return " amx_tile " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def repacks_weights() -> bool:
    """Whether weights are laid out anew for this processor's kernels when they are loaded."""
    return not _has_amx()
