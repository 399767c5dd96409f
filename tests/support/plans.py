"""A cost model measured with Qwen2.5-0.5B Q4_K_M on two cores, so that decisions are tested with real times."""

from __future__ import annotations

from typing import Final

from engine import CostModel, StepTimes

_TWO_THREADS: Final = StepTimes(
    engines=1,
    threads=2,
    decode={
        1: 0.0159, 2: 0.0416, 3: 0.0486, 4: 0.0541, 5: 0.0712, 6: 0.0751, 7: 0.0832, 8: 0.0682, 9: 0.0863,
        12: 0.0836, 13: 0.1025, 16: 0.0840, 32: 0.1762,
    },
    prefill={1: 0.0164, 8: 0.0540, 16: 0.0660, 32: 0.1275, 64: 0.2213, 128: 0.4222, 256: 0.8171},
)  # fmt: skip
_ONE_THREAD_EACH: Final = StepTimes(
    engines=2,
    threads=1,
    decode={
        1: 0.0196, 2: 0.0819, 3: 0.0975, 4: 0.1056, 5: 0.1383, 6: 0.1535, 7: 0.1697, 8: 0.1343, 9: 0.1760,
        12: 0.1653, 13: 0.2071, 16: 0.1604, 32: 0.3346,
    },
    prefill={1: 0.0202, 8: 0.0948, 16: 0.1173, 32: 0.2345, 64: 0.4027, 128: 0.7851, 256: 1.5299},
)  # fmt: skip
MEASURED: Final = CostModel(cores=2, times=[_TWO_THREADS, _ONE_THREAD_EACH], measured=True)
