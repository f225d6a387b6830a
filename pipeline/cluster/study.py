"""A persistent study: which trials a sweep has, who runs each, what they reached, and which of them go on.

All that decides lies in Optuna's database, so that drivers may die, come back, or work on one study together. It knows
nothing of Ray.

**Decisions are functions of the trials' numbers, and not of which process was faster**, so that a sweep that is run
again gives the same table, byte by byte. A trial is compared at a rung with the trials of lower numbers; if one of them
has not reached the rung yet, the trial goes on meanwhile, and is judged when it can be: what it did beyond the rung at
which it is stopped does not count. A proposal knows the results of the trials whose number is lower by the window of
the study at least; it waits for them.
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

from components.training.loop import Metrics
from pipeline.cluster.asha import Course, advance, rungs
from pipeline.cluster.drivers import Driver
from pipeline.cluster.study_storage import StudyStorage
from pipeline.errors import UserError
from pipeline.spaces import WEIGHT, Space

SCORE = "val_score"
OBJECTIVES = {"score": (SCORE, "maximize"), "equivariance_error": ("equivariance_error", "minimize")} | {
    "step_time": ("step_time", "minimize")
}
"""Objective of params.yaml -> (metric of a finished trial, direction)."""

Decision = Literal["continue", "stop", "lost"]
Wait = Literal["wait"]

_STARTUP = 10
"""Trials that are drawn at random, before the sampler looks at results: Optuna's default for TPE."""


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep.

    Attributes:
        number: in the study, from 0.
        params: dotted key -> value where it differs from params.yaml.
        is_control: weight 0 and the same pairs; never stopped early.
        stopped_early: by ASHA, before its last step.
        steps: done.
        metrics: of the last report: ``val_score`` and, of one that ran to its end, what the objectives are.
        failure: why it broke off; None if it did not.
        choices: what was asked for by the space, and its answers.
        rows: what was measured on each test image, where the sweep was to measure it.
        has_ended: one way or another.
        resumed_at: steps after which it went on from a checkpoint.
    """

    number: int
    params: dict[str, Any]
    is_control: bool
    stopped_early: bool
    steps: int
    metrics: Metrics
    failure: str | None
    choices: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] | None = None
    has_ended: bool = True
    resumed_at: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rules:
    """How a study goes on. Attributes: objectives by name, steps of a trial, steps before one may be stopped, of how
    many at a rung one goes on, and the seed of the search.
    """

    objectives: Sequence[str]
    steps: int
    grace_steps: int
    reduction_factor: int
    seed: int


class Study:
    """A study, opened by one driver; ``with`` says to the others that the driver lives.

    Attributes:
        key: a name that no other study has had, nor will: what is kept of its trials elsewhere is kept under it.

    Args:
        storage: of the database.
        name: of the study; one that is there is gone on with.
        identity: what decides the results, by part; a study is gone on with only by sweeps of the same.
        space: what is searched.
        rules: how.

    Raises:
        UserError: the study was begun with something else.
    """

    def __init__(self, storage: StudyStorage, name: str, identity: dict[str, str], space: Space, rules: Rules) -> None:
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
                self._optuna.set_user_attr("identity", identity)
        if known and known != identity:
            parts = " and ".join(part for part in identity if known.get(part) != identity[part])
            raise UserError(
                f"tune.study: {name}: it was begun with other {parts}, so that its trials are no others of this sweep\n"
                "name a new study, or use auto, which has one for each"
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
        """Alone with the study, among all its drivers; not for a block that calls the study's own methods."""
        with self._storage.locked():
            yield

    def set_window(self, concurrent: int) -> None:
        """Fixes, for all drivers, by how much a proposal's number exceeds those of the trials that it knows.

        Args:
            concurrent: trials at a time of this driver. The window is twice that, less one: a trial that takes longer
                than its neighbours then holds up none of them. A driver with more widens it, for later proposals.
        """
        window = 2 * concurrent - 1
        with self._storage.locked():
            windows = self._optuna.user_attrs.get("windows", [])
            if not windows or windows[-1][1] < window:
                number = len(self._optuna.get_trials(deepcopy=False)) if windows else 0
                self._optuna.set_user_attr("windows", [*windows, [number, window]])

    def _window(self, number: int) -> int:
        """Of a proposal."""
        windows = self._optuna.user_attrs.get("windows", [])
        return max((window for first, window in windows if first <= number), default=1)

    def next(self, num_trials: int) -> Trial | Wait | None:
        """The next trial for this driver, which is its own from now on; None if there is none.

        A trial whose driver is dead comes first, then the control, then what the sampler proposes, as long as the study
        has fewer than ``num_trials`` beside the control; or the first ``num_trials`` points of a grid, without control.

        Returns:
            "wait" where the next proposal needs results that are not there yet.
        """
        with self._storage.locked():
            self._settle()
            trials = self._optuna.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state == TrialState.RUNNING and self._is_orphan(trial):
                    return self._claim(trial)
            if self.has_control and not any(_is_control(trial) for trial in trials):
                self._optuna.enqueue_trial({}, user_attrs={"control": True, "params": {WEIGHT: 0.0}})
            elif any(trial.state == TrialState.WAITING for trial in trials):
                pass  # its driver died before it took it
            elif not (left := self._left(trials, num_trials)):
                return None
            elif self.space.search == "grid":
                self._optuna.enqueue_trial(left[0], user_attrs={"point": _text(left[0])})
            elif (proposal := self._proposal(trials)) is None:
                return "wait"
            else:
                self._optuna.enqueue_trial(proposal)
            self._optuna.sampler = optuna.samplers.RandomSampler(seed=0)  # all values are given
            return self._claim(self._optuna.ask())

    def is_complete(self, num_trials: int) -> bool:
        """Whether nothing is left to run, by anybody."""
        with self._storage.locked():
            trials = self._optuna.get_trials(deepcopy=False)
        has_all = not self.has_control or any(_is_control(trial) for trial in trials)
        return has_all and all(trial.state.is_finished() for trial in trials) and not self._left(trials, num_trials)

    def waits_for_others(self) -> bool:
        """Whether trials are being run by other drivers, which are alive."""
        with self._storage.locked():
            running = self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            return any(not self._driver.is_mine(trial.user_attrs.get("owner")) for trial in running)

    def has_orphan(self) -> bool:
        """Whether a trial's driver has died meanwhile, so that ``next`` has it."""
        with self._storage.locked():
            running = self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            return any(self._is_orphan(trial) for trial in running)

    def report(
        self,
        number: int,
        rows: Sequence[tuple[int, Metrics]],
        resumed_at: int = 0,
        clock: Sequence[float] | None = None,
    ) -> Decision:
        """Records reports of a trial, and decides whether it goes on. What was told before changes nothing.

        Args:
            number: of the trial.
            rows: (step, metrics) of each report.
            resumed_at: after how many steps it went on from a checkpoint just now; 0 if it did not.
            clock: when its process began to train, until when it has, and seconds of it that went to something else.

        Returns:
            "lost": the trial is no longer this driver's.
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
            for step, metrics in rows:
                if SCORE in metrics and step not in scores:
                    scores[step] = metrics[SCORE]
                    if any(rung <= step for rung in self._rungs()):
                        progress["at"].setdefault(str(step), metrics)
                    if len(self.rules.objectives) == 1:  # Optuna has none of trials with several
                        self._storage.optuna.set_trial_intermediate_value(trial._trial_id, step, metrics[SCORE])
                if step >= progress.get("step", 0):
                    progress |= {"step": step, "metrics": metrics}
            has_new = len(scores) > len(progress["scores"])
            progress["scores"] = [[step, score] for step, score in sorted(scores.items())]
            self._set(trial, "progress", progress)
            stopped_at = self._settle()[number].stopped_at if has_new else trial.user_attrs.get("stopped_at")
            return "stop" if stopped_at else "continue"

    def stop(self, number: int) -> None:
        """Ends a trial whose ``report`` said so: it stays at the rung at which it is stopped."""
        with self._storage.locked():
            trial = self._now(number)
            if self._is_mine(trial) and (step := trial.user_attrs.get("stopped_at")) is not None:
                self._tell_stopped(trial, step)

    def fail(self, number: int, reason: str) -> None:
        """Ends a trial that broke off; unless an earlier rung stops it, when that is known (``has_ended``)."""
        with self._storage.locked():
            self._fail(self._now(number), reason)
            self._settle()

    def complete(self, number: int, metrics: Metrics) -> None:
        """Ends a trial that did all its steps, with what the objectives are among its metrics.

        If it cannot be said yet whether an earlier rung stops it, it ends when that is known (``has_ended``).
        """
        values = [metrics.get(OBJECTIVES[objective][0], math.nan) for objective in self.rules.objectives]
        bad = [name for name, value in zip(self.rules.objectives, values, strict=True) if not math.isfinite(value)]
        with self._storage.locked():
            trial = self._now(number)
            if bad:
                self._fail(trial, f"{bad[0]} is not finite")
            elif self._is_mine(trial):
                progress = _progress(trial) | {"metrics": metrics, "step": self.rules.steps, "values": values}
                self._set(trial, "progress", progress)
            self._settle()

    def settle(self) -> None:
        """Ends the trials that are through, and can be judged now."""
        with self._storage.locked():
            self._settle()

    def trials(self) -> list[Trial]:
        """All trials that have ended, those of other drivers too, by number."""
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
        """All trials, in a study in memory."""
        return self._copy(self._optuna.get_trials())

    def without_control(self) -> optuna.Study:
        """The proposals alone, in a study in memory: the control has none of the choices, which figures compare."""
        return self._copy([trial for trial in self._optuna.get_trials() if not _is_control(trial)])

    def _copy(self, trials: list[FrozenTrial]) -> optuna.Study:
        copy = optuna.create_study(directions=self._optuna.directions)
        copy.add_trials(trial for trial in trials if trial.state.is_finished())
        return copy

    def _claim(self, trial: FrozenTrial | optuna.Trial) -> Trial:
        """Makes a trial this driver's; chooses its params, where its last driver did not come to it."""
        if "params" not in trial.user_attrs:
            asked = trial if isinstance(trial, optuna.Trial) else optuna.Trial(self._optuna, trial._trial_id)
            self._set(trial, "params", self.space.choose(asked))
        self._set(trial, "owner", self._driver.name)
        return _trial(self._optuna.get_trials(deepcopy=False)[trial.number])

    def _left(self, trials: Sequence[FrozenTrial], num_trials: int) -> list[dict[str, Any]]:
        """Points of the grid that no trial has; of a search, one empty point if it is to go on."""
        if self.space.search == "grid":
            taken = {trial.user_attrs.get("point") for trial in trials}
            return [point for point in self.space.grid()[:num_trials] if _text(point) not in taken]
        return [{}] if sum(not _is_control(trial) for trial in trials) < num_trials else []

    def _proposal(self, trials: Sequence[FrozenTrial]) -> dict[str, Any] | None:
        """What the sampler proposes for the next number; None where it needs results that are not there yet.

        A function of the seed, the number, and the results of the trials below the window. Of the trials between, it
        knows what they try: to Optuna they look like trials that were stopped before they had a score, so that they
        are not tried again.
        """
        number = len(trials)
        num_known = max(0, number - self._window(number) + 1) if number >= _STARTUP else 0
        if not all(trial.state.is_finished() for trial in trials[:num_known]):
            return None
        view = optuna.create_study(
            directions=self._optuna.directions, sampler=_sampler(_mixed(self.rules.seed, number))
        )
        view.add_trials(_known(trial) for trial in trials[:num_known])
        view.add_trials(
            optuna.trial.create_trial(state=TrialState.PRUNED, params=trial.params, distributions=trial.distributions)
            for trial in trials[num_known:]
        )
        asked = view.ask()
        self.space.choose(asked)
        return dict(asked.params)

    def _rungs(self) -> list[int]:
        return rungs(self.rules.grace_steps, self.rules.reduction_factor, self.rules.steps)

    def _settle(self) -> list[Course]:
        """Judges every trial as far as the others allow, by number, and ends those that are through; gives all courses.

        What was decided is kept: ``passed`` (how many rungs) and ``stopped_at`` (a step).
        """
        trials = self._optuna.get_trials(deepcopy=False)
        courses = [self._course(trial) for trial in trials]
        for number, trial in enumerate(trials):
            before = courses[number]
            if not before.is_decided:
                courses[number] = advance(courses, number, self._rungs(), self.rules.reduction_factor)
            if trial.state == TrialState.RUNNING:
                self._keep(trial, before, courses[number])
        return courses

    def _keep(self, trial: FrozenTrial, before: Course, after: Course) -> None:
        """Keeps what was decided, and ends a trial that did all its steps, or was stopped and is run by nobody."""
        if after.passed != before.passed:
            self._set(trial, "passed", after.passed)
        if after.stopped_at != before.stopped_at:
            self._set(trial, "stopped_at", after.stopped_at)
        progress = _progress(trial)
        if after.stopped_at is not None:
            if _is_through(progress) or self._is_orphan(trial):
                self._tell_stopped(trial, after.stopped_at)
        elif _is_through(progress) and not after.is_waiting:
            if "failure" in progress:
                self._set(trial, "failure", progress["failure"])
                self._optuna.tell(trial.number, state=TrialState.FAIL)
            else:
                self._optuna.tell(trial.number, progress["values"], state=TrialState.COMPLETE)

    def _course(self, trial: FrozenTrial) -> Course:
        """What ASHA has to know of a trial."""
        kept, progress = trial.user_attrs, _progress(trial)
        return Course(
            scores=[(step, score) for step, score in progress["scores"] if step < self.rules.steps],
            is_over=trial.state.is_finished() or _is_through(progress),
            is_compared=kept.get("params", {}).get(WEIGHT) != 0,
            passed=kept.get("passed", 0),
            stopped_at=kept.get("stopped_at"),
        )

    def _tell_stopped(self, trial: FrozenTrial, step: int) -> None:
        """Ends a trial at the report at which ASHA stopped it: what it did beyond does not count."""
        progress = _progress(trial)
        scores = [[at, score] for at, score in progress["scores"] if at <= step]
        kept = progress | {"step": step, "metrics": progress["at"][str(step)], "scores": scores}
        self._set(trial, "progress", kept)
        self._optuna.tell(trial.number, state=TrialState.PRUNED)

    def _fail(self, trial: FrozenTrial, reason: str) -> None:
        if self._is_mine(trial):
            self._set(trial, "progress", _progress(trial) | {"failure": reason})

    def _now(self, number: int) -> FrozenTrial:
        return self._optuna.get_trials(deepcopy=False)[number]

    def _is_mine(self, trial: FrozenTrial) -> bool:
        return trial.state == TrialState.RUNNING and self._driver.is_mine(trial.user_attrs.get("owner"))

    def _is_orphan(self, trial: FrozenTrial) -> bool:
        """Whether nobody runs it.

        Without an owner: its driver died while it asked for it, alone with the study as we are now. A trial that is
        through needs nobody.
        """
        if _is_through(_progress(trial)):
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


def _known(trial: FrozenTrial) -> FrozenTrial:
    """An ended trial as the sampler may see it: nothing of what it did beyond the rung at which it was stopped."""
    last = trial.user_attrs.get("stopped_at", math.inf)
    return optuna.trial.create_trial(
        state=trial.state,
        values=trial.values if trial.state == TrialState.COMPLETE else None,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values={step: value for step, value in trial.intermediate_values.items() if step <= last},
    )


def _progress(trial: FrozenTrial) -> dict[str, Any]:
    """What is recorded of a trial.

    "scores": [step, score] of each report; "at": step -> metrics, from the first rung on; "step" and "metrics" of the
    last report; "values" of the objectives, once it did all its steps; "failure", once it broke off.
    """
    return {"scores": [], "at": {}} | trial.user_attrs.get("progress", {})


def _is_through(progress: dict[str, Any]) -> bool:
    """Whether a trial will do no more steps."""
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


def _text(point: dict[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)


def _mixed(seed: int, number: int) -> int:
    """One seed of two numbers, 32 bits."""
    import numpy as np

    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
