"""The environment of a client that cannot share this project's: eo-grow needs pydantic 1."""

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

LOCK = Path(__file__).with_name("eogrow.lock")
BUILD_SECONDS = 300
"""How long a step of a build may take; all of them take 10 s with uv, 35 s with pip, when the registry is near."""


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
        venv.create(folder, clear=True, with_pip=True)
        _install(folder, lock)
        ready.write_text(key)
    return folder / "bin"


def _install(folder: Path, lock: Path) -> None:
    """Install with uv, or else with pip, which is slower but reads settings (mirrors, local wheels) that uv does not.

    Nothing is resolved, the lock is complete; nothing is compiled, most of it is never imported.
    """
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "-q", "--no-compile"]
    uv = [python, "-m", "uv", "pip", "install", "-q", "--python", python]
    _run([*pip, "uv"])
    try:
        _run([*uv, "--no-deps", "-r", str(lock)])
    except BuildError:
        _run([*pip, "--no-deps", "-r", str(lock)])


def _run(step: list[str]) -> None:
    try:
        done = subprocess.run(step, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"`{' '.join(step)}` did not end within {BUILD_SECONDS} s.") from error
    if done.returncode:
        raise BuildError(
            f"`{' '.join(step)}` ended with {done.returncode}; it takes a Python package registry that pip can reach. "
            f"This is what it says:\n{done.stderr}"
        )
