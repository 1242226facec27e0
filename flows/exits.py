"""Exit statuses of the command line: one for each decision that a caller, such as a script or a scheduler, can take."""

from dataclasses import dataclass

from tasks.errors import BudgetExceeded, JobFailed, LeaseHeld, LeaseLost, RunTimedOut, TooFewTiles, Unavailable


@dataclass(frozen=True, slots=True)
class Exit:
    """One way in which the program ends.

    Attributes:
        status: what the shell gets.
        errors: what ends it so.
        meaning: what it means, and what to do next.
    """

    status: int
    errors: tuple[type[BaseException], ...]
    meaning: str


DONE = Exit(0, (), "done, or nothing was left to do")
MEND = Exit(1, (), "mend something first: input, credentials, a file, a server")
USAGE = Exit(2, (), "the command line itself is wrong")
MONEY = Exit(3, (BudgetExceeded,), "it may cost more than is allowed, or nobody approved it")
FAILED = Exit(4, (TooFewTiles, JobFailed), "the request or too many tiles failed; see report/summary.md")
LATER = Exit(5, (Unavailable, LeaseHeld, LeaseLost, RunTimedOut), "not now: run again later; nothing is done twice")
INTERRUPTED = Exit(130, (KeyboardInterrupt,), "interrupted, by Ctrl-C or SIGTERM")
EXITS = (DONE, MEND, USAGE, MONEY, FAILED, LATER, INTERRUPTED)


def exit_status(error: BaseException) -> int:
    """Status with which an error ends the program."""
    return next((one.status for one in EXITS if isinstance(error, one.errors)), MEND.status)


def exit_help() -> str:
    """All statuses, a line each, for the end of a command's help."""
    return "\n".join(["Exit status:", *(f"{one.status:>3}  {one.meaning}" for one in EXITS)])
