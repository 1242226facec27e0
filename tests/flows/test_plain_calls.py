"""The chain by plain functions, as the documentation shows it: without any Prefect server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from eolearn.core import EOPatch

from flows.order import prepare, survey_order
from flows.parameters import LandCover
from tasks.ledger import TileState

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9/api"


def test_the_chain_in_the_documentation_runs_as_written_where_no_prefect_server_can_be_reached(
    parameters: LandCover, tmp_path: Path
):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/sample.yaml").write_text(yaml.safe_dump(parameters.model_dump(mode="json")))
    home = tmp_path / "prefect"
    first, second = (run_as_written(tmp_path, home) for _ in range(2))
    assert first[0].startswith("4 tiles, 100 PU at most. No request for this exists")
    assert sorted(line.split(",")[0] for line in first[1:]) == [f"t{number}: 5 dates" for number in range(4)]
    assert second[0].startswith("4 tiles, 0 PU at most. Nothing is missing")
    assert not list(home.rglob("*.db"))
    order = prepare(parameters)
    assert [record.state for record in survey_order(order)] == [TileState.LABELLED] * 4
    patch = EOPatch.load(order.patch_url(order.tiles[0]))
    assert patch.data["BANDS"].shape == (5, 60, 60, 6)
    assert np.count_nonzero(patch.mask_timeless["LULC"]) > 0.9 * 3600


def run_as_written(folder: Path, prefect_home: Path) -> list[str]:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/plain_calls.md").read_text(), re.DOTALL)
    settings = {"PREFECT_API_URL": NOWHERE, "PREFECT_HOME": str(prefect_home), "PREFECT_CLIENT_MAX_RETRIES": "0"}
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder, env=os.environ | settings, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()
