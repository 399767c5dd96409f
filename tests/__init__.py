"""Tests in tiers (`unit`, `process`, `browser`, `docs`, `ops`): each a package and a pytest marker of that name."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
"""The repository."""
