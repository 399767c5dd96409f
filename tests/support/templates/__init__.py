"""Chat templates that behave like those of the models that people download most: written from the models' rules.

Each is composed of a few rules: the text around each role's message, where a system message goes, whether roles must
alternate, how earlier reasoning is dropped, and how tools are described. `TEMPLATES` is the table.
"""

from __future__ import annotations

from tests.support.templates.composing import Rules, compose
from tests.support.templates.table import TEMPLATES, TEXT_TOKENS, control_texts

__all__ = ["TEMPLATES", "TEXT_TOKENS", "Rules", "compose", "control_texts"]
