"""Fixtures that every test may use: the real data, and the servers that stand in for third parties."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with the real scenes, polygons and tiles; the test is skipped where it is absent."""
    folder = Path(os.environ.get("EOPATCH_FLOW_TEST_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not (folder / "s2-slovenia-2015").is_dir():
        pytest.skip(f"the real data is not at {folder}; set EOPATCH_FLOW_TEST_DATA to its folder")
    return folder
