"""The commands of docs/operations.md that need a machine of their own: what can be tried without one."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from gateway.config.settings import load
from tests import ROOT
from tests.support.prometheus_server import promtool
from tests.support.readme import blocks

PAGE = (ROOT / "docs" / "operations.md").read_text()
BLOCKS = [block.text for block in blocks(PAGE) if block.language == "sh"]


def block(words: str) -> str:
    """The one that says this."""
    [found] = [text for text in BLOCKS if words in text]
    return found


def run(text: str, folder: Path, **places: Path) -> None:
    """Run a block's lines, with folders of the machine (`etc_redis` is /etc/redis) put elsewhere, and no systemctl."""
    text = "\n".join(line for line in text.splitlines() if "systemctl" not in line and "runuser" not in line)
    for name, place in places.items():
        text = text.replace(f"/{name.replace('_', '/')}", f"\0{place}")
    assert not re.search(r"(?<![\w.\0])/(etc|var|opt|usr)/", text), "nothing of this machine is touched"
    subprocess.run(["sh", "-euc", text.replace("\0", "")], cwd=folder, check=True)


@pytest.mark.parametrize("text", BLOCKS, ids=lambda text: text.splitlines()[0][:40])
def test_a_shell_can_read_the_commands(text: str) -> None:
    found = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def test_what_the_commands_take_from_the_program_is_there() -> None:
    named = set(re.findall(r"/opt/samovar/([\w./-]*\w)", PAGE))
    assert len(named) > 8
    assert [path for path in named if not path.startswith(".venv/") and not (ROOT / path).exists()] == []


def test_no_command_counts_on_the_folder_that_another_step_was_in() -> None:
    for text in BLOCKS:
        if re.search(r"(?<![/\w])(deploy|grafana|\.venv)/", text):
            assert "cd /opt/samovar" in text, text


def test_the_made_up_word_opens_redis_for_the_gateway(tmp_path: Path) -> None:
    settings = tmp_path / "samovar.toml"
    shutil.copy(ROOT / "deploy" / "systemd" / "samovar.toml", settings)
    run(block("requirepass"), tmp_path, etc_redis=tmp_path, etc_samovar=tmp_path)
    [word] = re.findall(r"^requirepass (\S+)$", (tmp_path / "redis.conf").read_text(), re.MULTILINE)
    assert len(word) == 32
    assert load({}, settings).cache_url == f"redis://:{word}@127.0.0.1:6379/0"


def test_prometheus_and_grafana_look_where_the_gateway_and_prometheus_are(tmp_path: Path) -> None:
    prometheus, default, grafana = (tmp_path / name for name in ("prometheus", "default", "grafana"))
    for folder in (prometheus, default, grafana / "provisioning", grafana / "boards"):
        folder.mkdir(parents=True)
    (default / "prometheus").write_text('# a comment\nARGS=""\n')
    run(block("promtool").replace("&& systemctl restart prometheus", ""), ROOT, opt_samovar=ROOT,
        etc_prometheus=prometheus, etc_default=default)  # fmt: skip
    assert (default / "prometheus").read_text() == '# a comment\nARGS="--web.listen-address=127.0.0.1:9090"\n'
    assert "[127.0.0.1:8000]" in (prometheus / "prometheus.yml").read_text()
    assert list((prometheus / "rules").glob("*.yml"))
    written = (prometheus / "prometheus.yml").read_text().replace("/etc/prometheus", str(prometheus))
    (tmp_path / "here.yml").write_text(written)
    assert promtool("check", "config", str(tmp_path / "here.yml")) == ""

    copying = [line for line in block("apt.grafana.com").splitlines() if "grafana/" in line and "keyrings" not in line]
    run("\n".join(copying), ROOT, opt_samovar=ROOT, etc_grafana=grafana, var_lib_grafana_dashboards=grafana / "boards")
    assert "url: http://127.0.0.1:9090" in (grafana / "provisioning" / "datasources" / "samovar.yml").read_text()
    assert list((grafana / "boards").glob("*.json"))


def test_the_images_have_the_backup_where_the_commands_call_it() -> None:
    dockerfile = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    assert "\nCOPY deploy/backup.py /opt/samovar/deploy/\n" in dockerfile.rpartition("\nFROM ")[2]
    for words in ("compose.yaml exec", "kubectl -n samovar exec samovar-0 -- python"):
        assert " python /opt/samovar/deploy/backup.py /var/lib/samovar /var/lib/samovar/backups\n" in block(words)


@pytest.mark.parametrize(
    ("words", "files"),
    [
        ("compose.yaml run", ["cache.key", "conversations.db", "users.db"]),
        ("kind: Pod", ["conversations.db", "users.db"]),
    ],
)
def test_a_restored_volume_holds_the_backup_and_what_was_there_is_put_aside(
    tmp_path: Path, words: str, files: list[str]
) -> None:
    """With the very words of the page, but for the container between tar and tar."""
    backup, state = tmp_path / "backup", tmp_path / "state"
    for folder, age in ((backup, "old"), (state, "new")):
        folder.mkdir()
        for name in files:
            (folder / name).write_text(age)
    (state / "conversations.db-wal").write_text("new")  # which would be played into the old database
    (state / "models").mkdir()
    [(packed, unpack)] = re.findall(r"^tar -C \S+ (.*) \|\n[^|]* -ec '(.*)'$", block(words), re.MULTILINE)
    moved = unpack.replace("/var/lib/samovar", str(state))
    command = f"tar -C {backup} {packed} | sh -ec {shlex.quote(moved)}"
    subprocess.run(["sh", "-euc", command], cwd=tmp_path, check=True)
    assert sorted(path.name for path in state.iterdir()) == sorted([*files, "before", "models"])
    assert {(state / name).read_text() for name in files} == {"old"}
    assert sorted(path.name for path in (state / "before").iterdir()) == sorted([*files, "conversations.db-wal"])


def test_the_pod_that_restores_a_volume_fits_the_manifest() -> None:
    [pod] = [yaml.safe_load(text) for text in re.findall(r"<<'END'\n(.*?)^END$", PAGE, re.MULTILINE | re.DOTALL)]
    kubernetes_validate.validate(pod, "1.34.0", strict=True)
    documents = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "samovar.yaml").read_text())
    [gateway] = [document["spec"] for document in documents if document["kind"] == "StatefulSet"]
    [claim] = gateway["volumeClaimTemplates"]
    pods = gateway["template"]["spec"]
    assert pod["spec"]["containers"][0]["image"] == pods["containers"][0]["image"]
    assert pod["spec"]["securityContext"].items() <= pods["securityContext"].items()
    [volume] = pod["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == f"{claim['metadata']['name']}-samovar-0"
