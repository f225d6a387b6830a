"""A sweep: Ray Tune runs the trials of a study, on all of a cluster, and does with each what the study says.

Ray's ``OptunaSearch`` is not used: it can neither take over a trial whose driver died, nor record one as stopped, nor
ask twice for the control, and a driver that comes back would propose the first points again. Ray's own record of the
sweep is scratch for the same reason: ``Tuner.restore`` begins interrupted trials anew.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipeline.cluster.identity import auto_name, study_identity
from pipeline.cluster.session import secret_environment
from pipeline.cluster.study import Rules, Study, Trial
from pipeline.cluster.study_storage import StudyStorage
from pipeline.cluster.trial import Rows, TrialTask, run_trial
from pipeline.cluster.trial_room import TrialRoom, find_room
from pipeline.console import console
from pipeline.errors import UserError
from pipeline.params import check_params
from pipeline.paths import SCRATCH
from pipeline.spaces import Space
from pipeline.sqlite import sqlite_address
from pipeline.storage.delivery import Delivery
from pipeline.storage.places import open_place

OnResult = Callable[[Trial, Rows], None]
_POLL_S = 2.0
_ASK_AGAIN_S = 0.5  # Ray asks for trials ten times a second


@dataclass(frozen=True)
class SweepSettings:
    """How a sweep is run.

    Attributes:
        study: its name, or "auto": one for each data, params, space, rules and code.
        study_storage: address of the database; None: SQLite in ``.eqreg``.
        num_trials: beside the control; of a grid, its first so many points.
        steps, grace_steps, reduction_factor: of each trial; before one is stopped; of as many at a rung one goes on.
        objectives: score, and what a Pareto front has beside it.
        num_workers, gpu_share: of each trial; of a GPU for each worker, where there are any.
        concurrent: trials at a time, or "auto": one a core or GPU.
        seed: of the search.
        max_failures: how often a trial that loses its process goes on.
        storage: address of the place of checkpoints and measured rows.
        measures: whether trials are measured on the test images, too.
    """

    study: str
    study_storage: str | None
    num_trials: int
    steps: int
    grace_steps: int
    reduction_factor: int
    objectives: tuple[str, ...]
    num_workers: int
    gpu_share: float
    concurrent: int | str
    seed: int
    max_failures: int
    storage: str
    measures: bool


def open_study(values: dict[str, Any], data: str, space: Space, settings: SweepSettings) -> Study:
    """The study of a sweep; ``data`` is the hash of the packs (``Delivery.hash``).

    Raises:
        UserError: the database does not answer, or a study of this name is of something else.
    """
    rules = Rules(settings.objectives, settings.steps, settings.grace_steps, settings.reduction_factor, settings.seed)
    told = {**rules.__dict__, "num_workers": settings.num_workers}
    identity = study_identity(values, data, space, told, settings.measures)
    name = auto_name(values["task"], identity) if settings.study == "auto" else settings.study
    address = settings.study_storage or sqlite_address((SCRATCH / "tune" / "studies.db").resolve())
    return Study(StudyStorage(address), name, identity, space, rules)


def sweep(
    values: dict[str, Any],
    delivery: Delivery,
    space: Space,
    settings: SweepSettings,
    on_result: OnResult,
    study: Study | None = None,
) -> list[Trial]:
    """Runs what the study lacks of its trials; gives all that it has, by number. Inside a ``ray_session``.

    Args:
        values: plain params; each trial changes those that the space names.
        delivery: of the packs.
        space: what is searched.
        settings: how.
        on_result: hears, in this process, of every report and of every end of a trial: the trial as it stands, and
            the reports that are new, or are told again after it went on from a checkpoint.
        study: if the caller has opened it.

    Raises:
        UserError: a trial finds no room in the cluster; the database or the place does not answer.
    """
    study = study or open_study(values, delivery.hash, space, settings)
    place = open_place(settings.storage)
    place.check()
    cluster = check_params(values, "params").cluster
    room = find_room(cluster, settings.num_workers, settings.gpu_share, settings.concurrent)
    task = TrialTask(
        values,
        delivery,
        place,
        f"sweeps/{study.key}",
        room.each,
        settings.num_workers,
        settings.objectives,
        settings.measures,
        secret_environment(),
    )
    study.set_window(room.concurrent)
    with study:
        _forget_ended(study, task)
        _tune(study, task, settings, room, on_result)
        is_waiting = False
        # The table is whole when other drivers' trials have ended, too; those of one that dies are taken over.
        study.settle()
        while study.waits_for_others():
            study.settle()
            if study.has_orphan():
                _tune(study, task, settings, room, on_result)
                continue
            if not is_waiting:
                console.print("waiting for trials that another command runs")
            is_waiting = True
            time.sleep(_POLL_S)
        study.settle()
        _forget_ended(study, task)
        trials = study.trials()
    if settings.measures:
        trials = [replace(trial, rows=None if trial.failure else task.read_rows(trial.number)) for trial in trials]
    return trials


def _forget_ended(study: Study, task: TrialTask) -> None:
    """Removes the checkpoints of trials that ended while their driver died."""
    ended = {str(trial.number) for trial in study.trials()}
    left = {name.removeprefix(f"{task.prefix}/trials/").split("/")[0] for name in task.place.names(task.prefix)}
    for number in ended & left:
        task.checkpoints(int(number)).discard()


def _tune(study: Study, task: TrialTask, settings: SweepSettings, room: TrialRoom, on_result: OnResult) -> None:
    """Runs trials until the study has none left for this driver."""
    desk = _Desk(study, task, settings.num_trials, on_result)
    with tempfile.TemporaryDirectory(prefix="eqreg-", ignore_cleanup_errors=True) as records:
        _tuner(desk, task, settings, room, records).fit()
    if desk.error:
        raise desk.error


def _tuner(desk: _Desk, task: TrialTask, settings: SweepSettings, room: TrialRoom, records: str) -> ray.tune.Tuner:
    """``records`` is a folder of this machine for what Ray writes down, which nothing is read from."""
    return ray.tune.Tuner(
        ray.tune.with_resources(ray.tune.with_parameters(run_trial, task=task), room.as_ray()),
        tune_config=ray.tune.TuneConfig(
            search_alg=_Search(desk),
            scheduler=_Obey(desk),
            num_samples=-1,
            max_concurrent_trials=room.concurrent,
            # Workers of a trial that is stopped end with its process.
            reuse_actors=settings.num_workers == 1,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=ray.tune.RunConfig(
            name="sweep",
            storage_path=records,
            verbose=0,
            stop=_StopAll(desk),
            failure_config=ray.tune.FailureConfig(max_failures=settings.max_failures),
        ),
    )


def _name(trial: Any) -> str:
    return f"trial-{trial.config['number']}"


class _Desk:
    """Where Ray Tune's searcher and scheduler meet the study. An error of the study ends the sweep."""

    def __init__(self, study: Study, task: TrialTask, num_trials: int, on_result: OnResult) -> None:
        self._study, self._task, self._num_trials, self._on_result = study, task, num_trials, on_result
        self.error: UserError | None = None
        self._numbers: dict[str, int] = {}
        self._given_up: set[int] = set()
        self._through: set[int] = set()  # did all their steps, and are not judged yet
        self._asked_at = -math.inf
        self._last_words: dict[int, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Ray keeps pickles of a sweep; nothing goes on from them."""
        return {}

    def next(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config of the next trial; None where Ray is to ask again; or Ray's word for none."""
        if time.monotonic() - self._asked_at < _ASK_AGAIN_S:
            return None
        try:
            trial = self._study.next(self._num_trials)
            self._hear_of_judged()
        except UserError as error:
            self.error = error
            return Searcher.FINISHED
        if trial == "wait":
            self._asked_at = time.monotonic()
            return None
        if trial is None:
            return Searcher.FINISHED
        self._numbers[trial_id] = trial.number
        return {"number": trial.number, "params": json.dumps(trial.params)}

    def hear(self, number: int, result: dict[str, Any]) -> bool:
        """Records a report of a trial, and says whether it goes on."""
        rows: Rows = [(int(step), metrics) for step, metrics in result.get("rows", [])]
        try:
            decision = self._study.report(number, rows, result.get("resumed_at", 0), result.get("clock"))
            if decision == "lost":
                self._given_up.add(number)
                return False
            self._on_result(self._study.trial(number), rows)
            if "failure" in result:
                self._end(number, lambda: self._study.fail(number, result["failure"]))
            elif "end" in result:
                self._end(number, lambda: self._study.complete(number, result["end"][0]))
            elif decision == "stop":
                self._end(number, lambda: self._study.stop(number))
                return False
            self._hear_of_judged()
        except UserError as error:
            self.error = error
        return self.error is None

    def broken(self, number: int, text: str) -> None:
        """A trial's process broke off; Ray may start it again."""
        self._last_words[number] = text

    def leave(self, trial_id: str) -> None:
        """A trial is over for Ray; one that is not for the study, and was not given up, has failed."""
        number = self._numbers[trial_id]
        try:
            is_left = number not in self._given_up and number not in self._through
            if not self.error and is_left and not self._study.trial(number).has_ended:
                reason = self._last_words.get(number, "it ended without a word")
                self._end(number, lambda: self._study.fail(number, reason))
        except UserError as error:
            self.error = error

    def _end(self, number: int, end: Callable[[], None]) -> None:
        end()
        self._through.add(number)
        self._hear_of_judged()

    def _hear_of_judged(self) -> None:
        """Tells of trials that are through and have been judged meanwhile, and forgets their checkpoints."""
        for number in sorted(self._through):
            if (trial := self._study.trial(number)).has_ended:
                self._through.remove(number)
                self._on_result(trial, [])
                self._task.checkpoints(number).discard()


class _Search(Searcher):
    """Asks the study for trials."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__()
        self._desk = desk

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        return self._desk.next(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._desk.leave(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what it knows is in the study."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: what it knows is in the study."""


class _Obey(FIFOScheduler):
    """Stops the trials that the study says."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__()
        self._desk = desk

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        goes_on = self._desk.hear(trial.config["number"], result)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        text = Path(trial.error_file).read_text() if trial.error_file else ""
        self._desk.broken(trial.config["number"], _why_lost(text, trial.run_metadata.num_failures))


class _StopAll(ray.tune.Stopper):
    """Ends the sweep when the study does not answer; its trials stay as they are."""

    def __init__(self, desk: _Desk) -> None:
        self._desk = desk

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.stop_all()

    def stop_all(self) -> bool:
        return self._desk.error is not None


def _why_lost(text: str, times: int) -> str:
    """One line of what Ray says of a process that broke off so many times."""
    if "low on memory" in text or "OutOfMemory" in text:
        return f"out of memory: Ray ended its process (times: {times})"
    if "died" in text or "dead" in text:
        return f"its process was lost: killed, or crashed (times: {times})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "its process broke off"
