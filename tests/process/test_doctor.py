"""Findings of `samovar doctor`, and their fixes."""

from __future__ import annotations

import http.server
import os
import socket
import string
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.cli import chat, doctor
from gateway.cli.doctor import Doctor
from gateway.cli.doctor.finding import Finding, Mark
from gateway.cli.doctor.messages import TEXTS
from gateway.cli.language import Phrases, is_chinese
from gateway.config.settings import Settings, load
from tests.support.certificates import make_certificate
from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR, Gateway
from tests.support.tiny_model import CHAT_TEMPLATE, write_tiny_bert, write_tiny_mamba, write_tiny_model
from tests.support.tool_templates import MISTRAL, XML


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> Settings:
    """Settings with which a gateway could start."""
    return load({"model": str(tiny_model), "port": 0, "context": 512, "state_dir": str(tmp_path / "a" / "b")})


@pytest.fixture
def stranger() -> Iterator[int]:
    """The port of a web server that is not Samovar."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def findings(settings: Settings, **changes: object) -> dict[str, Finding]:
    """Return the worst finding of each subject."""
    found: dict[str, Finding] = {}
    marks = list(Mark)
    for finding in Doctor(settings.model_copy(update=changes), Phrases(TEXTS, chinese=False)).findings():
        before = found.get(finding.subject)
        if before is None or marks.index(finding.mark) > marks.index(before.mark):
            found[finding.subject] = finding
    return found


def test_a_machine_that_can_serve_has_no_failure_and_nothing_is_left_behind(settings: Settings) -> None:
    found = findings(settings)
    assert set(found) >= {"model", "languages", "CPU", "cores", "memory", "state_dir", "port"}
    assert [finding for finding in found.values() if finding.mark is Mark.FAIL] == []
    assert (found["model"].mark, found["memory"].mark, found["port"].mark) == (Mark.OK,) * 3
    assert not settings.state_dir.parent.exists()


def test_every_warning_and_failure_has_a_fix(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "build_features", lambda: frozenset({"SSE3"}))
    monkeypatch.setattr(doctor, "available_cores", lambda: 0)
    found = findings(settings, model="none", state_dir=Path("/proc/none"))
    bad = [finding for finding in found.values() if finding.mark is not Mark.OK]
    assert len(bad) >= 3
    assert [finding for finding in bad if not finding.fix] == []


@pytest.mark.parametrize("model", ["no-such-model", "x" * 300, "~no-such-user/x", __file__])
def test_an_invalid_model_is_a_failure(settings: Settings, model: str) -> None:
    finding = findings(settings, model=model)["model"]
    assert finding.mark is Mark.FAIL
    assert "--model" in finding.fix


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('no') }}"])
def test_a_chat_template_that_fails_is_a_failure(settings: Settings, tmp_path: Path, template: str) -> None:
    model = write_tiny_model(tmp_path / "model.gguf", template=template)
    finding = findings(settings, model=str(model))["model"]
    assert (finding.mark, "template" in finding.text) == (Mark.FAIL, True)


@pytest.mark.parametrize("template", ["", CHAT_TEMPLATE], ids=["without template", "with template"])
def test_an_embedding_model_is_a_failure_in_one_line(settings: Settings, tmp_path: Path, template: str) -> None:
    model = write_tiny_bert(tmp_path / "bert.gguf", template=template)
    finding = findings(settings, model=str(model))["model"]
    assert (finding.mark, finding.text) == (
        Mark.FAIL,
        "bert.gguf is a model for embeddings or ranking, not a chat model",
    )


def template_lines(settings: Settings, model: Path, *, chinese: bool = False) -> list[tuple[Mark, str]]:
    """What the report says about the chat template of `model`."""
    say = Phrases(TEXTS, chinese=chinese)
    found = Doctor(settings.model_copy(update={"model": str(model)}), say).findings()
    return [(finding.mark, finding.text) for finding in found if finding.subject == say("template")]


ALTERNATION = (
    "{% for m in messages %}{% if m.role == 'system' or (m.role == 'user') != loop.index0 is even %}"
    "{{ raise_exception('alternate') }}{% endif %}<|im_start|>{{ m.content.split('</think>')[-1] }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% if not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
TEMPLATES: dict[str, tuple[str, list[str]]] = {
    "plain": (CHAT_TEMPLATE, ["system", "systems", "turns", "appends", "tools_changed", "thinking_not"]),
    "tags": (XML, ["system", "systems", "turns", "appends", "<parameter=KEY>", "thinking_not"]),
    "Mistral": (
        MISTRAL.replace("{%- else %}{{ m.content }}", "{%- else %}{{ raise_exception('no system') }}"),
        ["system_changed", "systems_changed", "turns", "appends", "[TOOL_CALLS]", "thinking_not"],
    ),
    "alternation": (
        ALTERNATION,
        ["system_changed", "systems_changed", "turns_changed", "appends_not", "tools_changed", "thinking"],
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_chat_template_can_do_is_reported_line_by_line(settings: Settings, tmp_path: Path, name: str) -> None:
    template, expected = TEMPLATES[name]
    model = write_tiny_model(tmp_path / "model.gguf", template=template)
    lines = template_lines(settings, model)
    assert [mark for mark, _ in lines] == [Mark.OK] * 6
    for (_, line), text in zip(lines, expected, strict=True):
        assert (TEXTS[text][0] == line) if text in TEXTS else (text in line)
    assert len(template_lines(settings, model, chinese=True)) == 6


def test_a_message_that_a_template_omits_is_a_warning(settings: Settings, tmp_path: Path) -> None:
    template = CHAT_TEMPLATE.replace("{{ message.content }}", "{{ message.content if loop.index0 < 3 }}")
    lines = template_lines(settings, write_tiny_model(tmp_path / "model.gguf", template=template))
    assert (Mark.WARN, TEXTS["turns_omitted"][0]) in lines


def test_a_model_whose_state_cannot_be_cached_is_a_warning(settings: Settings, tmp_path: Path) -> None:
    assert findings(settings)["cache"].mark is Mark.OK
    finding = findings(settings, model=str(write_tiny_mamba(tmp_path / "mamba.gguf")))["cache"]
    assert (finding.mark, "recomputed" in finding.text) == (Mark.WARN, True)


def test_a_context_past_the_models_own_is_a_warning(settings: Settings) -> None:
    finding = findings(settings, context=4096)["context"]
    assert (finding.mark, finding.fix) == (Mark.WARN, "set --context 512")


def test_a_build_without_a_feature_of_the_cpu_is_a_warning(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_cpu_flags", lambda: frozenset({"avx2", "fma"}))
    monkeypatch.setattr(doctor, "build_features", lambda: frozenset({"SSE3", "FMA"}))
    finding = findings(settings)["CPU"]
    assert finding.mark is Mark.WARN
    assert "without AVX2," in finding.text


def test_more_cores_than_available_is_a_warning(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_cores", lambda: settings.cores - 1)
    assert findings(settings)["cores"].mark is Mark.WARN


@pytest.mark.parametrize(("available", "mark"), [(1, Mark.FAIL), (500, Mark.WARN), (10_000, Mark.OK)])
def test_too_little_memory_is_a_failure_for_one_engine_and_a_warning_for_all(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, available: int, mark: Mark
) -> None:
    monkeypatch.setattr(doctor, "available_memory", lambda: available << 20)
    assert findings(settings, cores=2, engines=2)["memory"].mark is mark


@pytest.mark.parametrize("kind", ["file", "broken database", "no such device"])
def test_a_state_folder_that_cannot_be_used_is_a_failure(settings: Settings, tmp_path: Path, kind: str) -> None:
    folder = Path("/proc/none") if kind == "no such device" else tmp_path / "state"
    if kind == "file":
        folder.write_text("")
    elif kind == "broken database":
        folder.mkdir()
        (folder / "conversations.db").write_text("nonsense " * 1000)
    finding = findings(settings, state_dir=folder)["state_dir"]
    assert (finding.mark, "--state-dir" in finding.fix) == (Mark.FAIL, True)


def test_little_free_disk_space_is_a_warning(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=(1 << 30) - 1))
    assert findings(settings)["state_dir"].mark is Mark.WARN


def test_a_port_used_by_another_program_is_a_failure(settings: Settings, stranger: int) -> None:
    finding = findings(settings, port=stranger)["port"]
    assert (finding.mark, "--port" in finding.fix) == (Mark.FAIL, True)


def test_an_address_of_another_machine_is_a_failure(settings: Settings) -> None:
    finding = findings(settings, host="192.0.2.7")["port"]
    assert (finding.mark, "--host" in finding.fix) == (Mark.FAIL, True)


def test_a_port_used_by_samovar_is_ok_and_its_memory_is_counted(
    tiny_server: Gateway, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "available_memory", lambda: 1)
    found = findings(settings, port=int(tiny_server.url.rpartition(":")[2]))
    assert (found["port"].mark, tiny_server.url in found["port"].text) == (Mark.OK, True)
    assert found["memory"].mark is Mark.OK


def test_tls_files_are_checked(settings: Settings, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_text("no certificate")
    key.write_text("no key")
    finding = findings(settings, tls_cert=certificate, tls_key=key)["TLS"]
    assert (finding.mark, "--tls-cert" in finding.fix) == (Mark.FAIL, True)
    make_certificate(certificate, key)
    assert findings(settings, tls_cert=certificate, tls_key=key)["TLS"].mark is Mark.OK


def examine(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [*SAMOVAR, "doctor", *flags]
    env = {**CHILD_ENVIRONMENT, "LC_ALL": "C.UTF-8", **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, encoding="utf-8", check=False)


def test_doctor_prints_one_line_per_finding_and_exits_with_the_worst(tmp_path: Path, tiny_model: Path) -> None:
    flags = [f"--model={tiny_model}", "--port=0", "--context=512", f"--state-dir={tmp_path}"]
    well = examine(*flags)
    assert (well.returncode, well.stderr) == (0, "")
    assert all(line.startswith(("ok    ", "warn  ")) for line in well.stdout.splitlines())
    assert "\x1b" not in well.stdout
    ill = examine(*flags, "--model=none", LC_ALL="zh_CN.UTF-8", PYTHONUTF8="1")
    assert ill.returncode == 1
    [line] = [line for line in ill.stdout.splitlines() if line.startswith("fail")]
    assert line.startswith("fail  模型: none is neither a file here")
    assert " → 用 --model 指定" in line


def test_a_terminal_without_arrows_is_no_error(tmp_path: Path) -> None:
    ill = examine("--model=none", "--port=0", f"--state-dir={tmp_path}", LC_ALL="C", PYTHONIOENCODING="ascii")
    assert (ill.returncode, ill.stderr) == (1, "")


def test_a_used_port_is_reported_even_if_nothing_responds(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert findings(settings, port=mute.getsockname()[1])["port"].mark is Mark.FAIL


@pytest.mark.parametrize("table", [TEXTS, chat.TEXTS], ids=["doctor", "chat"])
def test_both_languages_have_the_same_texts_and_fields(table: dict[str, Any]) -> None:
    def fields(text: str) -> set[str | None]:
        return {field for _, field, _, _ in string.Formatter().parse(text)} - {None}

    differing = {name for name, (english, chinese) in table.items() if fields(english) != fields(chinese)}
    assert differing == set()


@pytest.mark.parametrize(
    ("environment", "chinese"),
    [
        ({"LANG": "zh_CN.UTF-8"}, True),
        ({"LC_MESSAGES": "zh_TW", "LANG": "en_US.UTF-8"}, True),
        ({"LC_ALL": "C.UTF-8", "LANG": "zh_CN.UTF-8"}, False),
        ({"LC_ALL": "", "LANG": "zh_CN.UTF-8"}, True),
        ({}, False),
    ],
)
def test_the_locale_chooses_the_language(environment: dict[str, str], chinese: bool) -> None:
    assert is_chinese(environment) is chinese


def test_the_context_is_reported_with_what_limits_it(settings: Settings, tmp_path: Path) -> None:
    long = str(write_tiny_model(tmp_path / "long.gguf", context=1 << 20))
    assert findings(settings)["context"].text == "512 tokens, as set"
    assert "trained for" in findings(settings, context="auto")["context"].text
    assert "16384 tokens" in findings(settings, context="auto", model=long)["context"].text
    least = findings(settings, context="auto", model=long, memory=64 << 20)["context"]
    assert (least.mark, "4096" in least.text, "--memory" in least.fix) == (Mark.WARN, True, True)
    mine = findings(settings, context="auto", model=long, engine_memory=64 << 20)["context"]
    assert (mine.mark, "4096" in mine.text) == (Mark.WARN, True)


def test_a_state_folder_that_this_user_may_not_read_is_a_finding_among_the_others(
    tmp_path: Path, tiny_model: Path
) -> None:
    closed = tmp_path / "closed"
    (closed / "state").mkdir(parents=True)
    command = [*SAMOVAR, "doctor", f"--model={tiny_model}", f"--state-dir={closed / 'state'}", "--port=0"]
    if os.geteuid() == 0:  # without the capabilities with which root reads everything
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    closed.chmod(0o000)
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=CHILD_ENVIRONMENT, check=False)
    finally:
        closed.chmod(0o700)
    assert (done.returncode, done.stderr) == (1, "")
    failed = [line.partition(":")[0].split() for line in done.stdout.splitlines() if line.startswith("fail")]
    assert failed == [["fail", "state_dir"], ["fail", "cache_key"]]
    assert "port: " in done.stdout
