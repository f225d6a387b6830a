"""``eqreg cluster check``: checks whether a cluster can be used for training, and prints one line for each problem."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from components.brief import first_line
from pipeline.cluster.doctor.node_report import NodeReport, Questions, node_versions, report, without_secrets
from pipeline.cluster.session import ray_session, secret_environment
from pipeline.config.schema import Params
from pipeline.console import console
from pipeline.errors import UserError
from pipeline.paths import PACKED, SCRATCH
from pipeline.storage.open_store import open_store
from pipeline.storage.staged_packs import StagedPacks, deliver
from pipeline.storage.store import ArtifactStore

LARGEST_CLOCK_DIFFERENCE = 5.0  # seconds
_PATIENCE = 60.0  # seconds within which a node must answer; it first starts a process and fetches the project's code
_HINTS = {"eqreg": "let it be that of the driver: take older copies out of its PYTHONPATH and site-packages"}
_INSTALL = "install the same on every node (constraints.txt)"


@dataclass(frozen=True)
class _Node:
    id: str
    host: str
    address: str
    resources: Mapping[str, float]

    def __str__(self) -> str:
        return f"node {self.host} ({self.address})"


def check(params: Params) -> None:
    """Prints the nodes of the cluster and the problems found.

    Every node reports its versions, its clock, and whether it reaches the artifact store and the tracking server. The
    bandwidth between nodes is measured with an all-reduce.

    Raises:
        UserError: no cluster answers, or there are problems, which have been printed.
    """
    wait = min(_PATIENCE, float(params.cluster.wait_s))
    with ray_session(params.cluster, dashboard=False):
        nodes, num_lost = _nodes()
        questions, problems, notes = _questions(params)
        try:
            reports = _ask(nodes, questions, wait, problems)
        finally:
            _delete_probe(questions)
        _compare(nodes, reports, problems)
        _show(nodes, reports)
        if num_lost:
            console.print(f"{num_lost} nodes that were in the cluster have left it", markup=False)
        for note in notes:
            console.print(note, markup=False)
        _links([node for node in nodes if node.id in reports], params.cluster.interface, wait, problems)
    for problem in problems:
        console.print(problem, markup=False)
    if problems:
        number = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise UserError(f"cluster.address: {params.cluster.address}: {number} on {len(nodes)} nodes, listed above")
    console.print(f"all is well on {len(nodes)} node{'s' if len(nodes) > 1 else ''}")


def _nodes() -> tuple[list[_Node], int]:
    """The alive nodes, and the number of nodes that have left the cluster."""
    import ray

    all_nodes = ray.nodes()
    living = [
        _Node(node["NodeID"], node["NodeManagerHostname"], node["NodeManagerAddress"], node["Resources"])
        for node in all_nodes
        if node["Alive"]
    ]
    return sorted(living, key=lambda node: (node.host, node.address)), len(all_nodes) - len(living)


def _questions(params: Params) -> tuple[Questions, list[str], list[str]]:
    """The questions for every node, the problems on the driver, and notes for the user."""
    from pipeline.tracking.store import tracking_uri

    problems: list[str] = []
    here = f"node {socket.gethostname()} (the driver)"
    artifact_store: ArtifactStore | None = None
    probe: tuple[str, bytes] | None = None
    try:
        artifact_store = open_store(params.cluster.storage or str(SCRATCH.resolve()))
        name, content = f"check/driver-{secrets.token_hex(8)}", secrets.token_bytes(16)
        artifact_store.write(name, content)
        probe = name, content
    except UserError as error:
        problems.append(f"{here}: {error}")
    notes = [f"storage: {artifact_store.address}"] if artifact_store else []
    staged: StagedPacks | None = None
    if params.cluster.storage is None:
        try:
            staged = deliver(PACKED, None, params.cluster.cache)
            notes.append(f"packs: read in place, {staged.packed}")
        except UserError as error:
            notes.append(f"packs: not checked ({error})")
    tracking = tracking_uri()
    asked = tracking.startswith(("http://", "https://", "postgresql"))
    why = "" if asked else " (the driver alone writes there)"
    notes.append(f"tracking: {without_secrets(tracking)}{why}")
    return Questions(artifact_store, probe, staged, tracking if asked else None, secret_environment()), problems, notes


def _delete_probe(questions: Questions) -> None:
    if questions.artifact_store and questions.probe:
        with suppress(UserError):
            questions.artifact_store.delete(questions.probe[0])


def _ask(
    nodes: Sequence[_Node], questions: Questions, timeout: float, problems: list[str]
) -> dict[str, tuple[NodeReport, float]]:
    """Node id -> (its report, seconds by which its clock is ahead of the driver's).

    A node that does not answer is added to ``problems``.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    running: dict[Any, _Node] = {}
    for node in nodes:
        only_there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        task = ray.remote(report).options(num_cpus=0, max_retries=0, scheduling_strategy=only_there)
        running[task.remote(questions)] = node
    reports: dict[str, tuple[NodeReport, float]] = {}
    end = time.monotonic() + timeout
    while running and (left := end - time.monotonic()) > 0:
        ready, _ = ray.wait(list(running), timeout=left)
        now = time.time()
        for reference in ready:
            node = running.pop(reference)
            try:
                answer = ray.get(reference)
                reports[node.id] = answer, answer.clock - now
            except ray.exceptions.RayTaskError as error:
                reason = first_line(f"{type(error.cause).__name__}: {error.cause}")
                problems.append(f"{node}: cannot run the project's code ({reason}): {_INSTALL}")
            except ray.exceptions.RayError as error:
                problems.append(f"{node}: its process is lost ({first_line(error)}): see its memory and Ray's logs")
    for reference, node in running.items():
        ray.cancel(reference, force=True)
        problems.append(f"{node}: does not answer within {timeout:.0f} s: look whether it is up, restart Ray on it")
    return reports


def _compare(nodes: Sequence[_Node], reports: Mapping[str, tuple[NodeReport, float]], problems: list[str]) -> None:
    """Adds the problems in the nodes' reports: other versions than the driver's, and clocks that differ too much."""
    wanted = node_versions()
    for node in nodes:
        if node.id not in reports:
            continue
        answer, ahead = reports[node.id]
        for name, version in answer.versions.items():
            if version != wanted[name]:
                hint = _HINTS.get(name, _INSTALL)
                problems.append(f"{node}: {name} {version}, where the driver has {wanted[name]}: {hint}")
        problems += [f"{node}: {problem}" for problem in answer.problems]
        if abs(ahead) > LARGEST_CLOCK_DIFFERENCE:
            side = "ahead of" if ahead > 0 else "behind"
            problems.append(f"{node}: its clock is {abs(ahead):.0f} s {side} the driver's: let NTP set both")


def _links(nodes: Sequence[_Node], interface: str, timeout: float, problems: list[str]) -> None:
    """Measures and prints the bandwidth between nodes."""
    from pipeline.cluster.doctor.bandwidth import MIB, measure_links

    by_id = {node.id: node for node in nodes}
    if not nodes:
        return
    for link in measure_links([(node.id, node.address) for node in nodes], interface, timeout):
        first, second = (by_id[each] for each in link.nodes)
        ends = f"{first.address} - {second.address}" if first != second else f"two workers on {first.address}"
        if link.problem:
            problems.append(
                f"{second}: workers do not reach those of {first}: {link.problem}: open all ports between the nodes, "
                "or set cluster.interface to the network that joins them"
            )
        else:
            console.print(f"bandwidth: {ends}: {link.speed:.0f} MB/s each way (all-reduce of {MIB} MiB)", markup=False)


def _show(nodes: Sequence[_Node], reports: Mapping[str, tuple[NodeReport, float]]) -> None:
    kinds = ["CPU"] + ["GPU"] * any(node.resources.get("GPU") for node in nodes)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("node", overflow="fold")
    table.add_column("address", no_wrap=True)
    for title in (*kinds, "GiB"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("Python", "torch", "ray", "eqreg"):
        table.add_column(title, no_wrap=True)
    table.add_column("clock", justify="right", no_wrap=True)
    for node in nodes:
        cells = [f"{node.resources.get(kind, 0):g}" for kind in kinds]
        cells.append(f"{node.resources.get('memory', 0) / 2**30:.0f}")
        if node.id in reports:
            answer, ahead = reports[node.id]
            cells += [*(version[:8] for version in answer.versions.values()), f"{round(ahead, 1) + 0:+.1f} s"]
        else:
            cells.append("silent")
        table.add_row(node.host, node.address, *cells)
    console.print(table)
