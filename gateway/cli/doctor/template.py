"""Findings of `samovar doctor` about the model's chat template."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.cli.doctor.finding import Checks, Finding, Mark
from gateway.prompts.abilities import Abilities, Taken


class TemplateChecks(Checks):
    """Says what a chat template can do, one line for each ability."""

    def findings(self, abilities: Abilities) -> Iterator[Finding]:
        """Yield the findings about `abilities`."""
        yield self._taken("system", abilities.system)
        yield self._taken("systems", abilities.systems)
        yield self._taken("turns", abilities.turns)
        yield self._good("template", "appends" if abilities.appends else "appends_not")
        yield self._taken("tools", abilities.tools, calls=abilities.calls)
        yield self._good("template", "thinking" if abilities.thinking else "thinking_not")

    def _taken(self, name: str, taken: Taken, **values: object) -> Finding:
        match taken:
            case "as it is":
                return self._good("template", name, **values)
            case "changed":
                return self._good("template", f"{name}_changed")
            case "omitted":
                return self._bad(Mark.WARN, "template", f"{name}_omitted", "another_model")
