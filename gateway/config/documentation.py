"""Generates docs/configuration.md from the settings: `make docs`. A test checks that the page is up to date."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final

from gateway.config.settings import PREFIX, SIZES, Settings

EXAMPLE: Final = """\
model = "qwen2.5-0.5b-instruct-q4_k_m"
aliases = {"gpt-4o-mini" = "qwen2.5-0.5b-instruct-q4_k_m"}
host = "0.0.0.0"                          # with keys: samovar keys add NAME
allowed_hosts = ["chat.example.org"]
memory = "4 GiB"
instructions = "Answer in the language of the question. 用提问的语言回答。"
"""
_COMPUTED: Final = {
    "cache_key": "created in the state folder",
    "memory": "half of the machine's memory, or of the limit of its container or unit",
    "cores": "physical cores that this process may use, or the limit of its container or unit if that is lower",
    "state_dir": "`$XDG_STATE_HOME/samovar`, else `~/.local/state/samovar`",
}
"""Defaults that depend on the machine or the user."""
_HEAD: Final = """\
<!-- Written by `make docs` from gateway/config/settings.py. -->

# Configuration · 配置

Every setting is a flag of `samovar serve` (`--queue-limit 20`), an environment variable (`{prefix}QUEUE_LIMIT=20`) and
a line of `samovar.toml` (`queue_limit = 20`), which is read from the working folder or from the path that `--config`
gives. Flags override the environment, which overrides the file. The gateway does not start with an unknown or invalid
setting, and the message names it.
命令行优先于环境变量，环境变量优先于配置文件。

```toml
{example}```

Sizes are in bytes or have a unit: `768 MiB`, `1.5G`. Durations are in seconds or have a unit: `90s`, `15 min`, `12h`,
`7 days`, `2 weeks`. Months and years are not accepted, because their length varies. Separate the items of a list with
commas in flags and in the environment.

| setting | default | allowed | meaning |
|---|---|---|---|
"""


def markdown() -> str:
    """Return the whole page."""
    properties = Settings.model_json_schema()["properties"]
    rows = [
        f"| `{name}` | {_COMPUTED.get(name) or _default(schema)} | {_bounds(name, schema)} | {schema['description']} |"
        for name, schema in properties.items()
    ]
    return _HEAD.format(prefix=PREFIX, example=EXAMPLE) + "\n".join(rows) + "\n"


def _default(schema: Mapping[str, Any]) -> str:
    value = schema.get("default")
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in ("", None, [], {}) else _number(value)


def _bounds(name: str, schema: Mapping[str, Any]) -> str:
    numeric = next((branch for branch in schema.get("anyOf", ()) if "minimum" in branch), schema)
    bounds = (numeric.get("minimum"), numeric.get("maximum"))
    least, most = ("" if bound is None else _bound(name, bound) for bound in bounds)
    if "exclusiveMinimum" in schema:
        least = f"more than {_number(schema['exclusiveMinimum'])}"
    return f"{least} – {most}" if least and most else f"at least {least}" if least else ""


def _bound(name: str, value: float) -> str:
    return f"{int(value) >> 20} MiB" if name in SIZES else _number(value)


def _number(value: object) -> str:
    """Return a default of whole MiB as `256 MiB`, and other numbers without a needless fraction."""
    if isinstance(value, int) and value and value % (1 << 20) == 0 and value > 1 << 20:
        return f"{value >> 20} MiB"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


if __name__ == "__main__":
    sys.stdout.write(markdown())
