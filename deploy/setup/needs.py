"""What this machine lacks before anything can be installed, and the one line that brings it."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROBE = "#include <thread>\nint main() { return 0; }\n"
APT_LISTS = Path("/var/lib/apt/lists")
FONTS = Path("/usr/share/fonts")
PROGRAMS = {
    "redis-server": "redis-server",
    "promtool": "prometheus",
    "haproxy": "haproxy",
    "nginx": "nginx",
    "systemd-analyze": "systemd",
}
"""What the tests run, and the package that brings it."""


def to_install() -> list[str]:
    """Debian packages without which the virtual environment cannot be made and filled."""
    missing = []
    if importlib.util.find_spec("ensurepip") is None:  # Debian keeps it out of python3; `venv` alone is there
        system = Path("/usr/bin/python3").resolve() == Path(sys.executable).resolve()
        missing.append("python3-venv" if system else f"python3.{sys.version_info.minor}-venv")
    if not compiles():
        missing.append("g++")  # brings gcc and the C library's headers along
    return missing


def compiles() -> bool:
    """Whether a C++ program can be built: a compiler without the C library's headers is common, so it is tried."""
    named = os.environ.get("CXX")
    compilers = [shlex.split(compiler) for compiler in ([named] if named else ["c++", "g++", "clang++"])]
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["-x", "c++", "-", "-o", f"{folder}/probe"]
        return any(shutil.which(command[0]) and succeeds([*command, *arguments], PROBE) for command in compilers)


def succeeds(command: list[str], text: str = "") -> bool:
    """Whether a command that is fed the text ends well; what it prints is not shown."""
    return subprocess.run(command, input=text.encode(), capture_output=True, check=False).returncode == 0


def to_test() -> list[str]:
    """Debian packages that the tests need besides: real servers, a browser, and letters for Chinese screenshots."""
    missing = [package for program, package in PROGRAMS.items() if not has_program(program)]
    if not shutil.which("chromium"):
        missing.append("chromium-browser" if is_ubuntu() else "chromium")  # there it brings the snap `chromium`
    if not has_chinese_font():
        missing.append("fonts-noto-cjk")
    return missing


def has_program(name: str) -> bool:
    """Whether a program is there; Debian does not put the administrators' folder on everybody's PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is not None


def has_chinese_font() -> bool:
    """Whether some font has Chinese characters."""
    if shutil.which("fc-list"):
        return bool(subprocess.run(["fc-list", ":lang=zh"], capture_output=True, check=False).stdout.strip())
    return any(FONTS.rglob("*CJK*"))


def is_ubuntu() -> bool:
    """Whether this is Ubuntu, where some packages have other names."""
    release = Path("/etc/os-release")
    return release.exists() and "ID=ubuntu" in release.read_text().splitlines()


def apt_commands(packages: list[str], prefix: list[str]) -> list[list[str]]:
    """The commands that install the packages; the package lists are fetched first only where there are none."""
    install = [*prefix, "apt-get", "install", "-y", "--no-install-recommends", *packages]
    update = [*prefix, "apt-get", "update"]
    return [install] if any(APT_LISTS.glob("*_Packages*")) else [update, install]


def advice(packages: list[str]) -> str:
    """What to tell a user who has to install the packages by hand."""
    if not shutil.which("apt-get"):
        return f"Missing on this machine (by Debian's names; install your system's equivalents):  {' '.join(packages)}"
    prefix = [] if os.geteuid() == 0 else ["sudo"]
    line = " && ".join(shlex.join(command) for command in apt_commands(packages, prefix))
    return f"Missing on this machine: {', '.join(packages)}. Install, then run the same command again:\n\n    {line}\n"


def root_prefix() -> list[str] | None:
    """What to put before a command so that it runs as root with no question asked; None where that is not allowed."""
    if not shutil.which("apt-get"):
        return None
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and succeeds([sudo, "-n", "true"]):
        return [sudo, "-n"]
    return None
