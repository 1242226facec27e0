"""The conformance tables of localhub's READMEs tell the truth about their tests."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
LOCALHUB = TESTS.parent / "localhub"
CITED = {
    readme: sorted(set(re.findall(r"([\w/]+\.py)::(test_\w+)", readme.read_text(encoding="utf-8"))))
    for readme in (LOCALHUB / "README.md", LOCALHUB / "engine" / "README.md")
}


@pytest.mark.parametrize("readme", CITED, ids=lambda readme: str(readme.parent.name))
def test_the_table_cites_tests(readme: Path) -> None:
    assert len(CITED[readme]) > 50


@pytest.mark.parametrize(("file", "test"), sorted({cited for table in CITED.values() for cited in table}))
def test_every_cited_test_exists(file: str, test: str) -> None:
    paths = [folder / file for folder in (TESTS / "localhub", TESTS / "tasks") if (folder / file).is_file()]
    assert any(f"def {test}(" in path.read_text(encoding="utf-8") for path in paths)
