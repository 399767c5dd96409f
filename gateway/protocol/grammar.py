"""GBNF, llama.cpp's notation of grammars: rules by name, and those that all JSON needs."""

from __future__ import annotations

from typing import Final

from gateway.errors import InvalidRequestError

MAX_GRAMMAR: Final = 64 << 10
"""Bytes of a finished grammar."""

# Each with the rules that it needs. `ws` is as in llama.cpp's own grammars: room for a pretty print, and no endless
# space. Numbers end, or a small model would count for ever.
_COMMON: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "ws": (r'| " " | "\n" [ \t]{0,20}', ()),
    "char": (r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})', ()),
    "string": (r'"\"" char* "\""', ("char",)),
    "integer": ('"-"? ("0" | [1-9] [0-9]{0,15})', ()),
    "number": ('integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?', ("integer",)),
    "boolean": ('"true" | "false"', ()),
    "null": ('"null"', ()),
    "member": ('string ws ":" ws value', ("string", "ws", "value")),
    "object": ('"{" ws (member ws ("," ws member ws)*)? "}"', ("ws", "member")),
    "array": ('"[" ws (value ws ("," ws value ws)*)? "]"', ("ws", "value")),
    "value": (
        "object | array | string | number | boolean | null",
        ("object", "array", "string", "number", "boolean", "null"),
    ),
    "year": ('"000" [1-9] | "00" [1-9] [0-9] | "0" [1-9] [0-9]{2} | [1-9] [0-9]{3}', ()),
    "fourth": ('"0" [48] | [2468] [048] | [13579] [26]', ()),
    "date": (
        (
            'year "-" (("0" [13578] | "1" [02]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])'
            ' | ("0" [469] | "11") "-" ("0" [1-9] | [12] [0-9] | "30") | "02-" ("0" [1-9] | "1" [0-9] | "2" [0-8]))'
            ' | ([0-9]{2} fourth | fourth "00") "-02-29"'
        ),
        ("year", "fourth"),
    ),
    "time": (
        '([01] [0-9] | "2" [0-3]) (":" [0-5] [0-9]){2} ("." [0-9]{1,6})? ("Z" | [-+] [01] [0-9] ":" [0-5] [0-9])',
        (),
    ),
    "date-time": ('date "T" time', ("date", "time")),
    "count": ("[1-9] [0-9]{0,2}", ()),
    "clock": ('count ("H" (count "M" (count "S")?)? | "M" (count "S")? | "S")', ("count",)),
    "duration": ('"P" (count "D" ("T" clock)? | "T" clock | count "W")', ("count", "clock")),
    "label": ("[a-zA-Z0-9] ([a-zA-Z0-9-]{0,30} [a-zA-Z0-9])?", ()),
    "hostname": ('label ("." label){0,4}', ("label",)),
    "email": (
        '[a-zA-Z0-9]{1,16} ([._+-] [a-zA-Z0-9]{1,16}){0,3} "@" label ("." label){0,2} "." [a-z]{2,12}',
        ("label",),
    ),
    "octet": ('"25" [0-5] | "2" [0-4] [0-9] | "1" [0-9]{2} | [1-9]? [0-9]', ()),
    "ipv4": ('octet ("." octet){3}', ("octet",)),
    "ipv6": ('[0-9a-fA-F]{1,4} (":" [0-9a-fA-F]{1,4}){7}', ()),
    "pchar": ("[a-zA-Z0-9._~!$&'()*+,;=:@-]", ()),
    "uri": (
        '[a-z] [a-z0-9+.-]{0,15} "://" hostname ("/" pchar{0,64}){0,8} ("?" pchar{0,128})? ("#" pchar{0,64})?',
        ("hostname", "pchar"),
    ),
    "uuid": ('[0-9a-fA-F]{8} ("-" [0-9a-fA-F]{4}){3} "-" [0-9a-fA-F]{12}', ()),
}

FORMATS: Final = {
    "date": (10, 10), "time": (9, 21), "date-time": (20, 32), "duration": (3, 20), "uuid": (36, 36),
    "hostname": (1, 164), "email": (6, 179), "ipv4": (7, 15), "ipv6": (15, 39), "uri": (5, 902),
}  # fmt: skip
"""Formats of strings that are rules above, with the fewest and most characters of what they write."""


_ESCAPES: Final = {code: f"\\x{code:02X}" for code in range(0x20)} | {
    ord("\\"): "\\\\", ord('"'): '\\"', ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"
}  # fmt: skip


def literal(text: str) -> str:
    """`text` as a grammar writes it."""
    return f'"{text.translate(_ESCAPES)}"'


class Grammar:
    """The rules of one grammar as they are gathered. `param` names the field of the request that they come from."""

    def __init__(self, param: str) -> None:
        """Begin without rules."""
        self._param = param
        self._rules: dict[str, str] = {}
        self._names = 0
        self._size = 0

    def text(self, root: str) -> str:
        """The whole grammar for answers that fit the rule body `root`. Raises InvalidRequestError."""
        self.define("root", root)
        return "".join(f"{name} ::= {body}\n" for name, body in self._rules.items())

    def name(self) -> str:
        """A name that no rule has yet."""
        self._names += 1
        return f"r{self._names}"

    def rule(self, body: str) -> str:
        """The name of a new rule. Raises InvalidRequestError."""
        return self.define(self.name(), body)

    def define(self, name: str, body: str) -> str:
        """Give `name` its body. Raises InvalidRequestError."""
        self._rules[name] = body
        self._size += len(f"{name} ::= {body}\n".encode())
        if self._size > MAX_GRAMMAR:
            raise InvalidRequestError(
                f"{self._param}: the grammar made of it is over {MAX_GRAMMAR} bytes", param=self._param
            )
        return name

    def common(self, name: str) -> str:
        """A rule of JSON: `value`, `object`, `array`, `string`, …, `ws`, or a string format without its quotes."""
        if name not in self._rules:
            body, needs = _COMMON[name]
            self.define(name, body)
            for need in needs:
                self.common(need)
        return name
