"""Dockerfile, compose file and Kubernetes manifest: accepted by their checkers, and true about the gateway."""

from __future__ import annotations

import fnmatch
import importlib.resources
import ipaddress
import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import jsonschema
import kubernetes_validate
import pytest
import yaml

from gateway.app import _handlers
from gateway.cli import serve
from gateway.config.settings import PREFIX, Settings, SettingsError, load
from gateway.transport.paths import PAGES
from tests import ROOT
from tests.support.prometheus_server import promtool
from tests.support.running import Gateway

DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
COMPOSE = ROOT / "deploy" / "compose.yaml"
KUBERNETES = ROOT / "deploy" / "kubernetes" / "samovar.yaml"
RELEASES = ("1.31.0", "1.34.0")
"""Of Kubernetes: the oldest that is looked after, and a newer one."""


def compose() -> Any:
    """The compose file."""
    return yaml.safe_load(COMPOSE.read_text())


def manifest() -> list[Any]:
    """The documents of the Kubernetes manifest."""
    return list(yaml.safe_load_all(KUBERNETES.read_text()))


def only(kind: str, name: str) -> Any:
    """The document of this kind and name."""
    [found] = [document for document in manifest() if (document["kind"], document["metadata"]["name"]) == (kind, name)]
    return found


def ingress() -> list[Any]:
    """The paths that the Ingress leads on."""
    [rule] = only("Ingress", "samovar")["spec"]["rules"]
    paths: list[Any] = rule["http"]["paths"]
    return paths


def lets_in(route: str) -> bool:
    """Whether the Ingress leads a request for it on: a prefix is one of whole names."""
    exact = {path["path"] for path in ingress() if path["pathType"] == "Exact"}
    prefixes = [path["path"] for path in ingress() if path["pathType"] == "Prefix"]
    return route in exact or any(f"{route}/".startswith(f"{prefix}/") for prefix in prefixes)


def compose_schema() -> Any:
    """The Compose Specification's."""
    folder = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    return json.loads((folder / "compose-spec.json").read_text())


def instructions(word: str) -> list[str]:
    """The arguments of all such lines of the Dockerfile, those of continued lines as one."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return re.findall(rf"^{word} +(.*)$", text, re.MULTILINE)


def copied() -> list[str]:
    """What the Dockerfile takes from the checkout."""
    lines = [line for line in instructions("COPY") if not line.startswith("--from")]
    return [path for line in lines for path in line.split()[:-1]]


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    """Its findings in a Dockerfile."""
    found = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert found
    return subprocess.run([found, "-"], input=text, capture_output=True, text=True, check=False)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    assert hadolint(DOCKERFILE.read_text()).stdout == ""
    assert hadolint(DOCKERFILE.read_text() + "RUN cd /tmp && sudo apt-get install curl\n").returncode != 0


def test_the_compose_file_fits_its_schema() -> None:
    schema = compose_schema()
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(compose())] == []
    broken = compose()
    broken["services"]["samovar"]["memory_limit"] = "4g"
    assert list(validator.iter_errors(broken))


@pytest.mark.parametrize("release", RELEASES)
def test_the_manifest_fits_the_schemas_of_kubernetes(release: str) -> None:
    documents = manifest()
    for document in documents:
        kubernetes_validate.validate(document, release, strict=True)
    documents[1]["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(documents[1], release, strict=True)


def test_the_manifest_speaks_of_nothing_that_it_does_not_have() -> None:
    labels = [only("StatefulSet", "samovar"), only("Deployment", "redis")]
    pods = [document["spec"]["template"]["metadata"]["labels"] for document in labels]
    for document in manifest():
        if document["kind"] == "Service":
            assert any(document["spec"]["selector"].items() <= pod.items() for pod in pods)
    spec = only("StatefulSet", "samovar")["spec"]
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]} | {"state"}
    [container] = spec["template"]["spec"]["containers"]
    for mounted in (container, *spec["template"]["spec"]["initContainers"]):
        assert {mount["name"] for mount in mounted["volumeMounts"]} == volumes
    for path in ingress():
        service = path["backend"]["service"]
        assert only("Service", service["name"])["spec"]["ports"][0]["name"] == service["port"]["name"] == "http"


def test_services_give_the_pods_no_variables_that_the_gateway_would_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    services = [document for document in manifest() if document["kind"] == "Service"]
    named = [document["metadata"]["name"] for document in services if document["spec"].get("clusterIP") != "None"]
    assert named == ["samovar", "redis"]
    for name in named:  # as Kubernetes does it
        monkeypatch.setenv(f"{name.upper().replace('-', '_')}_SERVICE_HOST", "10.96.0.1")
    with pytest.raises(SettingsError, match="SAMOVAR_SERVICE_HOST"):
        load({})
    pods = [document["spec"]["template"]["spec"] for document in manifest() if "template" in document.get("spec", {})]
    assert [pod["enableServiceLinks"] for pod in pods] == [False, False]


def test_the_ingress_lets_in_all_that_users_need_and_not_the_metrics() -> None:
    routes = {
        *_handlers(Mock(), Mock(), Mock()),
        *PAGES,
        "/v1/responses",
        "/v1/chat/completions",
        "/static/page.js",
        "/metrics/",
    }
    hidden = {route for route in routes if not lets_in(route)}
    assert hidden == {"/metrics", "/metrics/", "/monitor", "/monitor/metrics"}


def test_only_the_ingress_controller_and_prometheus_reach_the_gateways_as_proxies_are_believed() -> None:
    spec = only("NetworkPolicy", "samovar")["spec"]
    pod = only("StatefulSet", "samovar")["spec"]["template"]["metadata"]["labels"]
    assert spec["podSelector"]["matchLabels"].items() <= pod.items()
    [rule] = spec["ingress"]
    [source] = rule["from"]
    assert source["namespaceSelector"]["matchExpressions"][0]["values"] == ["ingress-nginx", "monitoring"]


def test_whoever_stops_a_gateway_waits_until_its_answers_have_ended() -> None:
    needed = serve.GRACE_SECONDS + serve.LAST_SECONDS
    pod = only("StatefulSet", "samovar")["spec"]["template"]["spec"]
    pause = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > needed + pause
    assert int(compose()["services"]["samovar"]["stop_grace_period"].removesuffix("s")) > needed


def test_the_settings_that_the_files_give_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "samovar.toml"
    file.write_text(only("ConfigMap", "samovar")["data"]["samovar.toml"])
    assert load({}, file).host == "0.0.0.0"  # noqa: S104 - compared, not bound
    file.write_text((ROOT / "deploy" / "systemd" / "samovar.toml").read_text())
    assert load({}, file).state_dir == Path("/var/lib/samovar")
    given = {**compose()["services"]["samovar"]["environment"], **image_environment()}
    for name, value in given.items():
        if name.startswith("SAMOVAR_"):
            monkeypatch.setenv(name, re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value))
    settings = load({})
    assert settings.cache_url == "redis://redis:6379/0"
    assert settings.allowed_hosts == ["localhost", "samovar"]
    assert set(given) - {"PATH", "PYTHONDONTWRITEBYTECODE", "XDG_DATA_HOME", "XDG_STATE_HOME"} <= {
        f"SAMOVAR_{name.upper()}" for name in Settings.model_fields
    }


def test_what_fits_the_compose_file_to_a_machine_is_explained_and_no_setting_of_a_gateway_outside() -> None:
    names = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    assert names == set(re.findall(r"^#     (\w+)=", COMPOSE.read_text(), re.MULTILINE))
    assert not any(name.startswith(PREFIX) for name in names)


def test_a_proxy_on_the_host_has_the_address_that_the_compose_file_names() -> None:
    [subnet] = compose()["networks"]["front"]["ipam"]["config"]
    assert f"GATEWAY_PROXIES={subnet['gateway']} " in COMPOSE.read_text()
    assert ipaddress.ip_address(subnet["gateway"]) in ipaddress.ip_network(subnet["subnet"])


def image_environment() -> dict[str, str]:
    """What the image's ENV says."""
    [line] = instructions("ENV")
    return dict(word.split("=", 1) for word in shlex.split(line))


def test_the_image_runs_under_an_arbitrary_user_id_in_group_0() -> None:
    environment = image_environment()
    folder = environment["SAMOVAR_STATE_DIR"]
    assert f"{environment['XDG_STATE_HOME']}/samovar" == f"{environment['XDG_DATA_HOME']}/samovar" == folder
    [made] = [line for line in instructions("RUN") if "install -d" in line]
    assert f"install -d -m 770 -o samovar -g 0 {folder}" in made
    assert instructions("VOLUME") == [folder]


def test_the_containers_have_no_rights_that_they_do_not_need() -> None:
    assert instructions("USER") == ["10001:10001"]
    for name, service in compose()["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("read_only") or name == "grafana"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    assert compose()["networks"]["back"]["internal"] is True
    redis = compose()["services"]["redis"]
    # Not root: its entrypoint would begin with what it may not do.
    assert (redis["user"], redis["tmpfs"]) == ("999:1000", ["/data:uid=999,gid=1000"])
    assert not any("cap_add" in service for service in compose()["services"].values())
    for document in (only("StatefulSet", "samovar"), only("Deployment", "redis")):
        pod = document["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in (*pod["containers"], *pod.get("initContainers", [])):
            context = container["securityContext"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert container["resources"]["limits"].keys() == {"cpu", "memory"}


def test_what_the_compose_file_mounts_is_there() -> None:
    volumes = [volume for service in compose()["services"].values() for volume in service.get("volumes", [])]
    mounted = [volume.partition(":")[0] for volume in volumes if volume.startswith(".")]
    assert len(mounted) == 4
    assert [path for path in mounted if not (COMPOSE.parent / path).exists()] == []
    [prometheus] = [volume for volume in volumes if volume.endswith("/etc/prometheus/rules:ro")]
    assert list((COMPOSE.parent / prometheus.partition(":")[0]).glob("*.yml"))


def test_prometheus_accepts_its_configuration_and_asks_the_gateway_itself(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "prometheus.yml").read_text()
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(text.replace("/etc/prometheus/rules", str(ROOT / "grafana" / "rules")))
    assert promtool("check", "config", str(configuration)) == ""
    [job] = yaml.safe_load(text)["scrape_configs"]
    [target] = job["static_configs"][0]["targets"]
    assert target.partition(":")[0] in compose()["services"]


def test_what_the_image_is_made_of_reaches_its_build() -> None:
    ignored = [line for line in (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines() if line]
    let_through = {line[1:] for line in ignored if line.startswith("!")}
    assert set(copied()) == let_through
    assert all((ROOT / path).exists() for path in let_through)
    assert not any(fnmatch.fnmatch(path, ".venv*") for path in let_through)


@pytest.mark.slow
def test_the_package_holds_the_chat_page_and_all_rooms(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "cache", "engine", "gateway"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(tracked.stdout.split()) <= files
    assert not [name for name in files if name.startswith(("tests", "benchmarks", "deploy"))]


@pytest.mark.slow
def test_the_images_health_check_reports_whether_requests_are_accepted(tiny_server: Gateway) -> None:
    [line] = instructions("HEALTHCHECK")
    command = json.loads(line.partition(" CMD ")[2])
    script = command[2].replace("127.0.0.1:8000", tiny_server.url.removeprefix("http://"))

    def healthy() -> bool:
        return subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0

    assert healthy()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        pod = only("StatefulSet", "samovar")["spec"]["template"]["spec"]
        path = pod["containers"][0][probe]["httpGet"]["path"]
        assert httpx.get(tiny_server.url + path, timeout=10).status_code == 200
    tiny_server.stop()
    assert not healthy()
