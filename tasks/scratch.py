"""Local folders for what is in the works: those of processes that were killed are removed by the next one."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "eopatch-scratch-"
"""Of their names, in the system's folder for temporary files."""
NEW_SECONDS = 60.0
"""How old a folder must be to be removed: a new one may not be locked yet."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a new folder, which is removed when the context is left, and after that by whoever makes the next one.

    A lock tells that its process lives: the system frees it, however the process ends (``flock(2)``).
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems lock no folders, and tell so to others, too
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Path(name)
        finally:
            os.close(descriptor)


def _is_abandoned(folder: Path) -> bool:
    """Whether no process has a folder; one of another user, or one that is gone meanwhile, is none of ours."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return time.time() - os.fstat(descriptor).st_mtime > NEW_SECONDS
    except OSError:
        return False
    finally:
        os.close(descriptor)
