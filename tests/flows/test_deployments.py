"""Prefect's own commands take every deployment, on a real server; a worker runs one."""

import asyncio
import json
import os
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import docker.models.containers
import jsonschema
import pytest
import requests
import yaml
from kubernetes_asyncio import client as kubernetes
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import Flow, FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration
from pydantic import SecretStr

from flows.land_cover import land_cover
from flows.parameters import LandCover
from flows.stop_orphans import stop_orphans
from tasks.service import SentinelHubCredentials
from tasks.storage import S3Credentials
from tests.loopback import free_port

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deployments" / "prefect.yaml"
JOB_TEMPLATE = ROOT / "deployments" / "kubernetes-job-template.json"
PREFECT = Path(sysconfig.get_path("scripts")) / "prefect"
WRITTEN = {each["name"]: each for each in yaml.safe_load(FILE.read_text())["deployments"]}
FLOWS = {"flows.land_cover.land_cover": land_cover, "flows.stop_orphans.stop_orphans": stop_orphans}
POOLS = {
    "eopatch-flow": ["--type", "process"],
    "eopatch-flow-docker": ["--type", "docker"],
    "eopatch-flow-kubernetes": ["--type", "kubernetes", "--base-job-template", str(JOB_TEMPLATE)],
}
SECRETS = "planted-client-secret", "planted-s3-secret"
RUN_SECONDS = 240.0
ELSEWHERE = "https://prefect.example.org/api"


@pytest.fixture(scope="module")
def deployed(prefect_server: None) -> dict[str, DeploymentResponse]:  # noqa: ARG001 - it is deployed there
    """All deployments by name, made by the commands of the documentation; the blocks that they name exist."""
    SentinelHubCredentials(client_id="me", client_secret=SecretStr(SECRETS[0])).save("eopatch-flow", overwrite=True)
    S3Credentials(access_key="me", secret_key=SecretStr(SECRETS[1])).save("eopatch-flow", overwrite=True)
    for name, options in POOLS.items():
        prefect("work-pool", "create", name, *options, "--overwrite")
    prefect("--no-prompt", "deploy", "--prefect-file", "deployments/prefect.yaml", "--all")
    with get_client(sync_client=True) as client:
        flows = {flow.id for flow in client.read_flows() if flow.name in {"land-cover", "stop-orphans"}}
        found = [one for one in client.read_deployments() if one.flow_id in flows]
    return {one.name: one for one in found if one.name in WRITTEN}


def test_every_deployment_is_taken_as_it_is_written(deployed: dict[str, DeploymentResponse]) -> None:
    assert deployed.keys() == WRITTEN.keys()
    for name, found in deployed.items():
        written = WRITTEN[name]
        assert (found.entrypoint, found.work_pool_name) == (written["entrypoint"], written["work_pool"]["name"])
        assert found.parameters == written["parameters"]
        assert found.job_variables == written["work_pool"].get("job_variables", {})
        assert found.concurrency_options is not None
        assert found.global_concurrency_limit is not None
        limit = {
            "limit": found.global_concurrency_limit.limit,
            "collision_strategy": found.concurrency_options.collision_strategy.value,
        }
        assert limit == written["concurrency_limit"]
        assert len(found.schedules) == len(written.get("schedules", []))
        assert found.pull_steps == []


def test_what_is_scheduled_is_the_month_before_and_the_search_for_orphans(
    deployed: dict[str, DeploymentResponse],
) -> None:
    told = {name: str(each.schedule) for name, found in deployed.items() for each in found.schedules if each.active}
    assert told.keys() == {"monthly", "orphans", "localhub-orphans"}
    assert "cron='0 6 3 * *'" in told["monthly"]
    assert deployed["monthly"].parameters["period"]["days"] == "last full month"


@pytest.mark.parametrize("name", WRITTEN)
def test_the_parameters_of_each_deployment_are_those_of_its_flow(name: str) -> None:
    written = WRITTEN[name]
    FLOWS[written["entrypoint"]].validate_parameters(written["parameters"])
    if written["entrypoint"].endswith("land_cover"):
        parameters = LandCover.model_validate(written["parameters"])
        assert (parameters.service.credentials_block is None) == (name == "localhub")
        if name == "monthly":
            assert parameters.limits.ask_above_pu is None, "a scheduled run cannot ask"


def test_no_deployment_holds_a_secret(deployed: dict[str, DeploymentResponse]) -> None:
    told = json.dumps([found.model_dump(mode="json") for found in deployed.values()])
    assert "credentials_block" in told
    assert not any(secret in told for secret in SECRETS)


def test_the_docker_variant_is_a_container_with_an_image_and_bounds(deployed: dict[str, DeploymentResponse]) -> None:
    client = docker.DockerClient(base_url="tcp://127.0.0.1:1", version="1.43")  # asked for nothing
    settings = DockerWorker("eopatch-flow-docker")._build_container_settings(client, docker_job(deployed["docker"]))
    assert settings["image"] == "eopatch-flow-worker:latest"
    assert settings["mem_limit"] == "8g"
    assert settings["nano_cpus"] == 2_000_000_000
    assert settings["environment"]["GDAL_CACHEMAX"] == "256"
    known = {*docker.models.containers.RUN_CREATE_KWARGS, *docker.models.containers.RUN_HOST_CONFIG_KWARGS}
    unknown = settings.keys() - known - {"image", "network", "volumes"}
    assert not unknown, "what docker's client would refuse"


def test_the_kubernetes_template_is_one_of_prefects_worker_with_defaults_of_ours() -> None:
    ours, theirs = json.loads(JOB_TEMPLATE.read_text()), KubernetesWorker.get_default_base_job_template()
    jsonschema.Draft202012Validator.check_schema(ours["variables"])
    assert ours["job_configuration"].keys() == theirs["job_configuration"].keys()
    assert ours["variables"]["properties"].keys() >= theirs["variables"]["properties"].keys()
    assert ours["variables"]["definitions"] == theirs["variables"]["definitions"]
    defaults = {name: each["default"] for name, each in ours["variables"]["properties"].items() if "default" in each}
    jsonschema.validate(defaults, ours["variables"])


def test_the_kubernetes_variant_is_a_job_of_kubernetes_own_fields_and_not_root(
    deployed: dict[str, DeploymentResponse],
) -> None:
    job = kubernetes_job(deployed["kubernetes"])
    assert unknown_fields(job, "V1Job") == []
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["terminationGracePeriodSeconds"] == 120
    assert container["image"] == "registry.example.org/eopatch-flow-worker:latest"
    assert container["resources"]["limits"] == {"memory": "8Gi"}
    assert container["resources"]["requests"] == {"cpu": "2", "memory": "4Gi"}
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert {"name": "PREFECT_API_URL", "value": ELSEWHERE} in container["env"]


def test_a_worker_runs_a_deployment_and_tells_of_its_health(
    deployed: dict[str, DeploymentResponse], parameters: LandCover, tmp_path: Path
) -> None:
    with worker(tmp_path) as health, get_client(sync_client=True) as client:
        own = parameters.model_dump(mode="json")
        run = client.create_flow_run_from_deployment(deployed["localhub"].id, parameters=own)
        end = time.monotonic() + RUN_SECONDS
        while not (state := client.read_flow_run(run.id).state) or not state.is_final():
            assert time.monotonic() < end, state
            time.sleep(1)
        assert state.is_completed(), state
        assert "4 of 4 EOPatches are ready" in str(state.message)
        assert requests.get(health, timeout=5).json() == {"message": "OK"}


# ---- what Prefect's workers make of a deployment ----


def docker_job(deployment: DeploymentResponse) -> DockerWorkerJobConfiguration:
    return asyncio.run(_job(DockerWorkerJobConfiguration, deployment))


def kubernetes_job(deployment: DeploymentResponse) -> dict[str, Any]:
    job: KubernetesWorkerJobConfiguration = asyncio.run(_job(KubernetesWorkerJobConfiguration, deployment))
    return job.job_manifest


async def _job(configuration: Any, deployment: DeploymentResponse) -> Any:
    async with get_client() as client:
        pool = await client.read_work_pool(str(deployment.work_pool_name))
    values = deployment.job_variables or {}
    elsewhere = {"PREFECT_API_URL": ELSEWHERE}  # a server that containers reach
    values |= {"env": values.get("env", {}) | elsewhere}
    made = await configuration.from_template_and_values(base_job_template=pool.base_job_template, values=values)
    run = FlowRun(flow_id=deployment.flow_id, deployment_id=deployment.id, name="some-run")
    made.prepare_for_flow_run(run, deployment=deployment, flow=Flow(name="land-cover"), work_pool=pool, worker_name="w")
    return made


def unknown_fields(value: Any, kind: str, place: str = "") -> list[str]:
    """Places in a manifest that Kubernetes' own model of its API does not have."""
    if kind.startswith("list["):
        return [
            one for number, each in enumerate(value) for one in unknown_fields(each, kind[5:-1], f"{place}[{number}]")
        ]
    if not (isinstance(value, dict) and hasattr(kubernetes, kind)):
        return []
    model = getattr(kubernetes, kind)
    kinds = {name: model.openapi_types[attribute] for attribute, name in model.attribute_map.items()}
    strange = [f"{place}.{name}" for name in value.keys() - kinds.keys()]
    known = value.keys() & kinds.keys()
    return strange + [one for name in known for one in unknown_fields(value[name], kinds[name], f"{place}.{name}")]


# ---- commands ----


def prefect(*arguments: str) -> None:
    done = subprocess.run(
        [PREFECT, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def worker(folder: Path) -> Iterator[str]:
    """The worker of docker/Dockerfile's command, in an empty folder; the address that tells of its health."""
    port = free_port()
    changes = {"PREFECT_WORKER_WEBSERVER_PORT": str(port), "PREFECT_WORKER_QUERY_SECONDS": "1"}
    command = [PREFECT, "worker", "start", "--pool", "eopatch-flow", "--with-healthcheck"]
    with (folder / "worker.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment() | changes, stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}/health"
        finally:
            process.terminate()
            process.wait(180)


def environment() -> dict[str, str]:
    return os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
