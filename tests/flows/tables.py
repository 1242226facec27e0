"""Tables that tests print, captured or not: what was done to the flow, and what came of it."""

import sys
from collections.abc import Sequence
from typing import Any

import pytest

from tasks.report.markdown import table


def show(config: pytest.Config, title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table past pytest's capture."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        sys.stdout.write(f"\n\n{title}\n\n{table(header, [[str(cell) for cell in row] for row in rows])}\n")
