"""``eqreg cluster check``: whether a cluster is fit to train on, and what is wrong with it, one line a problem."""

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

from pipeline.cluster.node_report import NodeReport, Questions, node_versions, report, without_secrets
from pipeline.cluster.session import ray_session, secret_environment
from pipeline.console import console
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.paths import PACKED, SCRATCH
from pipeline.storage.delivery import Delivery, deliver
from pipeline.storage.places import Place, open_place

LARGEST_CLOCK_DIFFERENCE = 5.0  # seconds
_PATIENCE = 60.0  # seconds within which a node answers; its first process and the project's code come there first
_REMEDIES = {"eqreg": "let it be that of the driver: take older copies out of its PYTHONPATH and site-packages"}
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
    """Prints what the cluster has and what is wrong with it.

    Asks every node for its versions, its clock, and whether it reaches storage and tracking server; measures how fast
    nodes exchange gradients.

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
            _tidy(questions)
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
    """The living ones, and how many have left."""
    import ray

    all_nodes = ray.nodes()
    living = [
        _Node(node["NodeID"], node["NodeManagerHostname"], node["NodeManagerAddress"], node["Resources"])
        for node in all_nodes
        if node["Alive"]
    ]
    return sorted(living, key=lambda node: (node.host, node.address)), len(all_nodes) - len(living)


def _questions(params: Params) -> tuple[Questions, list[str], list[str]]:
    """What to ask; what is already wrong on the driver; and what is worth knowing."""
    from pipeline.tracking.store import tracking_uri

    problems: list[str] = []
    here = f"node {socket.gethostname()} (the driver)"
    place: Place | None = None
    probe: tuple[str, bytes] | None = None
    try:
        place = open_place(params.cluster.storage or str(SCRATCH.resolve()))
        name, content = f"check/driver-{secrets.token_hex(8)}", secrets.token_bytes(16)
        place.write(name, content)
        probe = name, content
    except UserError as error:
        problems.append(f"{here}: {error}")
    notes = [f"storage: {place.address}"] if place else []
    delivery: Delivery | None = None
    if params.cluster.storage is None:
        try:
            delivery = deliver(PACKED, None, params.cluster.cache)
            notes.append(f"packs: read in place, {delivery.packed}")
        except UserError as error:
            notes.append(f"packs: not checked ({error})")
    tracking = tracking_uri()
    asked = tracking.startswith(("http://", "https://", "postgresql"))
    why = "" if asked else " (the driver alone writes there)"
    notes.append(f"tracking: {without_secrets(tracking)}{why}")
    return Questions(place, probe, delivery, tracking if asked else None, secret_environment()), problems, notes


def _tidy(questions: Questions) -> None:
    if questions.place and questions.probe:
        with suppress(UserError):
            questions.place.delete(questions.probe[0])


def _ask(
    nodes: Sequence[_Node], questions: Questions, timeout: float, problems: list[str]
) -> dict[str, tuple[NodeReport, float]]:
    """Node id -> (its report, how many seconds its clock is ahead of ours); who does not answer is a problem."""
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
                reason = f"{type(error.cause).__name__}: {error.cause}".splitlines()[0]
                problems.append(f"{node}: cannot run the project's code ({reason}): {_INSTALL}")
            except ray.exceptions.RayError as error:
                problems.append(f"{node}: its process is lost ({_first_line(error)}): see its memory and Ray's logs")
    for reference, node in running.items():
        ray.cancel(reference, force=True)
        problems.append(f"{node}: does not answer within {timeout:.0f} s: look whether it is up, restart Ray on it")
    return reports


def _compare(nodes: Sequence[_Node], reports: Mapping[str, tuple[NodeReport, float]], problems: list[str]) -> None:
    """Adds what is wrong with the answers."""
    wanted = node_versions()
    for node in nodes:
        if node.id not in reports:
            continue
        answer, ahead = reports[node.id]
        for name, version in answer.versions.items():
            if version != wanted[name]:
                remedy = _REMEDIES.get(name, _INSTALL)
                problems.append(f"{node}: {name} {version}, where the driver has {wanted[name]}: {remedy}")
        problems += [f"{node}: {problem}" for problem in answer.problems]
        if abs(ahead) > LARGEST_CLOCK_DIFFERENCE:
            side = "ahead of" if ahead > 0 else "behind"
            problems.append(f"{node}: its clock is {abs(ahead):.0f} s {side} the driver's: let NTP set both")


def _links(nodes: Sequence[_Node], interface: str, timeout: float, problems: list[str]) -> None:
    """Measures and prints the bandwidth between nodes."""
    from pipeline.cluster.bandwidth import MIB, measure_links

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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
