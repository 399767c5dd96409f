"""Finds Debian packages that are missing on this machine, and the command that installs them."""

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
"""Programs that the tests run, with their Debian packages."""


def to_install() -> list[str]:
    """Return the missing Debian packages without which the virtual environment cannot be created."""
    missing = []
    if importlib.util.find_spec("ensurepip") is None:  # Debian ships it separately; python3 has only `venv`
        system = Path("/usr/bin/python3").resolve() == Path(sys.executable).resolve()
        missing.append("python3-venv" if system else f"python3.{sys.version_info.minor}-venv")
    if not compiles():
        missing.append("g++")  # depends on gcc and the C library's headers
    return missing


def compiles() -> bool:
    """Whether a C++ program can be compiled. Tries it, since compilers without the C library's headers are common."""
    named = os.environ.get("CXX")
    compilers = [shlex.split(compiler) for compiler in ([named] if named else ["c++", "g++", "clang++"])]
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["-x", "c++", "-", "-o", f"{folder}/probe"]
        return any(shutil.which(command[0]) and succeeds([*command, *arguments], PROBE) for command in compilers)


def succeeds(command: list[str], text: str = "") -> bool:
    """Whether a command with `text` as input exits with 0. Its output is discarded."""
    return subprocess.run(command, input=text.encode(), capture_output=True, check=False).returncode == 0


def to_test() -> list[str]:
    """Return the missing Debian packages for the tests: servers, a browser, and a font for Chinese screenshots."""
    missing = [package for program, package in PROGRAMS.items() if not has_program(program)]
    if not shutil.which("chromium"):
        missing.append("chromium-browser" if is_ubuntu() else "chromium")  # on Ubuntu it installs the snap `chromium`
    if not has_chinese_font():
        missing.append("fonts-noto-cjk")
    return missing


def has_program(name: str) -> bool:
    """Whether a program is installed. Also looks in /usr/sbin, which Debian omits from users' PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is not None


def has_chinese_font() -> bool:
    """Whether a font with Chinese characters is installed."""
    if shutil.which("fc-list"):
        return bool(subprocess.run(["fc-list", ":lang=zh"], capture_output=True, check=False).stdout.strip())
    return any(FONTS.rglob("*CJK*"))


def is_ubuntu() -> bool:
    """Whether the system is Ubuntu, where some packages have other names."""
    release = Path("/etc/os-release")
    return release.exists() and "ID=ubuntu" in release.read_text().splitlines()


def apt_commands(packages: list[str], prefix: list[str]) -> list[list[str]]:
    """Return the commands that install the packages, preceded by `apt-get update` if there are no package lists."""
    install = [*prefix, "apt-get", "install", "-y", "--no-install-recommends", *packages]
    update = [*prefix, "apt-get", "update"]
    return [install] if any(APT_LISTS.glob("*_Packages*")) else [update, install]


def advice(packages: list[str]) -> str:
    """Return the message for a user who has to install the packages manually."""
    if not shutil.which("apt-get"):
        return f"Missing on this machine (Debian names; install the equivalents of your system):  {' '.join(packages)}"
    prefix = [] if os.geteuid() == 0 else ["sudo"]
    line = " && ".join(shlex.join(command) for command in apt_commands(packages, prefix))
    return f"Missing on this machine: {', '.join(packages)}. Install, then run the same command again:\n\n    {line}\n"


def root_prefix() -> list[str] | None:
    """Return the prefix that runs a command as root without a password prompt; None if that is not possible."""
    if not shutil.which("apt-get"):
        return None
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and succeeds([sudo, "-n", "true"]):
        return [sudo, "-n"]
    return None
