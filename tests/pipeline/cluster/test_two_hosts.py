"""Training over two hosts: the same as on one, whatever host is lost, and with fewer workers where there are fewer."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pipeline.cluster.hosts import Hosts, two_hosts
from tests.pipeline.training_runs import forget, history, reported, weights
from tests.pipeline.workspace import Workspace, wait_for

pytestmark = pytest.mark.end_to_end
STEPS, CHECKPOINT_EVERY = 400, 40
EVERY_REPORT = list(range(5, STEPS + 1, 5))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """With packs and a storage that both hosts see; only host A sees the project's folder."""
    folder = tmp_path_factory.mktemp("two_hosts")
    (folder / "project").mkdir()
    changes = {
        "train.steps": STEPS,
        "train.checkpoint_every": CHECKPOINT_EVERY,
        "train.num_workers": 2,
        "network.norm": "none",
        "cluster.cpus_per_worker": 1,
        "cluster.storage": str(folder / "storage"),
        "cluster.cache": str(folder / "cache"),
        "tune.trials": 0,
    }
    made = Workspace(folder / "project", changes)
    made.run("eqreg", "fetch")
    made.run("eqreg", "preprocess")
    return made


@pytest.fixture(scope="module")
def hosts(prepared: Workspace) -> Iterator[Hosts]:
    with two_hosts(hidden=prepared.folder) as both:
        yield both


@pytest.fixture(scope="module")
def on_one_host(prepared: Workspace) -> tuple[str, list[tuple[int, float]]]:
    """(weights, history) of two workers on this machine."""
    prepared.run("eqreg", "train")
    return weights(prepared), history(prepared)


def train(hosts: Hosts, workspace: Workspace) -> subprocess.Popen[str]:
    """The command on host A. The project is not on the path of the cluster's Python: Ray carries it there."""
    workspace.set({"cluster.address": Hosts.address})
    command = [sys.executable, "-m", "pipeline.cli", "train"]
    return hosts.start("A", command, workspace.folder, workspace.environment())


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits, as long as the process runs."""
    wait_for(lambda: process.poll() is not None or condition(), 120)
    assert process.poll() is None, process.communicate()[0]


def ended(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def test_a_host_is_lost_and_returns_and_the_run_ends_with_the_bytes_of_one_on_a_single_host(
    hosts: Hosts, prepared: Workspace, on_one_host: tuple[str, list[tuple[int, float]]], tmp_path: Path
) -> None:
    forget(prepared)
    prepared.set({"cluster.placement": "strict_spread"})
    process = train(hosts, prepared)
    until(lambda: reported(prepared) >= 60, process)
    assert [len(hosts.workers(host)) for host in "AB"] == [1, 1]
    before = reported(prepared)
    hosts.kill("B")
    hosts.start_ray("B")
    until(lambda: reported(prepared) > before, process)
    assert [len(hosts.workers(host)) for host in "AB"] == [1, 1]
    output = ended(process)
    assert "lost" in output
    assert "2 workers go on after step" in output
    assert weights(prepared) == on_one_host[0]
    assert history(prepared) == on_one_host[1]


def test_packs_are_fetched_once_a_host_and_not_once_a_worker(prepared: Workspace) -> None:
    """Both hosts share the cache folder here, so there is one copy for the four workers of the runs before."""
    (copy,) = [path for path in (prepared.folder.parent / "cache").iterdir() if path.is_dir()]
    assert (copy / "train").is_dir() or any(copy.rglob("train"))


def test_with_fewer_hosts_fewer_workers_go_on_and_more_when_it_returns(
    hosts: Hosts, prepared: Workspace, on_one_host: tuple[str, list[tuple[int, float]]]
) -> None:
    forget(prepared)
    changes = {
        "cluster.placement": "spread",
        "cluster.cpus_per_worker": 2,  # all of a host
        "cluster.resize_s": 10,
        "train.num_workers": [1, 2],
        "train.steps": 2400,
    }
    prepared.set(changes)
    process = train(hosts, prepared)
    until(lambda: reported(prepared) >= 60, process)
    before = reported(prepared)
    hosts.kill("B")
    until(lambda: reported(prepared) > before + CHECKPOINT_EVERY, process)
    assert len(hosts.workers("A")) == 1
    hosts.start_ray("B")
    until(lambda: len(hosts.workers("B")) == 1, process)
    output = ended(process)
    assert "1 workers go on after step" in output
    assert output.rindex("2 workers go on after step") > output.rindex("1 workers go on after step")
    losses = [value for _, value in history(prepared)]
    assert [step for step, _ in history(prepared)] == list(range(5, 2401, 5))
    alone = [value for _, value in on_one_host[1]][:50]  # the schedule of the rate is another later on
    assert losses[:10] == pytest.approx(alone[:10], rel=0.2)
    prepared.set({"train.num_workers": 2, "train.steps": STEPS, "cluster.cpus_per_worker": 1})


def test_a_host_that_does_not_return_is_waited_for_as_long_as_was_said(hosts: Hosts, prepared: Workspace) -> None:
    forget(prepared)
    prepared.set({"cluster.placement": "strict_spread", "cluster.wait_s": 40, "train.steps": 12000})
    process = train(hosts, prepared)
    until(lambda: reported(prepared) >= 40, process)
    hosts.kill("B")
    start = time.monotonic()
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2, output
    assert "cluster.wait_s: 2 workers with 1 CPU each did not start in 40 s" in output
    assert "Traceback" not in output
    assert 40 < time.monotonic() - start < 140
    output, _ = train(hosts, prepared).communicate(timeout=60)
    assert "2 workers with 1 CPU each on a node of its own" in output
    assert "room for 1 (1 node: 2 CPU)" in output
    hosts.start_ray("B")
    prepared.set({"cluster.wait_s": 300, "train.steps": STEPS})


def test_an_interrupted_command_leaves_no_worker_on_any_host(hosts: Hosts, prepared: Workspace) -> None:
    forget(prepared)
    process = train(hosts, prepared)
    until(lambda: reported(prepared) >= 20, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in output, output
    wait_for(lambda: not hosts.workers("A") and not hosts.workers("B"), 30)
