"""The environment of a client that cannot share this project's: eo-grow needs pydantic 1."""

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

LOCK = Path(__file__).with_name("eogrow.lock")
BUILD_SECONDS = 300
"""How long a build may take; about 35 s where the registry is near."""


class BuildError(Exception):
    """The environment could not be built."""


def built_environment(folder: Path, lock: Path = LOCK) -> Path:
    """Return the folder of programs of an environment that holds what `lock` names; built unless it is there.

    Raises:
        BuildError: pip failed, as it does where no package registry can be reached.
    """
    ready = folder / ".ready"
    key = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    if not ready.exists() or ready.read_text() != key:
        venv.create(folder, clear=True, with_pip=True)
        _install(folder, lock)
        ready.write_text(key)
    return folder / "bin"


def _install(folder: Path, lock: Path) -> None:
    """Install with pip, not uv: it works wherever pip does, whose settings (mirrors, local wheels) uv does not read.

    Nothing is resolved, the lock is complete; nothing is compiled, most of it is never imported.
    """
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "-r", str(lock)]
    try:
        done = subprocess.run(pip, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{lock.name} could not be installed into {folder} within {BUILD_SECONDS} s.") from error
    if done.returncode:
        raise BuildError(
            f"{lock.name} could not be installed into {folder}. It takes a Python package registry that pip can reach; "
            f"this is what pip says:\n{done.stderr}"
        )
