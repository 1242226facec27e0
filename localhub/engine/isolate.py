"""A V8 context of its own for one evalscript: loading, calling within limits, closing in order."""

import asyncio
import ctypes
import os
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from importlib import resources
from typing import Any, Final

from py_mini_racer import (
    DEFAULT_V8_FLAGS,
    JSEvalException,
    JSOOMException,
    LibAlreadyInitializedError,
    MiniRacer,
    init_mini_racer,
    mini_racer,
)

from localhub.engine.errors import (
    ENGINE_NAME,
    NAMING,
    SCRIPT_NAME,
    EvalscriptError,
    failed,
    ran_longer_than,
    stopped,
    used_more_than,
)
from localhub.engine.limits import imposed, resident_bytes

HEAP_LIMIT_BYTES: Final = 2**30
"""What scripts may hold besides array buffers, which V8 does not count: for them there is the resident memory."""
_V8_HEAP_MB: Final = 4000
"""V8's own limit, the largest that there is: V8 ends the process when it comes to it, so that ours must come first."""
GRACE_SECONDS: Final = 1.0
"""How long V8 may take to heed an interrupt. It looks for one in loops and calls, also within regular expressions and
big integers, but not within most functions of its library, which may run for hours (``Array.prototype.indexOf``)."""
_LOOK_SECONDS: Final = 0.02
"""How often the resident memory is looked at: it may grow by 20 to 40 MB meanwhile."""

_SOURCES: Final = [
    resources.files("localhub.engine").joinpath(name).read_text(encoding="utf-8") + NAMING + ENGINE_NAME
    for name in ("builtins.js", "prelude.js")
]
"""Ours, in the order in which they run; the last one's value is the host."""
_TIME_ZONE_LOCK: Final = threading.Lock()
_abandoned: list[MiniRacer] = []


def has_abandoned() -> bool:
    """Tell whether V8 may still be running a script in this process that nothing could interrupt."""
    return bool(_abandoned)


class Isolate:
    """One V8 context with our prelude. Close it: a context that is left to the garbage collector may hang the process.

    Args:
        timeout_seconds: how long one call may take; None = as long as the limits of this process say.
    """

    def __init__(self, timeout_seconds: float | None = None) -> None:
        limits = imposed()
        self._timeout_seconds = limits.call_seconds if timeout_seconds is None else timeout_seconds
        self._memory_bytes = limits.memory_bytes
        self._source = ""
        self._is_lost = False
        self._opened = ExitStack()
        with _utc():
            _init_v8()
            self._loop = asyncio.new_event_loop()
            self._racer = self._opened.enter_context(mini_racer(self._loop_running()))
            self._racer.eval("new Date(2000, 0).getTime()")
        self._racer.set_hard_memory_limit(HEAP_LIMIT_BYTES)
        host: Any = [self._racer.eval(source) for source in _SOURCES][-1]
        self._host = {name: host[name].cancelable() for name in host}

    def load(self, source: str) -> None:
        """Run the script's top-level code.

        Raises:
            EvalscriptError: it does not parse or it fails; the message has the script's own line numbers.
        """
        self._source = source
        # nothing stands before the source, and what follows only names it in messages
        self._answer(self._racer.eval_cancelable(f"{source}\n{NAMING}{SCRIPT_NAME}"))

    def call(self, method: str, *arguments: str | int) -> Any:
        """Call one of the host's methods (``prelude.js``).

        Raises:
            EvalscriptError: the script failed, took too long, or used too much memory.
        """
        return self._answer(self._host[method](*arguments))

    def close(self) -> None:
        """Free the context. No view of its buffers may be used after this.

        A context that does not answer any more is left as it is, because freeing it would wait for ever: the process
        should then end soon, see ``has_abandoned``.
        """
        if not self._is_lost:
            self._await_end()
        if self._is_lost:
            return
        self._host.clear()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._opened.close()

    def _loop_running(self) -> asyncio.AbstractEventLoop:
        """Start the thread to which V8 gives its answers."""

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_forever()
            self._loop.close()

        self._thread = threading.Thread(target=run, daemon=True, name="v8-answers")
        self._thread.start()
        return self._loop

    def _answer(self, asked: Coroutine[Any, Any, Any]) -> Any:
        """Wait for V8's answer; interrupt V8 where it exceeds a limit."""
        end = time.monotonic() + self._timeout_seconds
        answer = self._begun(asked)
        while not _came(answer, min(_LOOK_SECONDS, end - time.monotonic())):
            if (excess := self._excess(end)) is not None:
                answer.cancel()
                self._await_end()
                raise self._stopped(excess)
        with self._errors():
            return answer.result()

    def _begun(self, asked: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(asked, self._loop)

    def _excess(self, end: float) -> str | None:
        """Return which limit is exceeded."""
        if self._memory_bytes is not None and resident_bytes() > self._memory_bytes:
            return used_more_than(self._memory_bytes)
        if time.monotonic() >= end:
            return ran_longer_than(self._timeout_seconds)
        return None

    def _await_end(self) -> None:
        """Let V8 come to the end of what it runs: what was interrupted, or what promises have left to do."""
        if not _came(self._begun(self._racer.eval_cancelable("0")), GRACE_SECONDS):
            self._is_lost = True
            _abandoned.append(self._racer)
            for kept in (self._racer, self._opened):  # also when the interpreter ends: freeing would wait for ever
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))

    def _stopped(self, excess: str) -> EvalscriptError:
        return stopped(excess, self._hook(), self._source)

    def _hook(self) -> str:
        """Return the name of the script's function that ran last; none for its top-level code."""
        if self._is_lost:
            return ""
        answer = self._begun(self._host["hook"]())
        if not _came(answer, GRACE_SECONDS) or answer.exception() is not None:
            return ""
        return str(answer.result())

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except JSOOMException as error:
            raise self._stopped(used_more_than(HEAP_LIMIT_BYTES)) from error
        except JSEvalException as error:
            raise failed(str(error)) from error


def _came(answer: Future[Any], seconds: float) -> bool:
    """Wait for an answer, whatever it is, so many seconds."""
    return bool(wait([answer], max(0.0, seconds)).done)


def _init_v8() -> None:
    with suppress(LibAlreadyInitializedError):
        init_mini_racer(flags=[*DEFAULT_V8_FLAGS, f"--max-heap-size={_V8_HEAP_MB}"])


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
