"""The notebook of the documentation, from the area to a classifier, executed as it stands."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs/from_area_to_classifier.ipynb"


def test_the_notebook_runs_from_the_area_to_a_map_and_a_score_that_beats_the_largest_class(
    prefect_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "SH_CLIENT_ID", "SH_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)  # localhub's own
    monkeypatch.setenv("PREFECT_HOME", str(prefect_home))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    told = texts(notebook)
    assert "4 of 4 EOPatches are ready" in told
    found = re.search(r"Accuracy ([\d.]+), mean F1 ([\d.]+); the largest class alone would give ([\d.]+)", told)
    assert found is not None
    accuracy, mean_f1, largest = map(float, found.groups())
    assert accuracy > 0.9 > largest
    assert mean_f1 > 0.7
    assert pictures(notebook) == 3
    assert len(list((tmp_path / "notebook-data/eopatches").glob("*/eopatches/*"))) == 4


def test_the_published_outputs_are_whole_and_name_no_machine():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kinds = {output["output_type"] for cell in notebook.cells for output in cell.get("outputs", ())}
    assert "error" not in kinds
    assert pictures(notebook) == 3
    assert "Accuracy 0.9" in texts(notebook)
    assert not re.search(r"/home/|/work/|/tmp/|/root/|https?://", texts(notebook))
    assert NOTEBOOK.stat().st_size < 600_000


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def texts(notebook: Any) -> str:
    return "\n".join(output.get("text", "") for output in outputs(notebook))


def pictures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))
