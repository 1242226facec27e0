"""The conformance table of localhub's README tells the truth about its tests."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
README = TESTS.parent / "localhub" / "README.md"
CITED = sorted(set(re.findall(r"([\w/]+\.py)::(test_\w+)", README.read_text(encoding="utf-8"))))


def test_the_table_cites_tests() -> None:
    assert len(CITED) > 50


@pytest.mark.parametrize(("file", "test"), CITED)
def test_every_cited_test_exists(file: str, test: str) -> None:
    paths = [folder / file for folder in (TESTS / "localhub", TESTS / "tasks") if (folder / file).is_file()]
    assert any(f"def {test}(" in path.read_text(encoding="utf-8") for path in paths)
