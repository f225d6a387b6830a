"""Restores images on a Ray cluster: a pool of actors, each with the network; paths travel, pixels do not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.brief import first_line
from pipeline.cluster.session import ray_session
from pipeline.commands.restoring.memory import Memory
from pipeline.commands.restoring.model import load_restorer
from pipeline.commands.restoring.places import is_remote
from pipeline.commands.restoring.plan import Item
from pipeline.commands.restoring.request import Request
from pipeline.commands.restoring.worker import Outcome, restore_item
from pipeline.config.sections import Cluster
from pipeline.errors import UserError

_TRIES = 3
"""Starts of an actor and tries of an image after the process is lost."""
_IN_FLIGHT = 2
"""Images that an actor has at a time: one that it restores, one that waits."""


class _Worker:
    """Loads the network once and restores what it is given."""

    def __init__(self, request: Request, store: str) -> None:
        os.environ["MLFLOW_TRACKING_URI"] = store
        self.options = request.options
        self.refusal: UserError | None = None
        try:
            self.restorer, self.digest = load_restorer(
                request.model, request.device, request.mask, request.options.noise_level
            )
        except UserError as error:  # raised later: the error of a constructor arrives as text
            self.refusal = error

    def restore(self, item: Item, memory: Memory) -> Outcome:
        if self.refusal:
            raise self.refusal
        return restore_item(item, self.restorer, self.options, self.digest, memory)


def restore_by_actors(items: list[Item], request: Request, memory: Memory) -> Iterator[Outcome]:
    """Restores images by actors, in any order.

    An actor whose process is lost is started again, and so is its image. An image whose process is lost in every try
    is "failed"; the others are restored.

    Args:
        items: the images; all nodes must see their paths.
        request: its model is ``models:/...`` of a server that the nodes reach, or a file that they see. With a GPU as
            the device, each actor gets one.
        memory: which results are there already.

    Raises:
        UserError: no cluster answers, an actor cannot load the model, or a result cannot be written.
    """
    from pipeline.tracking.store import tracking_uri

    # Of this section, a session uses the address and the interface.
    cluster = Cluster(
        address=request.address,
        placement="spread",
        cpus_per_worker=1.0,
        interface="auto",
        storage=None,
        cache="auto",
        max_failures=_TRIES,
        wait_s=60,
        resize_s=60,
    )
    with ray_session(cluster, dashboard=False):
        import ray

        has_gpus = ray.cluster_resources().get("GPU", 0) >= request.workers
        gpus = 1 if request.device.startswith("cuda") or (request.device == "auto" and has_gpus) else 0
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=_TRIES, max_task_retries=_TRIES)(_Worker)
        everywhere = _absolute_request(request)
        actors = [remote.remote(everywhere, tracking_uri()) for _ in range(min(request.workers, len(items)))]
        waiting = iter(items)
        running: dict[Any, tuple[Any, Item]] = {}

        def send(actor: Any) -> None:
            if item := next(waiting, None):
                running[actor.restore.remote(_absolute(item), memory.part_of(item.target))] = (actor, item)

        for actor in actors * _IN_FLIGHT:
            send(actor)
        while running:
            (reference,), _ = ray.wait(list(running), num_returns=1)
            actor, item = running.pop(reference)
            yield replace(_result(reference, item), item=item)
            send(actor)


def _result(reference: Any, item: Item) -> Outcome:
    import ray

    try:
        outcome: Outcome = ray.get(reference)
        return outcome
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise  # a bug
    except ray.exceptions.RayError as error:
        reason = f"{item.source}: its process was lost, and again when it was repeated ({first_line(error)})"
        return Outcome(item, "failed", reason)


def _absolute_request(request: Request) -> Request:
    """Returns the request with paths that hold in any working folder."""
    is_file = not request.model.startswith("models:/")
    model = str(Path(request.model).absolute()) if is_file else request.model
    return replace(request, model=model, mask=request.mask and request.mask.absolute())


def _absolute(item: Item) -> Item:
    """Returns the item with paths that hold in any working folder."""
    source, target, mask = (
        each if not each or is_remote(each) else str(Path(each).absolute())
        for each in (item.source, item.target, item.mask)
    )
    return replace(item, source=source, target=target, mask=mask)
