"""Whether llama.cpp may repack weights for this processor."""

from __future__ import annotations

from pathlib import Path


def _has_amx() -> bool:
    """Whether llama.cpp would repack weights for AMX tiles, which is not safe.

    The first `ldtilecfg` in a worker thread was seen to crash (SIGSEGV in ggml_backend_amx_mul_mat, Xeon on KVM). On
    such processors the AVX-512 kernels compute on unpacked weights; on all others, weights are repacked.
    """
    try:
        return " amx_tile " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def repacks_weights() -> bool:
    """Whether llama.cpp rearranges weights for this processor's kernels when it loads them."""
    return not _has_amx()
