"""A V8 context of its own for one evalscript: loading, calling with a time limit, closing in order."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any, Final

from py_mini_racer import JSEvalException, JSOOMException, JSTimeoutException, MiniRacer

from localhub.engine.errors import ENGINE_NAME, NAMING, SCRIPT_NAME, EvalscriptError, failed

HEAP_LIMIT_BYTES: Final = 1_000_000_000
"""Below V8's own limit (1.57 GB), which ends the process. Typed arrays do not count: watch the resident memory too."""

_SOURCES: Final = [
    resources.files("localhub.engine").joinpath(name).read_text(encoding="utf-8") + NAMING + ENGINE_NAME
    for name in ("builtins.js", "prelude.js")
]
"""Ours, in the order in which they run; the last one's value is the host."""
_TIME_ZONE_LOCK: Final = threading.Lock()


class Isolate:
    """One V8 context with our prelude. Close it: a context that is left to the garbage collector may hang the process.

    Use it from threads without a running event loop: mini-racer enforces no time limit on one.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        with _utc():
            self._racer = MiniRacer()
            self._racer.eval("new Date(2000, 0).getTime()")
        self._racer.set_hard_memory_limit(HEAP_LIMIT_BYTES)
        self._host: Any = [self._racer.eval(source) for source in _SOURCES][-1]

    def load(self, source: str) -> None:
        """Run the script's top-level code.

        Raises:
            EvalscriptError: it does not parse or it fails; the message has the script's own line numbers.
        """
        with self._errors():
            # nothing stands before the source, and what follows only names it in messages
            self._racer.eval(f"{source}\n{NAMING}{SCRIPT_NAME}", timeout_sec=self._timeout_seconds)

    def call(self, method: str, *arguments: str | int) -> Any:
        """Call one of the host's methods (``prelude.js``).

        Raises:
            EvalscriptError: the script failed, took too long, or used too much memory.
        """
        with self._errors():
            return self._host[method](*arguments, timeout_sec=self._timeout_seconds)

    def close(self) -> None:
        """Free the context. No view of its buffers may be used after this."""
        self._host = None
        self._racer.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except JSTimeoutException as error:
            limit = f"{self._timeout_seconds:g} s"
            raise EvalscriptError(f"Failed to evaluate script!\n{SCRIPT_NAME}: it ran longer than {limit}.") from error
        except JSOOMException as error:
            limit = f"{HEAP_LIMIT_BYTES / 1e9:g} GB"
            raise EvalscriptError(f"Failed to evaluate script!\n{SCRIPT_NAME}: it used more than {limit}.") from error
        except JSEvalException as error:
            raise failed(str(error)) from error


@contextmanager
def _utc() -> Iterator[None]:
    """Have V8 take UTC as its time zone, as on the service: it reads the environment once, at its first date."""
    with _TIME_ZONE_LOCK:
        before = os.environ.get("TZ")
        os.environ["TZ"] = "UTC"
        try:
            yield
        finally:
            if before is None:
                del os.environ["TZ"]
            else:
                os.environ["TZ"] = before
