"""Prefect's server keeps its records in PostgreSQL, as in production, and a whole run works on it."""

import subprocess
import sysconfig
from pathlib import Path

import yaml

from flows.parameters import LandCover
from tests.postgres import PASSWORD, Postgres
from tests.prefect_process import PrefectServer

PROGRAM = Path(sysconfig.get_path("scripts")) / "eopatch-flow"


def test_a_whole_run_works_on_a_prefect_server_over_postgresql(
    parameters: LandCover, postgres: Postgres, tmp_path: Path
) -> None:
    settings = postgres.for_prefect("prefect")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(parameters.model_dump(mode="json")))
    with PrefectServer(tmp_path / "prefect", **settings) as server:
        ran = subprocess.run(
            [PROGRAM, "run", str(config)],
            env=server.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    assert "4 of 4 EOPatches are ready" in ran.stdout
    assert postgres.query("SELECT name, state_type FROM flow_run", "prefect") == [
        "land-cover Small 2019-01-01 to 2019-03-10|COMPLETED"
    ]
    states = postgres.query("SELECT DISTINCT state_type FROM task_run", "prefect")
    assert states == ["COMPLETED"]
    keys = postgres.query("SELECT DISTINCT key FROM artifact_collection", "prefect")
    assert any(key.endswith("-plan") for key in keys), keys
    assert not list((tmp_path / "prefect").glob("*.db"))
    assert PASSWORD not in server.log
