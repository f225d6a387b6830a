"""A persistent study: the trials of a sweep with their metrics, and the rules that decide which trials continue.

A driver is a process that runs trials of the study. Optuna's database holds the whole state. Drivers can therefore die,
restart, or work on one study together. The module does not import Ray.

**Decisions depend on the trials' numbers, and not on the speed of the processes.** A sweep that is run again therefore
makes the same decisions and gives the same table, unless an objective is a measured time. At a rung, a trial is
compared with the trials of lower numbers. If one of them has not reached the rung yet, the trial continues, and the
decision is made later. If the trial is then stopped, its reports beyond the rung do not count. The proposal for trial n
uses the results of the trials 0 ... n - window alone, and waits for them; see ``Study.set_window``.
"""

from __future__ import annotations

import json
import math
import secrets
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from components.formats import KEY, check_format
from components.training.loop import Metrics
from pipeline.errors import UserError
from pipeline.search_space.space import WEIGHT, Space
from pipeline.study.asha import RungProgress, advance, rungs
from pipeline.study.database import StudyStorage
from pipeline.study.heartbeats import Driver

SCORE = "val_score"
OBJECTIVES = {
    "score": (SCORE, "maximize"),
    "equivariance_error": ("equivariance_error", "minimize"),
    "step_time": ("step_time", "minimize"),
}
"""Objective of params.yaml -> (metric of a finished trial, direction)."""

Decision = Literal["continue", "stop", "lost"]
"""Answer to a report; "lost" if the trial belongs to another driver now."""

Wait = Literal["wait"]
"""Answer of ``claim_next``: the next proposal needs results that are still missing."""

_STARTUP = 10
"""Number of trials that are sampled at random before the sampler uses results: Optuna's default for TPE."""


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep.

    Attributes:
        number: number in the study, from 0.
        params: dotted key of params.yaml -> value that the trial changes.
        is_control: whether it is the control: penalty weight 0, and the same image pairs as the other trials. It is
            never stopped early.
        stopped_early: whether ASHA stopped it before its last step.
        steps: number of steps done.
        metrics: metrics of the last report: ``val_score`` and, for a completed trial, those of the objectives.
        failure: why the trial failed; None if it did not.
        choices: name in the search space -> value that the sampler chose; ``params`` follows from them.
        measurements: rows measured on the test images; None if the sweep does not measure them.
        has_ended: whether it is completed, stopped or failed.
        resumed_at: steps of the checkpoints from which it resumed.
    """

    number: int
    params: dict[str, Any]
    is_control: bool
    stopped_early: bool
    steps: int
    metrics: Metrics
    failure: str | None
    choices: dict[str, Any] = field(default_factory=dict)
    measurements: list[dict[str, Any]] | None = None
    has_ended: bool = True
    resumed_at: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rules:
    """The rules of a study.

    Attributes:
        objectives: names of the objectives.
        steps: training steps of a trial.
        grace_steps: steps before which no trial is stopped.
        reduction_factor: one of this many trials at a rung continues.
        seed: seed of the search.
    """

    objectives: Sequence[str]
    steps: int
    grace_steps: int
    reduction_factor: int
    seed: int


FORMAT = 1
"""Version of what a study holds beside the trials of Optuna."""


class Study:
    """A study, opened by one driver. In a ``with`` block, heartbeats tell the other drivers that this driver is alive.

    Attributes:
        key: the name with a random suffix. A later study of the same name has another key. Checkpoints and MLflow runs
            of the trials are named with it.

    Args:
        storage: the database.
        name: name of the study; an existing study of this name is continued.
        fingerprint: of the sweep, by part; a study is continued only by sweeps with the same fingerprint.
        space: the search space.
        rules: how trials are compared and stopped.

    Raises:
        UserError: the study of this name has another fingerprint, or was written by a newer eqreg.
    """

    def __init__(
        self, storage: StudyStorage, name: str, fingerprint: dict[str, str], space: Space, rules: Rules
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.name, self.space, self.rules = name, space, rules
        self.has_control = space.search == "optuna"
        self._storage = storage
        with storage.locked():
            self._optuna = optuna.create_study(
                study_name=name,
                storage=storage.optuna,
                directions=[OBJECTIVES[objective][1] for objective in rules.objectives],
                load_if_exists=True,
            )
            known = self._optuna.user_attrs.get("identity")
            if known is None:
                self._optuna.set_user_attr("key", f"{name}-{secrets.token_hex(4)}")
                self._optuna.set_user_attr(KEY, FORMAT)
                self._optuna.set_user_attr("identity", fingerprint)
        try:
            check_format(self._optuna.user_attrs, FORMAT, f"tune.study: {name}: this study")
        except ValueError as error:
            raise UserError(f"{error}\nor give a new name, or use auto") from None
        if known and known != fingerprint:
            parts = " and ".join(part for part in fingerprint if known.get(part) != fingerprint[part])
            raise UserError(
                f"tune.study: {name}: this study was started with another {parts}; its trials cannot be compared with "
                "this sweep's\ngive a new name, or use auto: one study for each data, space, params and code"
            )
        self.key: str = self._optuna.user_attrs["key"]
        self._driver = Driver(self._optuna)

    def __enter__(self) -> Study:
        self._driver.begin()
        return self

    def __exit__(self, *error: object) -> None:
        self._driver.end()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock of the study during the block; no other driver can change it.

        The block may call ``trials``, ``trial`` and ``scores``. The other methods take the same lock and would wait
        for ever.
        """
        with self._storage.locked():
            yield

    def set_window(self, concurrent: int) -> None:
        """Sets the window of the study, for all drivers.

        The window is the smallest difference between the number of a proposal and those of the trials whose results it
        uses. It is ``2 * concurrent - 1``: then one slow trial does not make the other concurrent trials wait. A driver
        that runs more trials at a time widens the window for later proposals. The window never shrinks; it is 1 if no
        driver has set it.

        Args:
            concurrent: number of trials that this driver runs at a time.
        """
        window = 2 * concurrent - 1
        with self._storage.locked():
            windows = self._optuna.user_attrs.get("windows", [])
            if not windows or windows[-1][1] < window:
                number = len(self._optuna.get_trials(deepcopy=False)) if windows else 0
                self._optuna.set_user_attr("windows", [*windows, [number, window]])

    def _window(self, number: int) -> int:
        """The window of the proposal with this number."""
        windows = self._optuna.user_attrs.get("windows", [])
        return max((window for first, window in windows if first <= number), default=1)

    def claim_next(self, num_trials: int) -> Trial | Wait | None:
        """Claims the next trial for this driver.

        A trial whose driver is dead comes first, then the control. Then the sampler proposes trials until the study has
        ``num_trials``, not counting the control. A grid has no control; its trials are its first ``num_trials`` points.

        Returns:
            The trial; "wait" if the next proposal needs results that are still missing; None if no trial is left.
        """
        with self._storage.locked():
            self._make_decisions()
            trials = self._optuna.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state == TrialState.RUNNING and self._is_orphan(trial):
                    return self._claim(trial)
            if self.has_control and not any(_is_control(trial) for trial in trials):
                self._optuna.enqueue_trial({}, user_attrs={"control": True, "params": {WEIGHT: 0.0}})
            elif any(trial.state == TrialState.WAITING for trial in trials):
                pass  # a driver died after it queued the trial; ``ask`` returns that trial
            elif not (remaining := self._remaining(trials, num_trials)):
                return None
            elif self.space.search == "grid":
                self._optuna.enqueue_trial(remaining[0], user_attrs={"point": _point_key(remaining[0])})
            elif (proposal := self._proposal(trials)) is None:
                return "wait"
            else:
                self._optuna.enqueue_trial(proposal)
            self._optuna.sampler = optuna.samplers.RandomSampler(
                seed=0
            )  # ``ask`` needs one; all values of the queued trial are fixed
            return self._claim(self._optuna.ask())

    def is_complete(self, num_trials: int) -> bool:
        """Whether all trials have ended, and none is left to start."""
        with self._storage.locked():
            trials = self._optuna.get_trials(deepcopy=False)
        has_all = not self.has_control or any(_is_control(trial) for trial in trials)
        return (
            has_all and all(trial.state.is_finished() for trial in trials) and not self._remaining(trials, num_trials)
        )

    def others_have_trials(self) -> bool:
        """Whether other drivers, living or dead, have trials that have not ended."""
        with self._storage.locked():
            running = self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            return any(not self._driver.is_mine(trial.user_attrs.get("owner")) for trial in running)

    def has_orphan(self) -> bool:
        """Whether the driver of a running trial has died; ``next`` then returns this trial."""
        with self._storage.locked():
            running = self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            return any(self._is_orphan(trial) for trial in running)

    def report(
        self,
        number: int,
        reports: Sequence[tuple[int, Metrics]],
        resumed_at: int = 0,
        clock: Sequence[float] | None = None,
    ) -> Decision:
        """Records reports of a trial, and decides whether it continues. Repeated reports change no score.

        Args:
            number: number of the trial.
            reports: (step, metrics) of each report.
            resumed_at: step of the checkpoint from which the trial has just resumed; 0 if it has not.
            clock: three numbers in seconds: start of the training and time of the report, both since the epoch, and
                the time between them that was not spent on training. The step time follows from them.

        Returns:
            "continue" or "stop"; "lost" if the trial no longer belongs to this driver.
        """
        with self._storage.locked():
            trials = self._optuna.get_trials(deepcopy=False)
            trial = trials[number]
            if not self._is_mine(trial):
                return "lost"
            progress = _progress(trial)
            if clock:
                progress["clock"] = list(clock)
            if resumed_at:
                progress["resumed_at"] = [*progress.get("resumed_at", []), resumed_at]
            scores = dict(progress["scores"])
            for step, metrics in reports:
                if SCORE in metrics and step not in scores:
                    scores[step] = metrics[SCORE]
                    if any(rung <= step for rung in self._rungs()):
                        progress["at"].setdefault(str(step), metrics)
                    if len(self.rules.objectives) == 1:  # Optuna has no intermediate values with several objectives
                        self._storage.optuna.set_trial_intermediate_value(trial._trial_id, step, metrics[SCORE])
                if step >= progress.get("step", 0):
                    progress |= {"step": step, "metrics": metrics}
            has_new = len(scores) > len(progress["scores"])
            progress["scores"] = [[step, score] for step, score in sorted(scores.items())]
            self._set(trial, "progress", progress)
            stopped_at = self._make_decisions()[number].stopped_at if has_new else trial.user_attrs.get("stopped_at")
            return "stop" if stopped_at else "continue"

    def stop(self, number: int) -> None:
        """Ends a trial after ``report`` returned "stop"; its results are those at the rung where it is stopped."""
        with self._storage.locked():
            trial = self._current(number)
            if self._is_mine(trial) and (step := trial.user_attrs.get("stopped_at")) is not None:
                self._tell_stopped(trial, step)

    def fail(self, number: int, reason: str) -> None:
        """Ends a trial that failed.

        If the decision at an earlier rung is still missing, the trial ends later (``has_ended``). If that decision is
        to stop the trial, it counts as stopped and not as failed.
        """
        with self._storage.locked():
            self._record_failure(self._current(number), reason)
            self._make_decisions()

    def complete(self, number: int, metrics: Metrics) -> None:
        """Ends a trial that did all its steps.

        If a metric of an objective is missing or not finite, the trial fails.

        If the decision at an earlier rung is still missing, the trial ends later (``has_ended``).
        """
        values = [metrics.get(OBJECTIVES[objective][0], math.nan) for objective in self.rules.objectives]
        bad = [name for name, value in zip(self.rules.objectives, values, strict=True) if not math.isfinite(value)]
        with self._storage.locked():
            trial = self._current(number)
            if bad:
                self._record_failure(trial, f"{bad[0]} is not finite")
            elif self._is_mine(trial):
                progress = _progress(trial) | {"metrics": metrics, "step": self.rules.steps, "values": values}
                self._set(trial, "progress", progress)
            self._make_decisions()

    def make_decisions(self) -> None:
        """Makes all decisions that are now possible, and ends the trials without more steps that wait for none."""
        with self._storage.locked():
            self._make_decisions()

    def trials(self) -> list[Trial]:
        """All trials that have ended, also those of other drivers, in the order of their numbers."""
        with self._storage.answering():
            return [_trial(trial) for trial in self._optuna.get_trials(deepcopy=False) if trial.state.is_finished()]

    def trial(self, number: int) -> Trial:
        """One trial, ended or not."""
        with self._storage.answering():
            return _trial(self._optuna.get_trials(deepcopy=False)[number])

    def scores(self) -> dict[int, list[tuple[int, float]]]:
        """Number of a trial -> (step, validation score) of each of its reports."""
        with self._storage.answering():
            trials = self._optuna.get_trials(deepcopy=False)
        return {trial.number: [(step, score) for step, score in _progress(trial)["scores"]] for trial in trials}

    def with_control(self) -> optuna.Study:
        """A copy of the ended trials, as an Optuna study in memory."""
        return self._copy(self._optuna.get_trials())

    def without_control(self) -> optuna.Study:
        """A copy of the ended trials without the control, as an Optuna study in memory.

        The figures compare the choices of the trials, and the control has no choices.
        """
        return self._copy([trial for trial in self._optuna.get_trials() if not _is_control(trial)])

    def _copy(self, trials: list[FrozenTrial]) -> optuna.Study:
        copy = optuna.create_study(directions=self._optuna.directions)
        copy.add_trials(trial for trial in trials if trial.state.is_finished())
        return copy

    def _claim(self, trial: FrozenTrial | optuna.Trial) -> Trial:
        """Makes this driver the owner of a trial, and chooses the trial's params if no driver has done it yet."""
        if "params" not in trial.user_attrs:
            asked = trial if isinstance(trial, optuna.Trial) else optuna.Trial(self._optuna, trial._trial_id)
            self._set(trial, "params", self.space.choose(asked))
        self._set(trial, "owner", self._driver.name)
        return _trial(self._optuna.get_trials(deepcopy=False)[trial.number])

    def _remaining(self, trials: Sequence[FrozenTrial], num_trials: int) -> list[dict[str, Any]]:
        """The points of the grid that no trial has; for a search, ``[{}]`` if one more trial may be proposed."""
        if self.space.search == "grid":
            taken = {trial.user_attrs.get("point") for trial in trials}
            return [point for point in self.space.grid()[:num_trials] if _point_key(point) not in taken]
        return [{}] if sum(not _is_control(trial) for trial in trials) < num_trials else []

    def _proposal(self, trials: Sequence[FrozenTrial]) -> dict[str, Any] | None:
        """The sampler's proposal for the next trial; None if it needs results that are still missing.

        It is a function of the seed, the number, the results of the trials 0 ... n - window, and the choices of the
        later ones. Optuna gets the later ones as pruned without a score, so that it does not propose the same choices
        again.
        """
        number = len(trials)
        num_known = max(0, number - self._window(number) + 1) if number >= _STARTUP else 0
        if not all(trial.state.is_finished() for trial in trials[:num_known]):
            return None
        view = optuna.create_study(
            directions=self._optuna.directions, sampler=_sampler(_mixed_seed(self.rules.seed, number))
        )
        view.add_trials(_for_sampler(trial) for trial in trials[:num_known])
        view.add_trials(
            optuna.trial.create_trial(state=TrialState.PRUNED, params=trial.params, distributions=trial.distributions)
            for trial in trials[num_known:]
        )
        asked = view.ask()
        self.space.choose(asked)
        return dict(asked.params)

    def _rungs(self) -> list[int]:
        return rungs(self.rules.grace_steps, self.rules.reduction_factor, self.rules.steps)

    def _make_decisions(self) -> list[RungProgress]:
        """Makes each decision that is possible now, in the order of the trials, and ends trials without more steps.

        The decisions are stored: ``passed`` (number of rungs) and ``stopped_at`` (a step).

        Returns:
            The progress of all trials at the rungs.
        """
        trials = self._optuna.get_trials(deepcopy=False)
        courses = [self._rung_progress(trial) for trial in trials]
        for number, trial in enumerate(trials):
            before = courses[number]
            if not before.is_decided:
                courses[number] = advance(courses, number, self._rungs(), self.rules.reduction_factor)
            if trial.state == TrialState.RUNNING:
                self._store_decisions(trial, before, courses[number])
        return courses

    def _store_decisions(self, trial: FrozenTrial, before: RungProgress, after: RungProgress) -> None:
        """Stores the decisions on a trial, and ends the trial if possible.

        A trial ends here if it has no more steps and waits for no decision, or if it is stopped and no live driver runs
        it.
        """
        if after.passed != before.passed:
            self._set(trial, "passed", after.passed)
        if after.stopped_at != before.stopped_at:
            self._set(trial, "stopped_at", after.stopped_at)
        progress = _progress(trial)
        if after.stopped_at is not None:
            if _has_no_more_steps(progress) or self._is_orphan(trial):
                self._tell_stopped(trial, after.stopped_at)
        elif _has_no_more_steps(progress) and not after.is_waiting:
            if "failure" in progress:
                self._set(trial, "failure", progress["failure"])
                self._optuna.tell(trial.number, state=TrialState.FAIL)
            else:
                self._optuna.tell(trial.number, progress["values"], state=TrialState.COMPLETE)

    def _rung_progress(self, trial: FrozenTrial) -> RungProgress:
        """The progress of a trial in the form that ASHA needs."""
        kept, progress = trial.user_attrs, _progress(trial)
        return RungProgress(
            scores=[(step, score) for step, score in progress["scores"] if step < self.rules.steps],
            is_over=trial.state.is_finished() or _has_no_more_steps(progress),
            is_compared=kept.get("params", {}).get(WEIGHT) != 0,
            passed=kept.get("passed", 0),
            stopped_at=kept.get("stopped_at"),
        )

    def _tell_stopped(self, trial: FrozenTrial, step: int) -> None:
        """Ends a trial at the report at which ASHA stopped it, and removes its later reports."""
        progress = _progress(trial)
        scores = [[at, score] for at, score in progress["scores"] if at <= step]
        kept = progress | {"step": step, "metrics": progress["at"][str(step)], "scores": scores}
        self._set(trial, "progress", kept)
        self._optuna.tell(trial.number, state=TrialState.PRUNED)

    def _record_failure(self, trial: FrozenTrial, reason: str) -> None:
        if self._is_mine(trial):
            self._set(trial, "progress", _progress(trial) | {"failure": reason})

    def _current(self, number: int) -> FrozenTrial:
        return self._optuna.get_trials(deepcopy=False)[number]

    def _is_mine(self, trial: FrozenTrial) -> bool:
        return trial.state == TrialState.RUNNING and self._driver.is_mine(trial.user_attrs.get("owner"))

    def _is_orphan(self, trial: FrozenTrial) -> bool:
        """Whether no live driver runs the trial.

        A trial without an owner is an orphan: a driver sets the owner before it releases the lock, so its driver died
        in between. A trial that will do no more steps needs no driver and is no orphan.
        """
        if _has_no_more_steps(_progress(trial)):
            return False
        owner = trial.user_attrs.get("owner")
        return owner is None or not (self._driver.is_mine(owner) or self._driver.is_alive(owner))

    def _set(self, trial: FrozenTrial | optuna.Trial, key: str, value: Any) -> None:
        self._storage.optuna.set_trial_user_attr(trial._trial_id, key, value)


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=_STARTUP, multivariate=True, group=True, constant_liar=True, seed=seed
        )


def _for_sampler(trial: FrozenTrial) -> FrozenTrial:
    """A copy of an ended trial for the sampler, without the reports beyond the rung at which it was stopped."""
    last = trial.user_attrs.get("stopped_at", math.inf)
    return optuna.trial.create_trial(
        state=trial.state,
        values=trial.values if trial.state == TrialState.COMPLETE else None,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values={step: value for step, value in trial.intermediate_values.items() if step <= last},
    )


def _progress(trial: FrozenTrial) -> dict[str, Any]:
    """The recorded progress of a trial.

    "scores": [step, score] of each report. "at": step -> metrics, from the first rung on. "step" and "metrics": those
    of the last report. "values": those of the objectives, if the trial did all its steps. "failure": the reason, if the
    trial failed. "clock" and "resumed_at": see ``Study.report``.
    """
    return {"scores": [], "at": {}} | trial.user_attrs.get("progress", {})


def _has_no_more_steps(progress: dict[str, Any]) -> bool:
    """Whether a trial will do no more steps: it did all of them, or it failed."""
    return "values" in progress or "failure" in progress


def _trial(trial: FrozenTrial) -> Trial:
    kept, progress = trial.user_attrs, trial.user_attrs.get("progress", {})
    return Trial(
        number=trial.number,
        params=dict(kept.get("params", {})),
        is_control=_is_control(trial),
        stopped_early=trial.state == TrialState.PRUNED,
        steps=int(progress.get("step", 0)),
        metrics=dict(progress.get("metrics", {})),
        failure=kept.get("failure") or ("it was given up" if trial.state == TrialState.FAIL else None),
        choices=dict(trial.params),
        has_ended=trial.state.is_finished(),
        resumed_at=tuple(progress.get("resumed_at", ())),
    )


def _is_control(trial: FrozenTrial) -> bool:
    return bool(trial.user_attrs.get("control"))


def _point_key(point: dict[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)


def _mixed_seed(seed: int, number: int) -> int:
    """A 32-bit seed, computed from two numbers."""
    import numpy as np

    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
