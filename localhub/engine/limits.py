"""What scripts may take in this process, set where it starts, as resource limits are; and what the process takes."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Limits:
    """What a script may take."""

    call_seconds: float = 120
    """Time of one call into a script: its top-level code, a function, a chunk of pixels. The slowest script known that
    users run takes 3 s for a chunk."""
    memory_bytes: int | None = None
    """Resident memory of the process while a script runs; None = any."""


_STATM: Final = Path("/proc/self/statm")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
DEFAULTS: Final = Limits()
_imposed = [DEFAULTS]


def impose(limits: Limits) -> None:
    """Let these limits hold for every script that this process loads from now on."""
    _imposed[0] = limits


@contextmanager
def imposing(limits: Limits) -> Iterator[None]:
    """Let these limits hold for every script that this process loads within the block."""
    before = imposed()
    impose(limits)
    try:
        yield
    finally:
        impose(before)


def imposed() -> Limits:
    """Return the limits that hold in this process."""
    return _imposed[0]


def resident_bytes() -> int:
    """Return the resident memory; where the system has no ``/proc``, the most that it has been so far."""
    try:
        return int(_STATM.read_bytes().split()[1]) * _PAGE_BYTES
    except FileNotFoundError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
