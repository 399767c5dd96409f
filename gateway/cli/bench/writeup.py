"""Figures of the write-up that Samovar is based on, for comparison with those of the same model on this machine.

Qwen2.5-0.5B-Instruct on an Intel i5-1135G7 (4 cores), 16 GB, CPU only, one blocking request at a time.
"""

from __future__ import annotations

import re
from typing import Final

_MODEL: Final = re.compile(r"qwen2\.5-0\.5b-instruct[-_.](q4|int4)", re.IGNORECASE)


def measured(model: str) -> bool:
    """Return whether the name `model` is that of the write-up's model: with weights of 4 bits, in any file format."""
    return _MODEL.match(model) is not None


MEMORY: Final = {"before": 85.3, "loaded": 1068.7, "first": 1182.4, "after": 1070.1, "rounds": 1200.0}
"""Resident memory in MB: the peak of the first conversation; an upper bound of the mean of five rounds."""
LATENCY: Final = {
    "first_token": (0.82, 0.91),
    "gap": (0.045, 0.048),
    "total": (5.3, 8.1),
}
"""Seconds, for 20 → 100 and 50 → 150 tokens."""
CPU: Final = "60 – 80"
"""Percent of one core."""
START: Final = {"python": 0.18, "configuration": 0.09, "vocabulary": 0.07, "listening": 0.02, "weights": 0.65}
"""Seconds by part; the weights were loaded before requests were accepted."""
