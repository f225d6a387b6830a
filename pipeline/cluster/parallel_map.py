"""A parallel map: calls a function on many items as Ray tasks, with a bounded number of tasks at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from components.brief import first_line
from pipeline.cluster.session import ray_session
from pipeline.config.sections import Cluster
from pipeline.errors import UserError

Piece = TypeVar("Piece")
Result = TypeVar("Result")

FEW = 4
"""For at most this many items, Ray is not started on this machine: its start takes about 5 s."""


def parallel_map(
    function: Callable[[Piece], Result], pieces: Sequence[Piece], cluster: Cluster, done: Callable[[Result], None]
) -> list[Result]:
    """Computes ``[function(piece) for piece in pieces]`` on every core of the cluster.

    A call whose process is lost is repeated, at most 3 times. Results must be few and small. A function should write
    large results to files, in a folder that all nodes see.

    Args:
        function: from a module that the workers can import; a ``UserError`` that it raises is raised here.
        pieces: the items; ``function`` is called with each.
        cluster: section of the params.
        done: called with each result when it is ready, in any order.

    Returns:
        The results in the order of ``pieces``.

    Raises:
        UserError: ``function`` raised it, or the process of an item was lost in every try.
    """
    if cluster.address == "local" and len(pieces) <= FEW:
        results = []
        for piece in pieces:
            results.append(function(piece))
            done(results[-1])
        return results
    with session_for(len(pieces), cluster):
        return _parallel_map(function, pieces, done)


def session_for(pieces: int, cluster: Cluster) -> AbstractContextManager[None]:
    """Starts one Ray for every `parallel_map` in the block, unless there are too few items to need it.

    Args:
        pieces: number of items.
        cluster: section of the params.
    """
    few = cluster.address == "local" and pieces <= FEW
    return nullcontext() if few else ray_session(cluster, dashboard=False)


def _parallel_map(
    function: Callable[[Piece], Result], pieces: Sequence[Piece], done: Callable[[Result], None]
) -> list[Result]:
    import ray

    remote = ray.remote(function).options(num_cpus=1, max_retries=3)
    results: dict[int, Result] = {}
    running: dict[Any, int] = {}
    # At most two tasks for each core are submitted at a time: a queue of thousands would only use memory.
    waiting: Iterator[tuple[int, Piece]] = iter(enumerate(pieces))
    room = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    while len(results) < len(pieces):
        while len(running) < room and (following := next(waiting, None)):
            running[remote.remote(following[1])] = following[0]
        finished, _ = ray.wait(list(running), num_returns=1)
        for reference in finished:
            number = running.pop(reference)
            try:
                results[number] = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise UserError(str(error.cause)) from None
                raise  # a bug
            except ray.exceptions.RayError as error:
                raise UserError(
                    f"piece {number + 1} of {len(pieces)} was lost with its process, and again when it was repeated "
                    f"({first_line(error)})\nlook at the memory of the nodes, then run the stage again"
                ) from error
            done(results[number])
    return [results[number] for number in range(len(pieces))]
