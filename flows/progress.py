"""How far a run is, told to whoever listens: a terminal's progress bars, or the run's log; and questions to them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger


@dataclass(frozen=True, slots=True)
class Progress:
    """One stage's state.

    Attributes:
        stage: name for people.
        done: units that are finished.
        total: units in all; 0 when it is not known, or there is nothing to count.
        note: what a person wants to know besides.
    """

    stage: str
    done: int = 0
    total: int = 0
    note: str = ""

    @property
    def finished(self) -> bool:
        """Whether all of the stage is done."""
        return self.done >= self.total


Listener = Callable[[Progress], None]
Asker = Callable[[str], bool]

_asker: ContextVar[Asker | None] = ContextVar("asker", default=None)
_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)


def tell(stage: str, done: int = 0, total: int = 0, note: str = "") -> None:
    """Tell the listener; without one, a line of log for what begins, ends, or is worth a note."""
    progress = Progress(stage, done, total, note)
    (_listener.get() or _log)(progress)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send all progress within the block to ``listener`` instead of the log."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def ask(question: str) -> bool:
    """Ask the person at the terminal; anything but yes is no, and so is the end of the input."""
    return (_asker.get() or typed_yes)(question)


@contextmanager
def asked_by(asker: Asker) -> Iterator[None]:
    """Have questions within the block put by ``asker``, which knows what else is on the screen."""
    token = _asker.set(asker)
    try:
        yield
    finally:
        _asker.reset(token)


def typed_yes(question: str) -> bool:
    """Ask on standard output, and wait for the answer on standard input."""
    try:
        return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}
    except EOFError:
        return False


def _log(progress: Progress) -> None:
    """Log what begins, ends, or has a new note."""
    if not (progress.note or progress.finished):
        return
    try:
        logger = get_run_logger()
    except MissingContextError:
        logger = get_logger("eopatch_flow")
    count = f" {progress.done}/{progress.total}" if progress.total else ""
    logger.info("%s%s%s", progress.stage, count, f": {progress.note}" if progress.note else "")
