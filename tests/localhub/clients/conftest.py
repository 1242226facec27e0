"""Fixtures of the tests with clients that others wrote."""

from pathlib import Path

import pytest

from tests.localhub.clients.environment import BuildError, built_environment

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def eogrow_programs() -> Path:
    """The folder of programs of eo-grow's own environment: built once for each lock, and kept."""
    try:
        return built_environment(ROOT / ".venv-eogrow")
    except BuildError as error:
        pytest.fail(str(error), pytrace=False)
