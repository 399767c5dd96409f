"""Settings from flags, environment and file, and the error messages for invalid ones."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import TypeAdapter

from gateway.cli import Command, commands, main
from gateway.cli.arguments import Parser
from gateway.config.durations import parse_duration
from gateway.config.machine import schedulable_cpus, total_memory
from gateway.config.setting_types import Bytes
from gateway.config.settings import Settings, SettingsError, load
from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR


@pytest.fixture(autouse=True)
def empty_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without samovar.toml and an environment without SAMOVAR_*."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SAMOVAR_")]:
        monkeypatch.delenv(name)
    return tmp_path


def refusal(**flags: Any) -> str:
    """Return the error message for invalid flags."""
    with pytest.raises(SettingsError) as caught:
        load(flags)
    return str(caught.value)


def test_flags_go_over_environment_over_file_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load({}).port == 8000
    (tmp_path / "samovar.toml").write_text("port = 1001\nqueue_limit = 11\ncontext = 111\n")
    assert (load({}).port, load({}).queue_limit) == (1001, 11)
    monkeypatch.setenv("SAMOVAR_PORT", "1002")
    monkeypatch.setenv("SAMOVAR_QUEUE_LIMIT", "12")
    settings = load({"port": "1003"})
    assert (settings.port, settings.queue_limit, settings.context) == (1003, 12, 111)
    assert settings.max_output_tokens == 1024


def test_another_file_can_be_named_and_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "samovar.toml").write_text("port = 1001\n")
    (tmp_path / "other.toml").write_text('instructions = "说中文"\n', encoding="utf-8")
    settings = load({}, tmp_path / "other.toml")
    assert (settings.port, settings.instructions) == (8000, "说中文")
    for missing, reason in (
        ("none.toml", "--config: there is no file"),
        ("x" * 300, "can't be read: File name too long"),
    ):
        with pytest.raises(SettingsError, match=reason):
            load({}, Path(missing))


@pytest.mark.parametrize(
    ("where", "near"), [("environment SAMOVAR_QUEUE_LIMITS", "queue_limit"), ("samovar.toml", "queue_limit")]
)
def test_an_unknown_name_is_refused_with_a_near_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, near: str
) -> None:
    if where == "samovar.toml":
        (tmp_path / "samovar.toml").write_text("queue_limits = 5\n")
    else:
        monkeypatch.setenv("SAMOVAR_QUEUE_LIMITS", "5")
    assert refusal() == f"queue_limits: no such setting ({where}); did you mean {near}?"


def test_a_name_like_no_other_is_refused_without_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMOVAR_ZZZ", "1")
    assert refusal() == "zzz: no such setting (environment SAMOVAR_ZZZ)"


def test_an_unknown_flag_is_refused_with_a_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--queue-limits=5"]) == 2
    said = capsys.readouterr().err
    assert said == "samovar: --queue-limits: no such setting (command line); did you mean --queue-limit?\n"


def test_a_file_that_is_no_toml_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "samovar.toml").mkdir()
    assert refusal() == "samovar.toml: can't be read: Is a directory"
    (tmp_path / "samovar.toml").rmdir()
    (tmp_path / "samovar.toml").write_text("port: 5\n")
    assert refusal().startswith("samovar.toml: ")


def test_a_file_saved_by_notepad_is_read_or_its_encoding_is_named(tmp_path: Path) -> None:
    text = 'queue_limit = 11\r\ninstructions = "用中文回答。"\r\n'
    file = tmp_path / "samovar.toml"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert (load({}).queue_limit, load({}).instructions) == (11, "用中文回答。")
    for data in (text.encode("utf-16"), b"\xfe\xff" + text.encode("utf-16-be")):
        file.write_bytes(data)
        assert refusal() == "samovar.toml: the encoding is UTF-16; save the file as UTF-8"
    file.write_bytes(b'instructions = "caf\xe9"')
    assert refusal() == "samovar.toml: byte 19 is not UTF-8; save the file as UTF-8"


@pytest.mark.parametrize(
    ("text", "size"),
    [("512 MiB", 512 << 20), ("512mb", 512 << 20), ("1.5G", 3 << 29), ("4096", 4096), ("2 KiB", 2048), ("1T", 1 << 40)],
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    assert TypeAdapter(Bytes).validate_python(text) == size


DURATIONS = [name for name, field in Settings.model_fields.items() if field.annotation is float]
"""Every setting that is no whole number is a duration."""


def test_every_setting_in_seconds_takes_the_forms_of_a_duration(tmp_path: Path) -> None:
    assert {"idle_unload", "queue_timeout", "resume_grace", "cache_ttl"} <= set(DURATIONS)
    for name in DURATIONS:
        for text, seconds in (("300", 300), ("61.5", 61.5), ("90s", 90), ("15 min", 900), ("2 Hours ", 7200)):
            assert getattr(load({name: text}), name) == seconds
        for value in ("3 months", "5 minuten", "soon", "-5", "nan", "inf", "", "1h30m", "５"):
            assert refusal(**{name: value}).startswith(f"{name}: must be seconds (300, 1.5) or a number with s, min,")
        (tmp_path / "samovar.toml").write_text(f"{name} = true\n")
        assert refusal().startswith(f"{name}: must be seconds")
        (tmp_path / "samovar.toml").write_text(f'{name} = "75 s"\n')
        assert getattr(load({}), name) == 75
        (tmp_path / "samovar.toml").unlink()


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), (".5", 0.5), ("1 day", 86_400), ("7 days", 604_800), ("2w", 1_209_600)]
)
def test_a_duration_may_be_bare_seconds_or_days_and_weeks(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_a_word_for_a_choice_of_the_programs_own_is_kept() -> None:
    settings = load({"engine_memory": "auto", "engines": "auto"})
    assert (settings.engine_memory, settings.engines) == ("auto", "auto")
    assert 1 <= settings.engine_count <= settings.cores


def test_lists_and_truths_are_read_from_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMOVAR_ALLOWED_HOSTS", "a.example, b.example")
    monkeypatch.setenv("SAMOVAR_ALLOW_ANONYMOUS", "true")
    settings = load({"host": "::"})
    assert settings.allowed_hosts == ["a.example", "b.example"]
    assert settings.url == "http://127.0.0.1:8000"


def test_the_words_of_a_setting_are_named_by_its_refusal_and_have_no_case() -> None:
    assert load({"conversation_ttl": "Never", "engine_memory": "AUTO"}).conversation_ttl == "never"
    assert "or never, not 'forever'" in refusal(conversation_ttl="forever")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"port": "70000"}, "port: Input should be less than or equal to 65535, not '70000'"),
        ({"port": "http"}, "port: "),
        ({"cores": "0"}, "cores: "),
        ({"cores": str(schedulable_cpus() + 1)}, "cores: this process may use"),
        ({"cores": "1", "engines": "2"}, "engines: must be between 1 and cores, which is 1"),
        ({"engine_memory": "much"}, "engine_memory: must be a size such as 768 MiB, or auto, not 'much'"),
        ({"engine_memory": "-5"}, "engine_memory: "),
        ({"engine_memory": "0"}, "engine_memory: must be at least 64 MiB, not 0"),
        ({"memory": "0"}, "memory: must be at least 64 MiB, not 0"),
        ({"memory": "100000 GiB"}, f"memory: must be at most {total_memory() >> 20} MiB, the memory that exists here"),
        ({"engine_memory": "100000G"}, f"engine_memory: must be at most {total_memory() >> 20} MiB, the memory that "),
        ({"user_storage": "much"}, "user_storage: must be a size such as 768 MiB, not 'much'"),
        ({"user_storage": "500K"}, "user_storage: must be at least 1 MiB, not 512000"),
        ({"conversation_ttl": "forever"}, "conversation_ttl: must be seconds (300, 1.5) or a number with s, min, h, "),
        ({"conversation_ttl": "30s"}, "conversation_ttl: must be at least 60, not 30.0"),
        ({"context": "5"}, "context: "),
        ({"queue_limit": "-1"}, "queue_limit: "),
        ({"queue_timeout": "nan"}, "queue_timeout: "),
        ({"allow_anonymous": "perhaps"}, "allow_anonymous: "),
        ({"tls_cert": "cert.pem"}, "tls_cert: requires tls_key"),
        ({"tls_cert": "cert.pem", "tls_key": "key.pem"}, "tls_cert: there is no file cert.pem"),
        ({"tls_cert": "x" * 300, "tls_key": "key.pem"}, "tls_cert: there is no file xxx"),
        ({"state_dir": "~no-such-user/x"}, "state_dir: must be a path"),
    ],
)
def test_an_impossible_value_is_refused_by_the_settings_name(flags: dict[str, str], reason: str) -> None:
    said = refusal(**flags)
    assert said.startswith(reason)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, ""),
        (["serve", "--help"], 0, ""),
        ([], 2, "samovar: the following arguments are required: COMMAND"),
        (["sreve"], 2, "samovar: argument COMMAND: invalid choice: 'sreve'"),
        (["serve", "--port"], 2, "samovar: argument --port: expected one argument"),
        (["serve", "somewhere"], 2, "samovar: somewhere: no such setting"),
        (["chat", "--queue-timeout", "soon"], 2, "samovar: queue_timeout: "),
        (["serve", "--model", "no-such-model"], 1, "samovar: model: no-such-model is neither a file"),
        (["serve", "--state-dir", "x" * 300], 1, f"samovar: {'x' * 300}/cache.key: File name too long; run as"),
        (["doctor", "--state-dir", "x" * 300], 1, f"samovar: {'x' * 300}/conversations.db: File name too long; run as"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_its_own_exit_code(
    tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    command = [*SAMOVAR, *arguments, *(["--port=0"] if code == 1 else [])]
    run = subprocess.run(command, cwd=tmp_path, env=CHILD_ENVIRONMENT, capture_output=True, text=True, check=False)
    assert run.returncode == code, run.stderr
    assert run.stderr.startswith(said)
    assert run.stderr.count("\n") == bool(code)
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("command", commands())
def test_the_settings_that_a_command_reads_are_flags_of_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    help_text = capsys.readouterr().out
    expected = set(commands()[command].settings)
    shown = {name for name in Settings.model_fields if f"--{name.replace('_', '-')} " in help_text}
    assert shown == expected >= {"state_dir"}
    assert "--config" in help_text
    if command in ("serve", "doctor"):
        assert shown == set(Settings.model_fields)


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in commands())], ids=" ".join)
def test_help_does_not_wait_for_the_engine(arguments: list[str]) -> None:
    script = "import sys; sys.modules['llama_cpp'] = None; from gateway.cli import main; main(sys.argv[1:])"
    run = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


HOMELESS = """
import os, pwd, sys
def unknown(_): raise KeyError
pwd.getpwuid = pwd.getpwnam = unknown
from gateway.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("flags", [[], ["--state-dir=s"]], ids=["state_dir", "cache_key"])
@pytest.mark.parametrize("command", ["serve", "chat", "doctor", "models list", "keys list", "tune", "bench", "top"])
def test_without_a_home_folder_the_message_names_the_setting(tmp_path: Path, command: str, flags: list[str]) -> None:
    environment = {name: value for name, value in CHILD_ENVIRONMENT.items() if name not in ("HOME", "XDG_STATE_HOME")}
    run = subprocess.run(
        [sys.executable, "-c", HOMELESS, *command.split(), *flags],
        cwd=tmp_path, env={**environment, "SAMOVAR_CACHE_KEY": "~/cache.key" if flags else ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    expected = (
        "samovar: cache_key: must be a key or a path; this user has no home folder\n"
        if flags
        else "samovar: state_dir: this user has no home folder; name a folder with state_dir, or set XDG_STATE_HOME\n"
    )
    assert (run.returncode, run.stdout, run.stderr) == (2, "", expected)


@pytest.fixture
def kettle(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A command with its own arguments, which returns the number of cups as exit code."""

    def arguments(parser: Parser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        boil = actions.add_parser("boil", help="boil water")
        boil.add_argument("model")  # named like a setting
        boil.add_argument("--cups", type=int, default=1)

    def run(settings: Settings, options: Namespace) -> int:
        assert (options.model, settings.model, settings.state_dir) == ("enamel", "tea", Path("/s"))
        return int(options.cups)

    module = ModuleType("gateway.cli.kettle")
    vars(module).update(arguments=arguments, run=run, SETTINGS=("model",))
    monkeypatch.setitem(sys.modules, "gateway.cli.kettle", module)
    known = {**commands(), "kettle": Command("kettle", "boils", has_arguments=True)}
    monkeypatch.setattr("gateway.cli.commands", lambda: known)
    return module


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["boil", "--model=tea", "enamel", "--cups", "3", "--state-dir=/s"], 3, ""),
        (["--state-dir=/s", "--model=tea", "boil", "enamel"], 1, ""),
        (["boil", "enamel", "--cusp=3"], 2, "samovar: --cusp: no such setting (command line); did you mean --cups?\n"),
        (["boil", "enamel", "--port=1"], 2, "samovar: --port: no such setting (command line)\n"),
        (["boil", "enamel", "tin"], 2, "samovar: tin: no such setting (command line)\n"),
        (["boil", "enamel", "--config=none.toml"], 2, "samovar: --config: there is no file none.toml\n"),
    ],
)
@pytest.mark.usefixtures("kettle")
def test_a_command_has_arguments_besides_its_settings(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kettle", *arguments]) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("arguments", [[], ["boil"], ["boil", "enamel", "--cups", "many"], ["spoil"]], ids=" ".join)
@pytest.mark.usefixtures("kettle")
def test_wrong_arguments_of_a_command_are_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["kettle", *arguments])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("samovar: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", ["serve", "doctor"])
@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("--host=192.0.2.7", "host: 192.0.2.7 is not loopback"),
        ("--trusted-proxies=127.0.0.1", "trusted_proxies: a proxy"),
    ],
)
def test_serving_other_machines_without_keys_must_be_allowed_explicitly(
    command: str, setting: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, setting]) == 2
    assert expected in capsys.readouterr().err


def test_who_may_be_served_is_no_business_of_a_chat(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--host", "127.0.0.2", "--port", "9"]) == 1
    load({"host": "192.0.2.7", "allow_anonymous": True}).check_exposure(has_keys=False)
    load({"host": "192.0.2.7"})
    assert "no gateway responds" in capsys.readouterr().err


def test_aliases_are_pairs_in_flags_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load({"aliases": "gpt-4o-mini=a, *=a"}).aliases == {"gpt-4o-mini": "a", "*": "a"}
    monkeypatch.setenv("SAMOVAR_ALIASES", "x=b")
    assert load({}).aliases == {"x": "b"}
    for wrong in ("x", "x=", "=b"):
        with pytest.raises(SettingsError, match=r"aliases: must be pairs such as gpt-4o-mini="):
            load({"aliases": wrong})


def test_offered_instructions_are_json_in_flags_and_a_table_in_the_file(tmp_path: Path) -> None:
    assert load({"offered_instructions": '{"Letter": "Be polite."}'}).offered_instructions == {"Letter": "Be polite."}
    file = tmp_path / "samovar.toml"
    file.write_text('[offered_instructions]\nLetter = "Be polite."\n')
    assert load({}, file).offered_instructions == {"Letter": "Be polite."}
    with pytest.raises(SettingsError, match="offered_instructions: must be texts by name"):
        load({"offered_instructions": "Letter=Be polite."})


@pytest.mark.parametrize(("value", "path"), [("", ""), ("/", ""), ("ai", "/ai"), ("/ai/", "/ai"), ("/a/b/", "/a/b")])
def test_a_root_path_has_a_leading_slash_and_no_trailing_one(value: str, path: str) -> None:
    assert load({"root_path": value}).root_path == path


def test_the_context_is_a_number_or_auto() -> None:
    assert load({"context": "Auto"}).context == "auto"
    assert load({"context": "8192"}).context == 8192
    for wrong, reason in (("63", "must be at least 64"), ("many", "must be a number of tokens, or auto")):
        with pytest.raises(SettingsError, match=f"context: {reason}"):
            load({"context": wrong})
