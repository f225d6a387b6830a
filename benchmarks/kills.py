"""Kills workers, the command and a whole host at random points of real training runs, and compares the weights.

    python -m benchmarks.kills [--kills 24] [--seed 0]

For 2 and 3 workers on one machine, and 2 on two hosts (network namespaces: root and iproute2): a run that is left
alone, then runs of the same parameters that are killed and, where the command itself died, started again, until they
end. A JSON line a run: the kills and the last step that was reported at each, how many of these were not yet in a
checkpoint, whether the weights are the same to the byte, and whether MLflow's history has each report once. The last
line has the sums.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tests.pipeline.cluster.hosts import Hosts
from tests.pipeline.training_runs import forget, history, reported, saved, weights, workers_of
from tests.pipeline.workspace import Workspace

CHECKPOINT_EVERY = 50
PARAMS: dict[str, Any] = {
    "train.steps": 1200,
    "train.checkpoint_every": CHECKPOINT_EVERY,
    "train.batch_size": 16,
    "cluster.max_failures": 50,
    "tune.trials": 0,
}
CASES: dict[str, dict[str, Any]] = {
    "2 workers": {"train.num_workers": 2, "cluster.cpus_per_worker": 1},
    "3 workers": {"train.num_workers": 3, "cluster.cpus_per_worker": 0.5},
    "2 workers on 2 hosts": {
        "train.num_workers": 2,
        "cluster.cpus_per_worker": 1,
        "cluster.address": Hosts.address,
        "cluster.placement": "strict_spread",
    },
}
KINDS = {
    "2 workers": ("worker", "command"),
    "3 workers": ("worker", "command"),
    "2 workers on 2 hosts": ("host", "worker"),
}


class Run:
    """One training that is killed again and again."""

    def __init__(self, workspace: Workspace, hosts: Hosts | None) -> None:
        self.workspace, self.hosts = workspace, hosts
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        if self.hosts is None:
            return self.workspace.start("eqreg", "train")
        command = [sys.executable, "-m", "pipeline.cli", "train"]
        return self.hosts.start("A", command, self.workspace.folder, self.workspace.environment())

    def kill(self, kind: str, source: random.Random) -> None:
        """SIGKILL; what does not come back by itself is started again."""
        if kind == "command":
            self.process.send_signal(signal.SIGKILL)
            self.process.communicate()
            self.process = self._start()
        elif kind == "host":
            assert self.hosts
            self.hosts.kill("B")
            self.hosts.start_ray("B")
        else:
            found = (
                workers_of(self.process.pid)
                if self.hosts is None
                else [worker for host in "AB" for worker in self.hosts.workers(host)]
            )
            source.choice(sorted(found, key=lambda worker: worker.pid)).send_signal(signal.SIGKILL)

    def is_over(self) -> bool:
        return self.process.poll() is not None


def killed(workspace: Workspace, hosts: Hosts | None, kinds: tuple[str, ...], count: int, source: random.Random) -> Any:
    """Trains with so many kills at random points; gives what happened at each."""
    forget(workspace)
    steps = PARAMS["train.steps"]
    marks = sorted(source.sample(range(10, steps - 100), count))
    run, kills = Run(workspace, hosts), []
    for mark in marks:
        while reported(workspace) < mark and not run.is_over():
            time.sleep(0.05)
        time.sleep(source.uniform(0, 0.5))  # anywhere in a step, a report or a checkpoint
        kind = source.choice(kinds)
        if run.is_over():
            break
        # The checkpoints first: a step made meanwhile is then not counted as done twice.
        newest, at = max(saved(workspace), default=0), reported(workspace)
        try:
            run.kill(kind, source)
        except IndexError:
            continue  # between two groups of workers: nobody to kill
        kills.append({"kind": kind, "step": at, "again": max(0, at - newest)})
        print(f"  {kind} killed at step {at}, newest checkpoint {newest}", file=sys.stderr, flush=True)
    output, _ = run.process.communicate(timeout=600)
    if run.process.returncode:
        raise RuntimeError(output)
    return kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=24, help="in all, over two runs of each case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    source, all_kills, all_good = random.Random(arguments.seed), 0, True
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in ((name, CASES[name]) for name in arguments.cases):
            place = Path(folder) / name.replace(" ", "-")
            place.mkdir()
            workspace = Workspace(place, PARAMS)
            workspace.run("eqreg", "fetch")
            workspace.run("eqreg", "preprocess")
            workspace.set(changes)
            with Hosts() if "hosts" in name else nullcontext() as hosts:
                killed(workspace, hosts, (), 0, source)
                expected = weights(workspace), history(workspace)
                for repetition in range(2):
                    count = -(-arguments.kills // (2 * len(CASES)))
                    kills = killed(workspace, hosts, KINDS[name], count, source)
                    record = {
                        "case": name,
                        "repetition": repetition,
                        "kills": kills,
                        "most_steps_again": max((kill["again"] for kill in kills), default=0),
                        "checkpoint_every": CHECKPOINT_EVERY,
                        "weights_identical": weights(workspace) == expected[0],
                        "history_identical": history(workspace) == expected[1],
                    }
                    all_kills += len(kills)
                    all_good &= record["weights_identical"] and record["history_identical"]
                    print(json.dumps(record), flush=True)
    print(json.dumps({"kills": all_kills, "all_identical": all_good}), flush=True)
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
