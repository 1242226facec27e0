"""What can go wrong, one class per decision that a caller can take.

::

    EopatchFlowError
    ├── InvalidInput        the request's fault: change the input, nothing was bought
    ├── BudgetExceeded      the price is above what was allowed: raise the cap or ask for less
    ├── ServiceError        Sentinel Hub refused, or answered what cannot be understood
    │   ├── AccessDenied    the credentials are wrong or not sufficient: mend them
    │   └── Unavailable     no answer, or an error of its own: what it did is not known; ask again later
    │       └── NotYet      429, and as NotThere 404: nothing was done; ask again later
    ├── LeaseHeld           another run does this work: wait for it, or stop it
    ├── LeaseLost           another run may do this work now: end, and buy nothing
    ├── RunTimedOut         the run has lasted as long as it may: run again to go on
    ├── JobFailed           the batch request itself ended FAILED or STOPPED
    ├── TooFewTiles         more tiles failed than limits.min_success allows
    └── TileError           one tile's data is not what was asked for; the others are not affected
        ├── DeliveryError   a file of it is missing or corrupt: order the tile again
        └── NotPrepared     the reference's polygons were prepared for other tiles: prepare them for this one

Messages say what was asked, what came, and what to do next.
"""


class EopatchFlowError(Exception):
    """Base of every error that this project raises on purpose."""


class InvalidInput(EopatchFlowError, ValueError):
    """The input cannot be processed; nothing was created or bought."""


class BudgetExceeded(EopatchFlowError):
    """The price of the work is above the cap that was given."""


class ServiceError(EopatchFlowError):
    """Sentinel Hub or the object store did not do what it was asked."""


class AccessDenied(ServiceError):
    """Credentials are wrong, or do not allow what was asked."""


class Unavailable(ServiceError):
    """The service could not answer now; the same question may be asked again.

    Args:
        text: what came.
        retry_after_seconds: how long the service asks to be left alone; 0 where it says nothing.
        answered: whether the service is there, and told of its trouble itself.
    """

    def __init__(self, text: str, retry_after_seconds: float = 0.0, *, answered: bool = False) -> None:
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds
        self.answered = answered


class NotYet(Unavailable):
    """The service did nothing (404, 429): what was asked may be asked again later, even to create or to start."""


class NotThere(NotYet):
    """The service does not know what was asked about (404); a new request is not known everywhere at once."""


class LeaseHeld(EopatchFlowError):
    """Another run has the lease of the work."""


class LeaseLost(EopatchFlowError):
    """The lease of the work is not ours any more, or may not be."""


class RunTimedOut(EopatchFlowError):
    """The run has lasted as long as it was allowed to."""


class JobFailed(EopatchFlowError):
    """The batch request ended in a state that delivers nothing more."""


class TooFewTiles(EopatchFlowError):
    """The run went through, but fewer tiles succeeded than was asked for."""


class TileError(EopatchFlowError):
    """One tile cannot be converted; the others are not affected."""


class DeliveryError(TileError):
    """A file that was delivered for a tile is missing or corrupt; ordering the tile again may help."""


class NotPrepared(TileError):
    """A reference was prepared for other tiles; it may be prepared for this one."""
