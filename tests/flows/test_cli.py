"""The command line as a person calls it: in a process of its own."""

import json
import os
import re
import subprocess
import sysconfig
from dataclasses import asdict
from pathlib import Path

import geopandas as gpd
import pytest
import requests
import s3fs
import yaml

from flows.approval import APPROVALS, Approved
from flows.order import prepare
from flows.parameters import LandCover
from localhub.sample import SampleInfo
from localhub.seaweed import SeaweedFS
from tasks.batch import jobs_of
from tasks.service import connect
from tasks.storage import write_file

PROGRAM = Path(sysconfig.get_path("scripts")) / "eopatch-flow"
NOWHERE = "http://127.0.0.1:9"


COMMANDS = ("run", "plan", "schema", "check", "preview", "setup", "serve", "localhub", "demo")


def test_help_names_the_commands_examples_and_exit_statuses():
    answer = call("--help", COLUMNS="100")
    assert answer.returncode == 0
    assert [name for name in COMMANDS if f"│ {name} " in answer.stdout] == list(COMMANDS)
    assert "eopatch-flow plan docs/sample.yaml" in answer.stdout
    assert "3  it may cost more than is allowed, or nobody approved it" in answer.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_shows_how_it_is_called(name: str):
    answer = call(name, "--help", COLUMNS="120")
    assert answer.returncode == 0
    assert f"Examples:\n eopatch-flow {name}" in re.sub(r" +\n", "\n", answer.stdout)


def test_all_problems_of_a_configuration_are_told_without_a_traceback(tmp_path: Path):
    config = tmp_path / "bad.yaml"
    config.write_text("period: {start: 2019-02-01, end: 2019-01-01}\ntiling: {grid: 9}\nbudget: 3\n")
    answer = call("run", str(config))
    assert answer.returncode == 1
    for part in (
        "period ends on 2019-01-01, before it starts on 2019-02-01",
        "tiling.grid: Input should be 0, 1 or 2",
        "budget",
    ):
        assert part in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_service_that_does_not_answer_is_told_without_a_traceback(parameters: LandCover, tmp_path: Path):
    offline = parameters.service.model_copy(update={"base_url": "http://127.0.0.1:9"})
    answer = call("run", str(written(parameters.model_copy(update={"service": offline}), tmp_path)))
    assert answer.returncode == 5
    assert "Sentinel Hub did not answer" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_servers_that_are_not_running_are_told_without_a_traceback(tmp_path: Path):
    config = tmp_path / "config.yaml"
    config.write_text(f"storage: {{endpoint_url: '{NOWHERE}', destination: out}}\n")
    answer = call("plan", str(config))
    assert (answer.returncode, "Traceback" in answer.stderr) == (1, False)
    reference, delivery = answer.stderr.splitlines()
    assert reference.startswith("eopatch-flow: reference: Reference file s3://eopatch-flow/reference/sample.gpkg")
    assert "Check endpoint and network" in delivery


def test_a_prefect_server_that_does_not_answer_is_told_without_a_traceback(tmp_path: Path):
    config = tmp_path / "config.yaml"
    config.write_text("area: {name: x}\n")
    answer = call("run", str(config), PREFECT_API_URL=f"{NOWHERE}/api", PREFECT_HOME=str(tmp_path / "prefect"))
    assert answer.returncode == 5
    assert answer.stderr.startswith("eopatch-flow: Prefect's server does not answer")
    assert "prefect server start" in answer.stderr


def test_a_misplaced_secret_is_not_shown(tmp_path: Path):
    config = tmp_path / "config.yaml"
    config.write_text("storage: {secret_key: hunter2}\n")
    answer = call("plan", str(config))
    assert "storage.secret_key: there is no such parameter" in answer.stderr
    assert "hunter2" not in answer.stderr + answer.stdout


def test_a_plan_and_a_run_from_an_empty_folder(parameters: LandCover, small_sample: SampleInfo, tmp_path: Path):
    config = written(parameters, tmp_path)
    folder = tmp_path / "empty"
    folder.mkdir()
    files = tmp_path / "plan.json", tmp_path / "plan.gpkg"
    before = call("plan", str(config), "--json", str(files[0]), "--geopackage", str(files[1]), cwd=folder)
    assert "new" in before.stdout
    assert "Process API, the same tiles" in before.stdout
    assert "a run would create one" in " ".join(before.stdout.split())
    told = json.loads(files[0].read_text())
    items = [json.loads(item.read_text()) for item in small_sample.folder.rglob("*.json")]
    days = [item["properties"]["datetime"] for item in items if item["collection"] == "sentinel-2-l1c"]
    expected = sum("2019-01-01" <= day <= "2019-03-10T24" for day in days)
    assert (told["price_pu"]["high"], [tile["scenes"] for tile in told["tiles"]]) == (100, [expected] * 4)
    assert gpd.read_file(files[1], engine="pyogrio")["tile"].tolist() == ["t0", "t1", "t2", "t3"]
    assert not Path(parameters.storage.destination).exists()
    ran = call("run", str(config), cwd=folder)
    assert ran.returncode == 0, ran.stderr
    assert "4 of 4 EOPatches are ready" in ran.stdout
    after = call("plan", str(config), cwd=folder)
    assert "nothing to buy" in after.stdout
    assert list(folder.iterdir()) == []


def test_a_dry_run_checks_and_tells_what_a_run_would_do_and_buys_nothing(parameters: LandCover, tmp_path: Path):
    answer = call("run", "--dry-run", str(written(parameters, tmp_path)))
    assert answer.returncode == 0, answer.stderr
    assert "100.00 PU" in answer.stdout
    assert "a run would create one" in " ".join(answer.stdout.split())
    assert jobs_of(connect(parameters.service), prepare(parameters).work) == []
    assert not Path(parameters.storage.destination).exists()


def test_a_dry_run_of_what_would_be_refused_for_its_price_says_so_by_its_status(parameters: LandCover, tmp_path: Path):
    capped = parameters.model_copy(update={"limits": parameters.limits.model_copy(update={"max_pu": 1.0})})
    answer = call("run", "--dry-run", str(written(capped, tmp_path)))
    assert answer.returncode == 3
    assert "4 tiles may cost up to 100 PU, but limits.max_pu is 1" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_dry_run_of_what_a_person_must_approve_says_so(parameters: LandCover, tmp_path: Path):
    asking = parameters.model_copy(update={"limits": parameters.limits.model_copy(update={"ask_above_pu": 50.0})})
    answer = call("run", "--dry-run", str(written(asking, tmp_path)))
    assert answer.returncode == 0, answer.stderr
    assert "A person has to approve it: 100.00 PU is above limits.ask_above_pu of 50." in answer.stdout
    folder = prepare(asking).folder
    for cap, told in (
        (99.0, "A person has to approve it"),
        (120.0, "Request r-1 has been approved up to 120.00 PU; for another one a person is asked again."),
    ):
        approved = Approved("r-1", 100.0, cap, "Ada", "terminal", "", "2026-01-01T00:00:00+00:00")
        write_file(folder + APPROVALS, json.dumps([asdict(approved)]).encode(), asking.storage)
        assert told in call("run", "--dry-run", str(written(asking, tmp_path))).stdout


@pytest.mark.parametrize("option", ["--json", "--geopackage"])
def test_a_plan_for_a_file_in_no_folder_is_refused_at_once(tmp_path: Path, option: str):
    config = tmp_path / "config.yaml"
    config.write_text("")
    answer = call("plan", str(config), option, str(tmp_path / "nowhere/plan"))
    assert (answer.returncode, "Traceback" in answer.stderr) == (1, False)
    assert f"{option}: the folder {tmp_path / 'nowhere'} does not exist" in answer.stderr


def test_a_file_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    answer = call("demo", "--folder", str(tmp_path / "file"))
    assert answer.returncode != 0
    assert str(tmp_path / "file") in answer.stderr


def test_the_help_of_localhub_names_its_options():
    answer = call("localhub", "--help")
    assert answer.returncode == 0
    for option in (
        "--folder",
        "--archive",
        "--port",
        "--s3-port",
        "--provider",
        "--account-pu",
        "--faults",
        "--settings",
    ):
        assert option in answer.stdout


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("provider: gcp", "provider: Input should be 'aws' or 'cdse'"),
        ("faults: {tiles: [{kind: lost}]}", "faults.tiles.0.kind: Input should be 'fatal'"),
        ("port: 80", "The settings port belong to the servers that start here"),
        ("[1, 2]", "holds a list; give names and values of settings"),
        ("{", "cannot be read as YAML or JSON"),
    ],
)
def test_a_setting_of_localhub_that_cannot_be_used_is_told_in_a_sentence(content: str, reason: str, tmp_path: Path):
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    answer = call(
        "localhub", "--folder", str(tmp_path / "hub"), "--port", "0", "--s3-port", "0", "--settings", str(file)
    )
    assert answer.returncode == 1
    assert reason in answer.stderr
    assert "Traceback" not in answer.stderr


def test_localhub_serves_an_archive_until_it_is_told_to_stop(small_sample: SampleInfo, tmp_path: Path):
    arguments = ["localhub", "--folder", tmp_path, "--archive", small_sample.folder, "--port", "0", "--s3-port", "0"]
    with subprocess.Popen([PROGRAM, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = next(line for line in process.stdout if line.startswith("Sentinel Hub stand-in"))
        url = next(word for word in told.split() if word.startswith("http://"))
        assert requests.get(f"{url}/health", timeout=10).ok
        process.terminate()
        assert process.wait(30) == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/health", timeout=10)


def test_localhub_uses_an_s3_server_that_runs_already_and_does_not_show_its_keys(
    small_sample: SampleInfo, s3: SeaweedFS, s3_files: s3fs.S3FileSystem, tmp_path: Path
):
    keys = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
    arguments = [
        "--folder",
        tmp_path,
        "--archive",
        small_sample.folder,
        "--port",
        "0",
        "--s3-endpoint",
        s3.endpoint_url,
    ]
    command = [PROGRAM, "localhub", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | keys) as process:
        assert process.stdout is not None
        told = [next(process.stdout) for _ in range(5)]
        assert s3_files.exists("eopatch-flow"), "the bucket is there before it answers"
        process.terminate()
        assert process.wait(30) == 0
    s3_files.rm("eopatch-flow", recursive=True)
    assert f"S3                     {s3.endpoint_url}  access key and secret: of the environment" in "".join(told)
    assert s3.secret_key not in "".join(told)
    assert s3.alive


def call(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command, whole = [PROGRAM, *arguments], os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=whole, timeout=300, check=False)


def written(parameters: LandCover, folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(parameters.model_dump(mode="json")))
    return path
