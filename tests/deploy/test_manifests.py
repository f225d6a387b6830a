"""The manifests of deploy/ are what Ray's launcher and KubeRay read, and agree with the project."""

from __future__ import annotations

import copy
import json
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import typer.main
import yaml
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.cli import app
from pipeline.cluster.jobs.submit import STAGES

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
LAUNCHER = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
RAYJOB = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
RAYJOB_SCHEMA = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())

CLUSTER = RAYJOB["spec"]["rayClusterSpec"]
HEAD, WORKERS = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"][0]
PODS = {"head": HEAD["template"]["spec"], "workers": WORKERS["template"]["spec"]}

Change = Callable[[Any], object]


def _check_rayjob(manifest: Any) -> None:
    jsonschema.Draft202012Validator(RAYJOB_SCHEMA).validate(manifest)


def _check_launcher(manifest: Any) -> None:
    """As ``ray up`` does, without a cloud: its schema as it stands, then with Ray's defaults for AWS."""
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(manifest, schema)
    validate_config(prepare_config(copy.deepcopy(manifest)))


def _renamed(mapping: dict[str, Any], old: str, new: str) -> None:
    mapping[new] = mapping.pop(old)


def _pinned(package: str) -> str:
    found = re.search(rf"^{re.escape(package)}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, package
    return found[1]


def test_ray_reads_the_launchers_manifest() -> None:
    _check_launcher(LAUNCHER)


def test_kuberay_reads_the_rayjob() -> None:
    jsonschema.Draft202012Validator.check_schema(RAYJOB_SCHEMA)
    _check_rayjob(RAYJOB)


LAUNCHER_FAULTS: dict[str, Change] = {
    "misspelt key": lambda it: _renamed(it, "setup_commands", "setup_command"),
    "misspelt key of a node": lambda it: _renamed(it["available_node_types"]["worker"], "min_workers", "min_worker"),
    "misspelt key of auth": lambda it: _renamed(it["auth"], "ssh_user", "user"),
    "no name": lambda it: it.pop("cluster_name"),
    "no provider": lambda it: it.pop("provider"),
    "no type of provider": lambda it: it["provider"].pop("type"),
    "no resources": lambda it: it["available_node_types"]["worker"].pop("resources"),
    "no node_config": lambda it: it["available_node_types"]["head"].pop("node_config"),
    "number as text": lambda it: it.update(max_workers="8"),
    "command as a number": lambda it: it["setup_commands"].append(3),
    "a head that is not there": lambda it: it.update(head_node_type="heads"),
    "fewer nodes than the least": lambda it: it.update(max_workers=1),
}


@pytest.mark.parametrize("fault", LAUNCHER_FAULTS)
def test_a_faulty_launchers_manifest_is_refused(fault: str) -> None:
    manifest = copy.deepcopy(LAUNCHER)
    LAUNCHER_FAULTS[fault](manifest)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        _check_launcher(manifest)


def _group(manifest: Any) -> Any:
    return manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


def _head(manifest: Any) -> Any:
    return manifest["spec"]["rayClusterSpec"]["headGroupSpec"]


def _container(manifest: Any) -> Any:
    return _head(manifest)["template"]["spec"]["containers"][0]


RAYJOB_FAULTS: dict[str, Change] = {
    "another version of the API": lambda it: it.update(apiVersion="ray.io/v1alpha1"),
    "another kind": lambda it: it.update(kind="RayCluster"),
    "misspelt key": lambda it: _renamed(it["spec"], "entrypoint", "entryPoint"),
    "misspelt end": lambda it: _renamed(it["spec"], "shutdownAfterJobFinishes", "shutdownAfterJobFinish"),
    "misspelt authentication": lambda it: _renamed(it["spec"]["rayClusterSpec"], "authOptions", "authOption"),
    "unknown mode": lambda it: it["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens"),
    "unknown submission": lambda it: it["spec"].update(submissionMode="K8sJob"),
    "number as text": lambda it: it["spec"].update(backoffLimit="0"),
    "negative": lambda it: it["spec"].update(ttlSecondsAfterFinished=-1),
    "no head": lambda it: it["spec"]["rayClusterSpec"].pop("headGroupSpec"),
    "no name of a group": lambda it: _group(it).pop("groupName"),
    "no least number": lambda it: _group(it).pop("minReplicas"),
    "replicas as text": lambda it: _group(it).update(replicas="2"),
    "parameter of ray start as a number": lambda it: _head(it)["rayStartParams"].update({"num-cpus": 0}),
    "no containers": lambda it: _head(it)["template"]["spec"].pop("containers"),
    "no name of a container": lambda it: _container(it).pop("name"),
    "limits beside the resources": lambda it: _container(it).update(limits=_container(it)["resources"].pop("limits")),
    "memory in no unit": lambda it: _container(it)["resources"]["limits"].update(memory="12 GB"),
    "a secret without its key": lambda it: _container(it)["env"][0]["valueFrom"]["secretKeyRef"].pop("key"),
    "a mount without its path": lambda it: _container(it)["volumeMounts"][0].pop("mountPath"),
    "a claim without its name": lambda it: _head(it)["template"]["spec"]["volumes"][0].update(persistentVolumeClaim={}),
}


@pytest.mark.parametrize("fault", RAYJOB_FAULTS)
def test_a_faulty_rayjob_is_refused(fault: str) -> None:
    manifest = copy.deepcopy(RAYJOB)
    RAYJOB_FAULTS[fault](manifest)
    with pytest.raises(jsonschema.ValidationError):
        _check_rayjob(manifest)


def test_versions_are_those_of_the_constraints_and_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert CLUSTER["rayVersion"] == _pinned("ray") == ray.__version__
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    image = re.search(r"^FROM python:(\d+\.\d+)-", dockerfile, re.MULTILINE)
    launched = re.search(r"\bpython(\d+\.\d+) -m venv", "\n".join(LAUNCHER["setup_commands"]))
    assert image
    assert launched
    assert image[1] == launched[1]
    assert image[1] in SpecifierSet(project["requires-python"])
    assert all(spec["containers"][0]["image"].endswith(f":{project['version']}") for spec in PODS.values())
    copied = re.search(r"^COPY \S+ (.*) \./$", dockerfile, re.MULTILINE)
    assert copied
    assert {project["readme"], *project["license-files"]} <= set(copied[1].split())  # pip refuses to build without them
    # Both install what the constraints pin, and nothing besides.
    assert re.findall(r"pip install (.*)", dockerfile) == ["--no-cache-dir -c constraints.txt -e ."]
    installs = [command for command in LAUNCHER["setup_commands"] if "pip install" in command]
    assert [command.split("pip install ")[1] for command in installs] == ["-q -c constraints.txt -e ."]


def test_the_commands_of_the_manifests_and_of_their_description_exist() -> None:
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert set(STAGES) - {"repro"} <= commands
    program, _, module, folder, stage = shlex.split(RAYJOB["spec"]["entrypoint"])
    assert (program, module) == ("python", "pipeline.cluster.jobs.entry_point")
    assert stage in STAGES
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
    assert any(
        Path(folder).is_relative_to(mount["mountPath"]) for mount in PODS["head"]["containers"][0]["volumeMounts"]
    )
    for text in ((DEPLOY / "README.md").read_text(), (DEPLOY / "ray-cluster.yaml").read_text()):
        for command in re.findall(r"\beqreg (submit) (\w+)", text):
            assert command[0] in commands
            assert command[1] in STAGES
    for path in re.findall(r"deploy/[\w.-]+", (DEPLOY / "README.md").read_text()):
        assert (ROOT / path).exists(), path


def _cores(spec: Any, kind: str) -> float:
    text = str(spec["containers"][0]["resources"][kind]["cpu"])
    return float(text.removesuffix("m")) / (1000 if text.endswith("m") else 1)


def _gib(spec: Any, kind: str) -> float:
    text = spec["containers"][0]["resources"][kind]["memory"]
    number, unit = re.fullmatch(r"(\d+)(\wi)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"Mi": 2**-10, "Gi": 1}[unit]


@pytest.mark.parametrize("pod", PODS)
def test_pods_ask_for_what_they_may_use_and_it_holds_the_work(pod: str) -> None:
    """Requests equal limits: Ray counts the limit as its own. 1 GiB a worker of the network, and the object store."""
    spec = PODS[pod]
    assert _cores(spec, "requests") == _cores(spec, "limits")
    assert _gib(spec, "requests") == _gib(spec, "limits")
    memory = next(volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"] if volume["name"] == "memory")
    assert _gib(spec, "limits") >= _cores(spec, "limits") + float(memory.removesuffix("Gi"))
    assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == {v["name"] for v in spec["volumes"]}


def test_work_goes_to_workers_of_which_there_are_enough_for_two() -> None:
    assert HEAD["rayStartParams"]["num-cpus"] == "0"
    assert WORKERS["minReplicas"] <= WORKERS["replicas"] <= WORKERS["maxReplicas"]
    assert WORKERS["minReplicas"] * _cores(PODS["workers"], "limits") >= 2
    head, worker = (LAUNCHER["available_node_types"][name] for name in ("head", "worker"))
    assert head["resources"]["CPU"] == 0
    assert worker["min_workers"] <= worker["max_workers"] <= LAUNCHER["max_workers"]
    # Ray places by this number, whatever the machine has: m6i.xlarge has 4 virtual cores, m6i.Nxlarge 4 N.
    size = re.fullmatch(r"m6i\.(\d*)xlarge", worker["node_config"]["InstanceType"])
    assert size
    assert worker["resources"]["CPU"] == 4 * int(size[1] or 1)


def test_the_token_stays_on_and_no_secret_is_in_a_manifest() -> None:
    assert CLUSTER["authOptions"]["mode"] == "token"
    assert "~/.ray/auth_token" in LAUNCHER["file_mounts"]
    for kind in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in LAUNCHER[kind] if "ray start" in command]
        assert len(starts) == 1
        assert "RAY_AUTH_MODE=token ray start" in starts[0]
        assert "dashboard-host" not in starts[0]  # Ray's own choice is the loopback
    for spec in PODS.values():
        for variable in spec["containers"][0].get("env", []):
            assert "secretKeyRef" in variable["valueFrom"]


def test_pods_and_the_image_run_without_root() -> None:
    users = re.findall(r"^USER (\d+):(\d+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert len(users) == 1
    for spec in PODS.values():
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]) == tuple(
            map(int, users[0])
        )
    assert PODS["head"]["containers"][0]["image"] == PODS["workers"]["containers"][0]["image"]


def test_every_value_that_is_the_users_is_marked() -> None:
    """Addresses of example.com, image and profile names, regions, sizes."""
    for name in ("ray-cluster.yaml", "rayjob.yaml"):
        lines = (DEPLOY / name).read_text().splitlines()
        theirs = re.compile(
            r"example\.com|InstanceType|ImageId|InstanceProfile|region:|[^_]min_workers: [1-9]|claimName"
        )
        for before, line in zip(["", *lines], lines, strict=False):
            if theirs.search(line) and not line.lstrip().startswith("#"):
                assert "CHANGE" in line or "CHANGE" in before, line
