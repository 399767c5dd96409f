"""Tests in tiers (`unit`, `process`, `browser`, `docs`, `ops`, `clients`): each a package and a marker of that name."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
"""The repository."""
