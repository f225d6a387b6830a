"""A sweep: Ray Tune runs the trials of a study on the whole cluster. The study decides which trials start and stop.

Ray's ``OptunaSearch`` is not used, for four reasons. It cannot take over a trial whose driver died. It cannot record a
trial as stopped. It cannot ask twice for the control. A driver that is restarted would propose the first points again.
Ray's own record of the sweep is temporary for the same reason: ``Tuner.restore`` restarts interrupted trials from the
beginning.
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

from pipeline.cluster.session import secret_environment
from pipeline.cluster.trial import Reports, TrialTask, run_trial
from pipeline.cluster.trial_resources import TrialResources, find_trial_resources
from pipeline.config.schema import Params
from pipeline.console import console
from pipeline.errors import UserError
from pipeline.paths import SCRATCH
from pipeline.search_space.space import Space
from pipeline.storage.databases import sqlite_address
from pipeline.storage.open_store import open_store
from pipeline.storage.staged_packs import StagedPacks
from pipeline.study.database import StudyStorage
from pipeline.study.fingerprint import auto_name, study_fingerprint
from pipeline.study.study import Rules, Study, Trial

OnResult = Callable[[Trial, Reports], None]
_POLL_S = 2.0
_ASK_AGAIN_S = 0.5  # Ray requests trials ten times a second


@dataclass(frozen=True)
class SweepSettings:
    """How a sweep is run.

    Attributes:
        study: name of the study; "auto" for a study of its own for each combination of data, params, space, rules and
            code.
        study_storage: address of the database; None for SQLite in ``.eqreg``.
        num_trials: number of trials beside the control; of a grid, the number of points, from the first on.
        steps: training steps of each trial.
        grace_steps: steps before which no trial is stopped.
        reduction_factor: one of this many trials at a rung continues.
        objectives: the score, and the further objectives of a Pareto front.
        num_workers: worker processes of each trial.
        gpu_share: fraction of a GPU for each worker, if there are GPUs.
        concurrent: number of trials at a time; "auto" for one for each core or GPU.
        seed: seed of the search.
        max_failures: how often a trial is restarted after its process was lost.
        storage: address of the artifact store for checkpoints and measurements.
        measures: whether trials are also measured on the test images.
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


def open_study(params: Params, data: str, space: Space, settings: SweepSettings) -> Study:
    """Opens or creates the study of a sweep.

    Args:
        params: of the trials.
        data: hash of the packs (``StagedPacks.hash``).
        space: the search space.
        settings: of the sweep.

    Raises:
        UserError: the database does not answer, or the study of this name has another fingerprint.
    """
    rules = Rules(settings.objectives, settings.steps, settings.grace_steps, settings.reduction_factor, settings.seed)
    told = {**rules.__dict__, "num_workers": settings.num_workers}
    identity = study_fingerprint(params, data, space, told, settings.measures)
    name = auto_name(params.task, identity) if settings.study == "auto" else settings.study
    address = settings.study_storage or sqlite_address((SCRATCH / "tune" / "studies.db").resolve())
    return Study(StudyStorage(address), name, identity, space, rules)


def sweep(
    params: Params,
    staged: StagedPacks,
    space: Space,
    settings: SweepSettings,
    on_result: OnResult,
    study: Study | None = None,
) -> list[Trial]:
    """Runs the missing trials of a study. It must be called inside a ``ray_session``.

    Args:
        params: of the trials; each trial changes those that the space names.
        staged: the staged packs.
        space: the search space.
        settings: of the sweep.
        on_result: called in this process at every report and every end of a trial, with the current state of the trial
            and its new reports. Reports can repeat after a trial resumed from a checkpoint.
        study: the study, if the caller has opened it already.

    Returns:
        All trials of the study, by number.

    Raises:
        UserError: the cluster lacks the resources for one trial; the database or the artifact store does not answer.
    """
    study = study or open_study(params, staged.hash, space, settings)
    artifact_store = open_store(settings.storage)
    artifact_store.check()
    room = find_trial_resources(params.cluster, settings.num_workers, settings.gpu_share, settings.concurrent)
    task = TrialTask(
        params,
        staged,
        artifact_store,
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
        # The results are complete when the trials of other drivers have also ended. If another driver dies, this driver
        # takes over its trials.
        study.make_decisions()
        while study.others_have_trials():
            study.make_decisions()
            if study.has_orphan():
                _tune(study, task, settings, room, on_result)
                continue
            if not is_waiting:
                console.print("waiting for trials that another command runs")
            is_waiting = True
            time.sleep(_POLL_S)
        study.make_decisions()
        _forget_ended(study, task)
        trials = study.trials()
    if settings.measures:
        trials = [
            replace(trial, measurements=None if trial.failure else task.read_measurements(trial.number))
            for trial in trials
        ]
    return trials


def _forget_ended(study: Study, task: TrialTask) -> None:
    """Deletes the checkpoints of ended trials that are left because a driver died."""
    ended = {str(trial.number) for trial in study.trials()}
    left = {
        name.removeprefix(f"{task.prefix}/trials/").split("/")[0] for name in task.artifact_store.names(task.prefix)
    }
    for number in ended & left:
        task.checkpoints(int(number)).discard()


def _tune(study: Study, task: TrialTask, settings: SweepSettings, room: TrialResources, on_result: OnResult) -> None:
    """Runs trials until the study has none left for this driver."""
    adapter = _TuneAdapter(study, task, settings.num_trials, on_result)
    with tempfile.TemporaryDirectory(prefix="eqreg-", ignore_cleanup_errors=True) as records:
        _tuner(adapter, task, settings, room, records).fit()
    if adapter.error:
        raise adapter.error


def _tuner(
    adapter: _TuneAdapter, task: TrialTask, settings: SweepSettings, room: TrialResources, records: str
) -> ray.tune.Tuner:
    """Ray's tuner. It writes its own records into ``records``, a local folder; nothing is read from there."""
    return ray.tune.Tuner(
        ray.tune.with_resources(ray.tune.with_parameters(run_trial, task=task), room.as_ray()),
        tune_config=ray.tune.TuneConfig(
            search_alg=_Search(adapter),
            scheduler=_AdapterScheduler(adapter),
            num_samples=-1,
            max_concurrent_trials=room.concurrent,
            # A trial with several workers needs its own process: if the trial is stopped, its workers end with it.
            reuse_actors=settings.num_workers == 1,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=ray.tune.RunConfig(
            name="sweep",
            storage_path=records,
            verbose=0,
            stop=_StopAll(adapter),
            failure_config=ray.tune.FailureConfig(max_failures=settings.max_failures),
        ),
    )


def _name(trial: Any) -> str:
    return f"trial-{trial.config['number']}"


class _TuneAdapter:
    """The adapter between the study and Ray Tune's searcher and scheduler. An error of the study ends the sweep."""

    def __init__(self, study: Study, task: TrialTask, num_trials: int, on_result: OnResult) -> None:
        self._study, self._task, self._num_trials, self._on_result = study, task, num_trials, on_result
        self.error: UserError | None = None
        self._numbers: dict[str, int] = {}
        self._given_up: set[int] = set()
        self._done_training: set[int] = set()  # have ended their training, and wait for the study's decision
        self._asked_at = -math.inf
        self._last_words: dict[int, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """An empty state: Ray pickles the sweep, and eqreg never restores such a pickle."""
        return {}

    def next(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config of the next trial; None if Ray should ask again later; ``Searcher.FINISHED`` if there is none."""
        if time.monotonic() - self._asked_at < _ASK_AGAIN_S:
            return None
        try:
            trial = self._study.claim_next(self._num_trials)
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

    def on_report(self, number: int, result: dict[str, Any]) -> bool:
        """Records a report of a trial, and returns whether the trial continues."""
        reports: Reports = [(int(step), metrics) for step, metrics in result.get("reports", [])]
        try:
            decision = self._study.report(number, reports, result.get("resumed_at", 0), result.get("clock"))
            if decision == "lost":
                self._given_up.add(number)
                return False
            self._on_result(self._study.trial(number), reports)
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
        """Records why a trial's process was lost; Ray may restart it."""
        self._last_words[number] = text

    def leave(self, trial_id: str) -> None:
        """Handles the end of a trial in Ray.

        The trial has failed if it has not ended in the study, does not wait for its decision, and still belongs to this
        driver.
        """
        number = self._numbers[trial_id]
        try:
            is_left = number not in self._given_up and number not in self._done_training
            if not self.error and is_left and not self._study.trial(number).has_ended:
                reason = self._last_words.get(number, "it ended without a word")
                self._end(number, lambda: self._study.fail(number, reason))
        except UserError as error:
            self.error = error

    def _end(self, number: int, end: Callable[[], None]) -> None:
        end()
        self._done_training.add(number)
        self._hear_of_judged()

    def _hear_of_judged(self) -> None:
        """Reports the waiting trials that the study has ended meanwhile, and deletes their checkpoints."""
        for number in sorted(self._done_training):
            if (trial := self._study.trial(number)).has_ended:
                self._done_training.remove(number)
                self._on_result(trial, [])
                self._task.checkpoints(number).discard()


class _Search(Searcher):
    """Ray Tune's searcher: requests trials from the study."""

    def __init__(self, adapter: _TuneAdapter) -> None:
        super().__init__()
        self._adapter = adapter

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        return self._adapter.next(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._adapter.leave(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: the study holds the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restores nothing: the study holds the state."""


class _AdapterScheduler(FIFOScheduler):
    """Ray Tune's scheduler: stops a trial when the study decides so."""

    def __init__(self, adapter: _TuneAdapter) -> None:
        super().__init__()
        self._adapter = adapter

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        goes_on = self._adapter.on_report(trial.config["number"], result)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        text = Path(trial.error_file).read_text() if trial.error_file else ""
        self._adapter.broken(trial.config["number"], _why_lost(text, trial.run_metadata.num_failures))


class _StopAll(ray.tune.Stopper):
    """Stops the sweep after an error of the study. The trials of the study stay unchanged."""

    def __init__(self, adapter: _TuneAdapter) -> None:
        self._adapter = adapter

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.stop_all()

    def stop_all(self) -> bool:
        return self._adapter.error is not None


def _why_lost(text: str, times: int) -> str:
    """One line that says why Ray lost a trial's process, and how often."""
    if "low on memory" in text or "OutOfMemory" in text:
        return f"out of memory: Ray ended its process (times: {times})"
    if "died" in text or "dead" in text:
        return f"its process was lost: killed, or crashed (times: {times})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "its process broke off"
