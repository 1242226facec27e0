"""The environment of a client that cannot share this project's: eo-grow needs pydantic 1."""

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

LOCK = Path(__file__).with_name("eogrow.lock")
BUILD_SECONDS = 300
"""How long each step of a build may take; together they take 10 s where the registry is near."""


class BuildError(Exception):
    """The environment could not be built."""


def built_environment(folder: Path, lock: Path = LOCK) -> Path:
    """Return the folder of programs of an environment that holds what `lock` names; built unless it is there.

    Raises:
        BuildError: a step failed, as it does where no package registry can be reached.
    """
    ready = folder / ".ready"
    key = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    if not ready.exists() or ready.read_text() != key:
        _build(folder, lock)
        ready.write_text(key)
    return folder / "bin"


def _build(folder: Path, lock: Path) -> None:
    """Do what the Makefile does for the project's own environment."""
    venv.create(folder, clear=True, with_pip=True)
    python = str(folder / "bin" / "python")
    for step in (
        [python, "-m", "pip", "install", "-q", "uv"],
        [python, "-m", "uv", "pip", "install", "-q", "--python", python, "-r", str(lock)],
    ):
        problem = _problem(step)
        if problem:
            raise BuildError(
                f"The environment of {lock.name} could not be built in {folder}: `{' '.join(step)}` {problem}\n"
                "It takes a Python package registry that pip and uv can reach."
            )


def _problem(step: list[str]) -> str | None:
    """Run a step; return what went wrong with it."""
    try:
        done = subprocess.run(step, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"did not end within {BUILD_SECONDS} s."
    return f"ended with {done.returncode}: {done.stderr.strip()}" if done.returncode else None
