"""Files that are no model, a damaged one or a hostile one: each ends in one line, and never in a crash or a hang."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Model, ModelLoadError, loaderrors
from gateway.models import inspection
from gateway.models.catalogue import ModelNotAvailableError
from gateway.models.inspection import Fault, describe, inspect
from gateway.prompts.chat_template import TemplateError
from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR, Gateway
from tests.support.tiny_model import CHAT_TEMPLATE, write_tiny_model

# In the manner of Qwen3's: a namespace, messages from behind, and an empty thought where thinking is off.
THINKING_TEMPLATE = """\
{%- set state = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == "user" and message.content is string and not message.content.startswith("<tool>") %}
        {%- set state.last = messages|length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content.split("</think>")[-1].lstrip("\\n") %}
    {{- "<|im_start|>" + message.role + "\\n" }}
    {%- if message.role == "assistant" and loop.index0 > state.last %}
        {{- "<think>\\n" + message.reasoning_content|default("")|trim + "\\n</think>\\n\\n" }}
    {%- endif %}
    {{- content + "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- "<think>\\n\\n</think>\\n\\n" }}
    {%- endif %}
{%- endif %}
"""


def with_template(tmp_path: Path, template: str) -> Path:
    """A real model with another template."""
    return write_tiny_model(tmp_path / "model.gguf", template=template)


def fault_of(path: Path) -> Fault:
    """Why the model cannot be served."""
    fault = inspect(path)
    assert isinstance(fault, Fault)
    return fault


def test_a_description_holds_what_the_vocabulary_says(tiny_model: Path, model: Model) -> None:
    found, vocabulary = describe(tiny_model), model.vocabulary
    assert (found.template, found.trained_context, found.has_blocks) == (CHAT_TEMPLATE, 512, True)
    assert (found.tokens.digest, found.tokens.size) == (vocabulary.digest, vocabulary.size)
    for token in range(vocabulary.size):
        assert found.tokens.piece(token) == vocabulary.bare_piece(token)
        assert found.tokens.shown(token) == (vocabulary.bare_piece(token) or vocabulary.text(token).encode())


@pytest.mark.slow
def test_a_gateway_never_loads_llama_cpp(tiny_server: Gateway) -> None:
    tiny_server.post("/v1/responses", {"input": "x", "max_output_tokens": 1}).raise_for_status()
    assert [file for file in tiny_server.process.memory_maps() if "llama" in file.path] == []
    assert [file for engine in tiny_server.engines() for file in engine.memory_maps() if "libllama" in file.path]


@pytest.mark.parametrize(
    ("kind", "error"),
    [("unreadable", ModelLoadError), ("template", TemplateError), ("no chat model", ModelNotAvailableError)],
)
def test_each_fault_is_the_error_that_serving_would_meet(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, kind: str, error: type[Exception]
) -> None:
    monkeypatch.setattr(inspection, "inspect", lambda _: Fault(kind, "why"))  # type: ignore[arg-type]
    with pytest.raises(error, match="why"):
        describe(tiny_model)


def test_a_template_with_thoughts_renders(tmp_path: Path) -> None:
    describe(with_template(tmp_path, THINKING_TEMPLATE))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if %}", "does not compile"),
        ("{{ raise_exception('not\\nfor you') }}", "not for you"),
        ("{{ 'x' * 2 ** 31 }}", "limits on memory or recursion (MemoryError)"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "limits on memory or recursion (RecursionError)"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages[0].content }}", "omits the answer"),
        ("no word of it", "omits the answer"),
    ],
)
def test_a_hostile_template_is_reported_in_one_line(tmp_path: Path, template: str, said: str) -> None:
    fault = fault_of(with_template(tmp_path, template))
    assert fault.kind == "template"
    assert said in fault.reason
    assert "\n" not in fault.reason


@pytest.mark.slow
def test_an_endless_template_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(inspection, "SECONDS", 3.0)
    fault = fault_of(with_template(tmp_path, loops))
    assert (fault.kind, fault.reason) == ("unreadable", "model.gguf took longer than 3 s to open")


@pytest.mark.slow
def test_a_truncated_file_is_unreadable_wherever_it_ends(tmp_path: Path, tiny_model: Path) -> None:
    content, broken = tiny_model.read_bytes(), tmp_path / "broken.gguf"
    for length in (3, 12, 24, 1000, len(content) // 2):
        broken.write_bytes(content[:length])
        fault = fault_of(broken)
        assert (fault.kind, fault.reason.count("\n"), length) == ("unreadable", 0, length)
        assert "broken.gguf" in fault.reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda _: b"", "it is empty"),
        (lambda content: content[:-1], "it is incomplete or damaged: download it again"),
        (lambda content: b"PK" + content[2:], "it is not a GGUF file"),
        (lambda content: content[:4] + struct.pack("<I", 1) + content[8:], "it is GGUF version 1, which llama.cpp no"),
        (lambda content: content[:4] + struct.pack("<I", 9) + content[8:], "reads versions up to 3: update Samovar"),
        (lambda content: content[:4] + struct.pack(">I", 3) + content[8:], "its GGUF version is impossible"),
        (lambda content: content.replace(b"qwen2", b"qwen9"), "does not know its architecture 'qwen9'"),
        (lambda content: content.replace(b"\0qwen2\x15", b"\0qwen9\x15"), "does not know its tokenizer 'qwen9'"),
    ],
    ids=["empty", "truncated", "no GGUF", "version 1", "too new", "big-endian", "architecture", "tokenizer"],
)
def test_each_kind_of_file_that_is_no_model_has_its_own_reason(
    tmp_path: Path, tiny_model: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(change(tiny_model.read_bytes()))
    fault = fault_of(file)
    assert fault.kind == "unreadable"
    assert fault.reason.startswith("model.gguf can't be loaded: ")
    assert reason in fault.reason


def test_an_unknown_reason_is_reported_in_llama_cpps_words(tiny_model: Path) -> None:
    lines = [
        "llama_model_load: error loading model: error loading model vocabulary: key not found in model: x\n",
        "b\n",
    ]
    assert loaderrors.reason(tiny_model, lines) == "key not found in model: x"
    assert loaderrors.reason(tiny_model, []) == "llama.cpp gives no reason"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_a_file_without_a_trained_context_is_refused_by_the_name_of_its_key(tmp_path: Path, command: str) -> None:
    file = write_tiny_model(tmp_path / "model.gguf", context=0)
    arguments = [command, f"--model={file}", "--port=0", f"--state-dir={tmp_path / 'state'}"]
    run = subprocess.run([*SAMOVAR, *arguments], env=CHILD_ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (run.returncode, "Traceback" in run.stderr) == (1, False)
    assert "qwen2.context_length is 0 or missing" in run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_or_random_file_is_one_line_or_still_a_model(tmp_path: Path, tiny_model: Path, seed: int) -> None:
    chance, content = random.Random(seed), bytearray(tiny_model.read_bytes())
    damaged = tmp_path / "damaged.gguf"
    for _ in range(4):
        for _ in range(chance.choice([1, 5, 50])):
            content[chance.randrange(8 if seed % 2 else 0, 6000)] ^= 1 << chance.randrange(8)
        damaged.write_bytes(content)
        assert "\n" not in getattr(inspect(damaged), "reason", "")
    damaged.write_bytes(b"GGUF\3\0\0\0" + chance.randbytes(5000))
    assert fault_of(damaged).kind == "unreadable"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_the_commands_report_a_file_that_is_not_a_model_in_one_line(tmp_path: Path, command: str) -> None:
    file = tmp_path / "fake.gguf"
    file.write_bytes(b"GGUF\3\0\0\0" + os.urandom(2000))
    arguments = [command, f"--model={file}", "--port=0", f"--state-dir={tmp_path / 'state'}"]
    run = subprocess.run([*SAMOVAR, *arguments], env=CHILD_ENVIRONMENT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    lines = [line for line in (run.stdout + run.stderr).splitlines() if "fake.gguf" in line]
    assert len(lines) == 1
    assert "Traceback" not in run.stderr
