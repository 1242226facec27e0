"""Prefect logs a line for each task run: long, when there are many tiles. The flow's own lines tell it shorter."""

import logging

from prefect.logging import get_logger

from tasks.errors import EopatchFlowError
from tasks.reasons import kind_of

KINDS_LOGGED = 20
"""Kinds of failures whose task's own log, with its traceback, goes into the run's log."""


class _EngineLines(logging.Filter):
    """Of what Prefect logs of each task run, the first failure of each kind that is not told by the flow's own lines.

    Each task run's state has its own message in any case, and the level DEBUG shows all lines.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, set[str]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.module != "task_engine" or getattr(record, "flow_name", "") != "land-cover":
            return True
        if logging.getLogger("prefect.task_runs").isEnabledFor(logging.DEBUG):
            return True
        error = record.exc_info[1] if record.exc_info else None
        if str(record.msg).startswith("Finished in state") or isinstance(error, EopatchFlowError):
            return False
        tile = str(getattr(record, "task_run_name", "")).partition("-")[2]
        kind = kind_of(record.getMessage(), tile) if tile else record.getMessage()
        seen = self._seen.setdefault(str(getattr(record, "flow_run_id", "")), set())
        is_new = kind not in seen and len(seen) < KINDS_LOGGED
        seen.add(kind)
        return is_new


class _FlowLines(logging.Filter):
    """Of what Prefect logs of the run's end, an error of ours once, as a sentence: its traceback tells a user nothing.

    The level DEBUG shows all of it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, EopatchFlowError) or logging.getLogger("prefect.flow_runs").isEnabledFor(
            logging.DEBUG
        ):
            return True
        is_first = str(record.msg).startswith("Encountered exception")
        record.msg, record.args, record.exc_info = "%s", (str(error),), None
        return is_first


_ENGINE_LINES, _FLOW_LINES = _EngineLines(), _FlowLines()


def quieten() -> None:
    """Have the end of task runs, and errors of ours, told by the flow's own lines: Prefect's are many and long.

    In this process: each worker of another one has to do it, too.
    """
    get_logger("prefect.task_runs").addFilter(_ENGINE_LINES)
    get_logger("prefect.flow_runs").addFilter(_FLOW_LINES)
