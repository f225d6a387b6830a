"""Ray Tune: Optuna proposes, ASHA stops the hopeless early, and the control runs to the end among them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray.tune
import torch
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from components.training.loop import Metrics, TrainingDivergedError
from components.training.state import TrainingState
from pipeline.job import TrainingJob
from pipeline.params import check_params, set_value
from pipeline.spaces import WEIGHT, Choice, LogUniform, Space

CONTROL = "control"
_METRIC, _MODE, _TIME = "val_score", "max", "step"


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep.

    Attributes:
        number: in the order of their beginning, from 0.
        params: dotted key -> value where it differs from params.yaml.
        is_control: weight 0 and the same pairs; never stopped early.
        stopped_early: by ASHA, before its last step.
        steps: done.
        metrics: of the last report.
        failure: why it broke off; None if it did not.
    """

    number: int
    params: dict[str, Any]
    is_control: bool
    stopped_early: bool
    steps: int
    metrics: Metrics
    failure: str | None


@dataclass(frozen=True)
class SweepSettings:
    """Attributes: trials beside the control, steps of each, steps before one may be stopped, trials at a time
    ("auto": one a core or GPU), the seed of the search, and the folder of Ray's own records.
    """

    num_trials: int
    steps: int
    grace_steps: int
    concurrent: int | str
    seed: int
    storage: Path


OnResult = Callable[[int, dict[str, Any], int, Metrics], None]


def sweep(
    values: dict[str, Any], packed: Path, space: Space, settings: SweepSettings, on_result: OnResult
) -> list[Trial]:
    """Runs the control and ``num_trials`` proposals, each a one-worker training inside its own process.

    Args:
        values: plain params; each trial changes those that the space names.
        packed: absolute folder of the packs.
        on_result: hears (trial number, its params, step, metrics) of every report, in this process; metrics are empty
            where a trial diverged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    use_gpu = torch.cuda.is_available()
    concurrent = settings.concurrent
    if isinstance(concurrent, str):
        concurrent = torch.cuda.device_count() or os.cpu_count() or 1
    optuna_search = OptunaSearch(
        {key: _optuna_distribution(distribution) for key, distribution in space.items()},
        metric=_METRIC,
        mode=_MODE,
        sampler=optuna.samplers.TPESampler(seed=settings.seed, multivariate=True),
    )
    threads = max(1, (os.cpu_count() or 1) // concurrent)
    trainable = ray.tune.with_parameters(_run_trial, values=values, packed=str(packed), threads=threads)
    order = _Order()
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, {"CPU": threads, "GPU": 1} if use_gpu else {"CPU": threads}),
        tune_config=ray.tune.TuneConfig(
            metric=_METRIC,
            mode=_MODE,
            search_alg=_ControlFirst(optuna_search, order),
            scheduler=_KeepControl(
                time_attr=_TIME,
                max_t=settings.steps + 1,
                grace_period=settings.grace_steps,
                reduction_factor=2,
            ),
            num_samples=settings.num_trials + 1,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
        ),
        run_config=ray.tune.RunConfig(
            storage_path=str(settings.storage), verbose=0, callbacks=[_Announcer(order, on_result)]
        ),
    )
    # Ray Tune gives them in the order of their proposal, those too that never reported.
    return [_trial(number, result, settings.steps) for number, result in enumerate(tuner.fit())]


def _trial(number: int, result: Any, num_steps: int) -> Trial:
    """What Ray Tune says of a trial, in our words."""
    config, reported = dict(result.config or {}), result.metrics or {}
    metrics = {key: float(value) for key, value in reported.items() if key in _KEPT}
    steps = int(metrics.pop(_TIME, 0))
    failure = reported.get("failure") or (str(result.error).strip().splitlines()[-1] if result.error else None)
    return Trial(
        number=number,
        is_control=bool(config.pop(CONTROL, False)),
        params=config,
        stopped_early=failure is None and steps < num_steps,
        steps=steps,
        metrics=metrics,
        failure=failure,
    )


_KEPT = frozenset({_TIME, _METRIC, "task_loss", "penalty", "images_per_second"})


def _run_trial(config: dict[str, Any], values: dict[str, Any], packed: str, threads: int) -> None:
    """Runs in a trial's process."""
    torch.set_num_threads(threads)
    values = copy.deepcopy(values)
    for key, value in config.items():
        if key != CONTROL:
            set_value(values, key, value)
    job = TrainingJob(check_params(values, "trial"), Path(packed))
    last: Metrics = {_TIME: 0}

    def report(step: int, metrics: Metrics) -> None:
        last.update({_TIME: step, **metrics})
        ray.tune.report({_TIME: step, **metrics})

    def checkpoint(state: TrainingState, metrics: Metrics) -> None:
        """A trial keeps none: one that loses its process has failed."""

    try:
        job.run(report, checkpoint)
    except TrainingDivergedError as error:
        ray.tune.report({**last, _METRIC: 0.0, "failure": str(error)})


def _optuna_distribution(distribution: Any) -> optuna.distributions.BaseDistribution:
    if isinstance(distribution, Choice):
        return optuna.distributions.CategoricalDistribution(distribution.values)
    return optuna.distributions.FloatDistribution(
        distribution.low, distribution.high, log=isinstance(distribution, LogUniform)
    )


class _ControlFirst(Searcher):
    """Proposes the control first, then what another searcher proposes."""

    def __init__(self, searcher: Searcher, order: _Order) -> None:
        super().__init__(metric=_METRIC, mode=_MODE)
        self._searcher, self._order = searcher, order
        self._control: str | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        self._order.number(trial_id)
        if self._control is None:
            self._control = trial_id
            return {CONTROL: True, WEIGHT: 0.0}
        proposal: dict[str, Any] | None = self._searcher.suggest(trial_id)
        return proposal

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id != self._control:
            self._searcher.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id != self._control:
            self._searcher.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        self._searcher.save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        self._searcher.restore(checkpoint_path)


class _KeepControl(AsyncHyperBandScheduler):
    """ASHA (Li et al., MLSys 2020) among the proposals; the control is neither stopped nor a bar for the others."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if trial.config.get(CONTROL):
            return TrialScheduler.CONTINUE
        action: str = super().on_trial_result(tune_controller, trial, result)
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if not trial.config.get(CONTROL):
            super().on_trial_complete(tune_controller, trial, result)


class _Order:
    """Numbers trials in the order in which they are proposed: the control is 0."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, trial_id: str) -> int:
        return self._numbers.setdefault(trial_id, len(self._numbers))


class _Announcer(ray.tune.Callback):
    """Hands every report to the caller's function."""

    def __init__(self, order: _Order, on_result: OnResult) -> None:
        self._order, self._on_result = order, on_result

    def __getstate__(self) -> dict[str, Any]:
        """Ray keeps a pickle of the sweep; the caller's function, with its console, stays out of it."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        metrics = {
            key: float(value)
            for key, value in result.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and (key in _KEPT or "/" in key)
        }
        step = int(metrics.pop(_TIME, 0))
        if result.get("failure"):
            metrics = {}  # they were told before, but for the score that ranks it last
        self._on_result(self._order.number(trial.trial_id), dict(trial.config), step, metrics)
