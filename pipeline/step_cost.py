"""What the penalty costs in time: training steps with it and without it, turn about, in this process."""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from components.training.global_batch import worker_share
from components.training.loop import Listeners, Sampler, train
from components.training.worker import Worker
from pipeline.cluster.session import KEPT_MEMORY
from pipeline.job import TrainingJob
from pipeline.model_hash import model_sha256
from pipeline.paths import MODEL, PACKED, SCRATCH
from pipeline.resolve import resolve
from pipeline.tracking.store import Store

ROUNDS, STEPS = 5, 5  # five steps of the shipped params sample every layer about once
_RECORD = SCRATCH / "evaluate/step_cost.json"
_LONGEST = 20.0  # seconds of all rounds; three are made in any case
_LONGEST_STEP = 2.0  # seconds of a plain step, above which none is measured
_MALLOPT = {"TRIM_THRESHOLD": -1, "TOP_PAD": -2, "MMAP_THRESHOLD": -3}  # numbers of mallopt(3)
_DEFAULT_MEMORY = dict.fromkeys(_MALLOPT, 128 << 10)  # bytes; glibc's own


def step_cost(job: TrainingJob) -> list[float] | None:
    """Time of a training step with the job's penalty / of one on the batch alone, without copies and penalty.

    Both train a network of their own from its first weights. In each round both take ``STEPS`` steps, of which none
    reports. The process keeps freed memory meanwhile, as a training process does.

    Returns:
        The ratio of each round; None where the job has no penalty, or a step takes so long that nobody would wait.
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
    """Measures it for the run of results/train: into MLflow, and beside the results for ``eqreg summary``.

    Times are no functions of the inputs, so no output of a stage holds them.
    """
    ratios = step_cost(TrainingJob(resolve().params, PACKED.resolve()))
    if ratios is None:
        _RECORD.unlink(missing_ok=True)
        return
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    cost = {"step_cost": median, "step_cost_low": low, "step_cost_high": high}
    store.log(run_id, 0, cost)
    _RECORD.parent.mkdir(parents=True, exist_ok=True)
    _RECORD.write_text(json.dumps({**cost, "rounds": len(ratios), "model": model_sha256(MODEL)}))


def recorded_step_cost() -> dict[str, float] | None:
    """``step_cost`` (median) with its quartiles ``_low`` and ``_high``, and ``rounds``; None if the model has none."""
    if not _RECORD.exists():
        return None
    record: dict[str, float] = json.loads(_RECORD.read_text())
    return record if record.pop("model") == model_sha256(MODEL) else None


@contextmanager
def _kept_memory() -> Iterator[None]:
    """Within it, freed memory is kept, as in a training process; where there is no glibc, nothing changes."""
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
    """A function that trains on and gives the seconds that ``count`` steps without a report took."""
    worker = Worker.current()
    state, sampler = job.state(worker), _Clock(job.sampler())
    never = sys.maxsize
    settings = replace(job.settings(), report_every=never, validate_every=never, checkpoint_every=never)
    batch_size = job.params.train.batch_size
    share = worker_share(batch_size, "none", 0, 0, 1) if is_plain else job.share(0, 1)
    regularizer = None if is_plain else job.regularizer(state.network)
    listeners = Listeners(lambda step, metrics: None, lambda state, metrics: None, lambda averaged: {})

    def steps(count: int) -> float:
        first = state.step
        # Two more steps than are measured: the last one reports, which costs more, and the clock does not see it start.
        train(state, sampler, share, regularizer, replace(settings, steps=first + count + 2), worker, listeners)
        return sampler.starts[first + count] - sampler.starts[first]

    return steps


class _Clock:
    """A sampler that notes when each step starts: at that moment the loop asks for the batch of the next step."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.starts: dict[int, float] = {}

    def batch(self, step: int, indices: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        self.starts[step - 1] = time.perf_counter()
        return self._sampler.batch(step, indices)
