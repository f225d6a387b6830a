"""Training over two hosts: the same as on one, whatever host is lost, and with fewer workers where there are fewer."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.cluster.hosts import Hosts, two_hosts
from tests.pipeline.training_runs import forget, history, reported, weights
from tests.pipeline.workspace import Workspace, wait_for

pytestmark = pytest.mark.hosts
STEPS, CHECKPOINT_EVERY = 400, 40
ENDLESS = 1_000_000  # steps of runs that are not to end by themselves, however fast the machine is


RUN: dict[str, Any] = {
    "train.steps": STEPS,
    "train.num_workers": 2,
    "cluster.cpus_per_worker": 1,
    "cluster.placement": "strict_spread",
    "cluster.wait_s": 300,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, packed: Path) -> Workspace:
    """With packs and a storage that both hosts see; only host A sees the project's folder."""
    folder = tmp_path_factory.mktemp("two_hosts")
    (folder / "project").mkdir()
    changes = {
        **RUN,
        "train.checkpoint_every": CHECKPOINT_EVERY,
        "network.norm": "none",
        "cluster.storage": str(folder / "storage"),
        "cluster.cache": str(folder / "cache"),
        "tune.trials": 0,
    }
    return Workspace(folder / "project", changes, packed)


@pytest.fixture(scope="module")
def hosts(prepared: Workspace) -> Iterator[Hosts]:
    with two_hosts(hidden=prepared.folder) as both:
        yield both


@pytest.fixture(scope="module")
def on_one_host(prepared: Workspace) -> tuple[str, list[tuple[int, float]]]:
    """(weights, history) of two workers on this machine."""
    prepared.set({"cluster.placement": "pack"})
    prepared.run("eqreg", "train")
    return weights(prepared), history(prepared)


def train(hosts: Hosts, workspace: Workspace, changes: dict[str, Any] | None = None) -> subprocess.Popen[str]:
    """The command on host A, for another run than before.

    The project is not on the path of the cluster's Python: Ray carries it there.
    """
    forget(workspace)
    shutil.rmtree(workspace.folder.parent / "storage/train", ignore_errors=True)  # else a finished run is taken up
    workspace.set({**RUN, "cluster.address": Hosts.address, **(changes or {})})
    command = [sys.executable, "-m", "pipeline.cli", "train"]
    return hosts.start("A", command, workspace.folder, workspace.environment())


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits, as long as the process runs."""
    wait_for(condition, 240, process)


def are_spread(hosts: Hosts) -> bool:
    """Whether each host has one worker."""
    return [len(hosts.workers(host)) for host in "AB"] == [1, 1]


def ended(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_a_host_is_lost_and_returns_and_the_run_ends_with_the_bytes_of_one_on_a_single_host(
    hosts: Hosts, prepared: Workspace, on_one_host: tuple[str, list[tuple[int, float]]], tmp_path: Path
) -> None:
    process = train(hosts, prepared)
    until(lambda: are_spread(hosts) and reported(prepared) >= 60, process)
    hosts.kill("B")
    hosts.start_ray("B")
    until(lambda: are_spread(hosts), process)
    output = ended(process)
    assert "lost" in output
    assert "2 workers go on after step" in output
    assert weights(prepared) == on_one_host[0]
    assert history(prepared) == on_one_host[1]


@pytest.mark.slow
def test_packs_are_fetched_once_a_host_and_not_once_a_worker(prepared: Workspace) -> None:
    """Both hosts share the cache folder here, so there is one copy for the four workers of the runs before."""
    (copy,) = [path for path in (prepared.folder.parent / "cache").iterdir() if path.is_dir()]
    assert (copy / "train").is_dir() or any(copy.rglob("train"))


@pytest.mark.slow
def test_with_fewer_hosts_fewer_workers_go_on_and_more_when_it_returns_and_interrupted_none_is_left(
    hosts: Hosts, prepared: Workspace, on_one_host: tuple[str, list[tuple[int, float]]]
) -> None:
    changes = {
        "cluster.placement": "spread",
        "cluster.cpus_per_worker": 2,  # all of a host
        "cluster.resize_s": 10,
        "train.num_workers": [1, 2],
        "train.steps": ENDLESS,
    }
    process = train(hosts, prepared, changes)
    until(lambda: are_spread(hosts) and reported(prepared) >= 60, process)
    before = reported(prepared)
    hosts.kill("B")
    until(lambda: reported(prepared) > before + CHECKPOINT_EVERY, process)
    assert [len(hosts.workers(host)) for host in "AB"] == [1, 0]
    hosts.start_ray("B")
    until(lambda: are_spread(hosts), process)
    alone = reported(prepared)
    until(lambda: reported(prepared) > alone + CHECKPOINT_EVERY, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "Traceback" not in output, output
    wait_for(lambda: not hosts.workers("A") and not hosts.workers("B"), 30)
    assert "1 workers go on after step" in output
    assert output.rindex("2 workers go on after step") > output.rindex("1 workers go on after step")
    steps, losses = zip(*history(prepared), strict=True)
    assert list(steps) == list(range(5, steps[-1] + 1, 5))
    expected = [value for _, value in on_one_host[1]][:10]  # the schedule of the rate is another later on
    assert losses[:10] == pytest.approx(expected, rel=0.2)


@pytest.mark.slow
def test_a_host_that_does_not_return_is_waited_for_as_long_as_was_said(hosts: Hosts, prepared: Workspace) -> None:
    changes = {"cluster.wait_s": 40, "train.steps": ENDLESS}
    process = train(hosts, prepared, changes)
    until(lambda: reported(prepared) >= 40, process)
    hosts.kill("B")
    start = time.monotonic()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert "cluster.wait_s: 2 workers with 1 CPU each did not start in 40 s" in output
    assert "Traceback" not in output
    assert 40 < time.monotonic() - start < 140
    output, _ = train(hosts, prepared, changes).communicate(timeout=300)
    assert "2 workers with 1 CPU each on a node of its own" in output
    assert "room for 1 (1 node: 2 CPU)" in output
    hosts.start_ray("B")
