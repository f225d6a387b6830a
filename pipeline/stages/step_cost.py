"""Measures the time that the penalty adds to a training step.

Training steps with and without the penalty alternate in this process. ``eqreg summary`` reads the result, so that this
module imports what trains only to measure.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.cluster.session import KEPT_MEMORY
from pipeline.config.resolve import resolve
from pipeline.model_file import model_sha256
from pipeline.paths import MODEL, PACKED, SCRATCH
from pipeline.tracking.runs import metric_names
from pipeline.tracking.store import Store

if TYPE_CHECKING:
    from components.training.loop import Metrics
    from components.training.state import TrainingState
    from pipeline.training_job import TrainingJob

ROUNDS, STEPS = 5, 5  # with the shipped params, five steps sample every layer about once
_RECORD = SCRATCH / "evaluate/step_cost.json"
_LONGEST = 20.0  # seconds after which no further round starts; at least three rounds are measured
_LONGEST_STEP = 2.0  # seconds; if a plain step takes longer, nothing is measured
_MALLOPT = {"TRIM_THRESHOLD": -1, "TOP_PAD": -2, "MMAP_THRESHOLD": -3}  # parameter numbers of mallopt(3)
_DEFAULT_MEMORY = dict.fromkeys(_MALLOPT, 128 << 10)  # bytes; the defaults of glibc


def step_cost(job: TrainingJob) -> list[float] | None:
    """Measures the ratio of the step times with and without the job's penalty.

    A step without the penalty trains on the batch alone, without transformed images. Both variants train their own
    network from its initial weights. In each round each variant takes ``STEPS`` steps, none of which reports metrics.
    During the measurement the process keeps freed memory, as a training process does.

    Returns:
        The ratio of each round; None if the job has no penalty or if a plain step takes more than ``_LONGEST_STEP``
        seconds.
    """
    if not job.params.equivariance.weight:
        return None
    with _kept_memory():
        plain, penalised = _steps(job, is_plain=True), _steps(job, is_plain=False)
        if plain(1) > _LONGEST_STEP:
            return None
        penalised(1)
        ratios: list[float] = []
        start = time.perf_counter()
        while len(ratios) < ROUNDS and (len(ratios) < 3 or time.perf_counter() - start < _LONGEST):
            before = plain(STEPS)
            ratios.append(penalised(STEPS) / before)
    return ratios


def record_step_cost(store: Store, run_id: str) -> None:
    """Measures the step cost for the run of results/train.

    The result is logged to MLflow and written to .eqreg/evaluate for ``eqreg summary``. Times are not determined by the
    inputs of a stage, so they are in no output of a stage.
    """
    from pipeline.training_job import TrainingJob

    ratios = step_cost(TrainingJob(resolve().params, PACKED.resolve()))
    if ratios is None:
        _RECORD.unlink(missing_ok=True)
        return
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    cost = {"step_cost": median, "step_cost_low": low, "step_cost_high": high}
    store.log(run_id, 0, {metric_names.STEP_COST: median})
    _RECORD.parent.mkdir(parents=True, exist_ok=True)
    _RECORD.write_text(json.dumps({**cost, "rounds": len(ratios), "model": model_sha256(MODEL)}))


def recorded_step_cost() -> dict[str, float] | None:
    """Returns the recorded step cost of the model in results/train; None if there is no record of this model.

    Returns:
        ``step_cost`` (the median), its quartiles ``step_cost_low`` and ``step_cost_high``, and ``rounds``.
    """
    if not _RECORD.exists():
        return None
    record: dict[str, float] = json.loads(_RECORD.read_text())
    return record if record.pop("model") == model_sha256(MODEL) else None


@contextmanager
def _kept_memory() -> Iterator[None]:
    """Makes malloc keep freed memory inside the block, as in a training process; without glibc nothing changes."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        yield
        return
    for name, size in KEPT_MEMORY.items():
        set_option(_MALLOPT[name], size)
    try:
        yield
    finally:
        for name, size in _DEFAULT_MEMORY.items():
            set_option(_MALLOPT[name], size)


def _steps(job: TrainingJob, *, is_plain: bool) -> Callable[[int], float]:
    """Returns a function that continues the training by ``count`` steps without a report and returns their seconds."""
    from components.training.global_batch import worker_batch
    from components.training.loop import TrainingCallbacks, train
    from components.training.worker import Worker

    worker = Worker.current()
    state, sampler = job.state(worker), job.sampler()
    never = sys.maxsize
    settings = replace(job.settings(), report_every=never, validate_every=never, checkpoint_every=1)
    batch_size = job.params.train.batch_size
    share = worker_batch(batch_size, "none", 0, 0, 1) if is_plain else job.worker_batch(0, 1)
    regularizer = None if is_plain else job.regularizer(state.network)
    ends: dict[int, float] = {}  # number of finished steps -> time

    def checkpoint(state: TrainingState, metrics: Metrics) -> None:
        ends[state.step] = time.perf_counter()

    callbacks = TrainingCallbacks(lambda step, metrics: None, checkpoint, lambda averaged: {})

    def steps(count: int) -> float:
        first = state.step
        # Two more steps are run than are measured: the first waits for its batch, and the last reports.
        train(state, sampler, share, regularizer, replace(settings, steps=first + count + 2), worker, callbacks)
        return ends[first + count + 1] - ends[first + 1]

    return steps
