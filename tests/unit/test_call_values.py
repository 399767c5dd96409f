"""Values between tags are converted to JSON once, however often their text contains the closing tag."""

from __future__ import annotations

import json

import pytest

from gateway.protocol import call_values
from gateway.protocol.call_format import JsonType
from gateway.protocol.call_values import ValueReader

STOP = "</parameter>"


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_each_closing_tag_within_a_value_is_tried_once(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    type_ = call_values._type

    def counted(text: str) -> JsonType | None:
        tried.append(len(text))
        return type_(text)

    monkeypatch.setattr(call_values, "_type", counted)
    value = json.dumps([f"a{STOP}b"] * 50)
    text, held, converted = f"{value}{STOP}rest", "", ""
    reader = ValueReader(None, STOP)
    for at in range(0, len(text), step):
        held += text[at : at + step]
        if not reader.ended:
            new, held = reader.feed(held)
            converted += new
    assert (converted, held) == (value, "rest")
    assert len(set(tried)) == 51
    assert len(tried) <= 2 * 51
