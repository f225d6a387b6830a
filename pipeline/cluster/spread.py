"""Spreads independent pieces of work over the cluster as Ray tasks, in order, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from pipeline.cluster.session import ray_session
from pipeline.errors import UserError
from pipeline.params import Cluster

Piece = TypeVar("Piece")
Result = TypeVar("Result")

FEW = 4
"""As many pieces are not worth a start of Ray on this machine (about 5 s)."""


def spread(
    function: Callable[[Piece], Result], pieces: Sequence[Piece], cluster: Cluster, done: Callable[[Result], None]
) -> list[Result]:
    """``[function(piece) for piece in pieces]``, on every core of the cluster.

    A piece whose process is lost is done again elsewhere (3 times). Results are few and small: files go to a folder
    that all nodes see.

    Args:
        function: of a module that the workers can import; what it raises is raised here.
        pieces: what it is called with.
        cluster: of the params.
        done: hears each result as it comes, in any order.
    """
    if cluster.address == "local" and len(pieces) <= FEW:
        results = []
        for piece in pieces:
            results.append(function(piece))
            done(results[-1])
        return results
    with session_for(len(pieces), cluster):
        return _spread(function, pieces, done)


def session_for(pieces: int, cluster: Cluster) -> AbstractContextManager[None]:
    """One Ray for every `spread` in the block; none where so many pieces are not worth it."""
    few = cluster.address == "local" and pieces <= FEW
    return nullcontext() if few else ray_session(cluster, dashboard=False)


def _spread(
    function: Callable[[Piece], Result], pieces: Sequence[Piece], done: Callable[[Result], None]
) -> list[Result]:
    import ray

    remote = ray.remote(function).options(num_cpus=1, max_retries=3)
    results: dict[int, Result] = {}
    running: dict[Any, int] = {}
    # Twice as many as cores wait at a time: a queue of thousands would only hold memory.
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
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(
                    f"piece {number + 1} of {len(pieces)} was lost with its process, and again when it was repeated "
                    f"({reason})\nlook at the memory of the nodes, then run the stage again"
                ) from error
            done(results[number])
    return [results[number] for number in range(len(pieces))]
