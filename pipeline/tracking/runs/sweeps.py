"""A sweep in MLflow: one run for the study and one run for each trial.

The run of the study is nested under the pipeline's run; the runs of the trials are nested under the run of the study.
Runs are found again by their tags. A sweep that is continued, a second driver or an added trial creates no duplicates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from components.brief import first_line
from pipeline.console import console
from pipeline.errors import UserError
from pipeline.process_state import interrupts_ignored
from pipeline.tracking.runs import metric_names, notes
from pipeline.tracking.store import PARENT_TAG, Store, answering

if TYPE_CHECKING:
    from pipeline.study.study import Trial

_STUDY, _NUMBER, _KIND = "eqreg.study", "eqreg.trial", "eqreg.kind"
_MOST_RUNS = 1000  # in one page of MLflow's search


class SweepLog:
    """The MLflow runs of one study. All methods are called inside the block ``running``.

    Args:
        store: the store of the task.
        lineage: tags of the sweep's current lineage (``Lineage.tags()``).
        name: name of the study.
        key: unique key of the study.
        locked: lock of the study, so that two drivers do not create its run twice.
    """

    def __init__(
        self, store: Store, lineage: Mapping[str, str], name: str, key: str, locked: AbstractContextManager[None]
    ) -> None:
        self._store, self._lineage, self._name, self._key, self._locked = store, lineage, name, key, locked
        self._tags = {_KIND: "sweep", _STUDY: key}
        self.run_id = ""
        self._runs: dict[int, str] = {}
        self._status: dict[int, str] = {}
        self._last_steps: dict[int, int] = {}
        self._own: set[int] = set()
        self._is_silent = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Begins the run of the sweep.

        After an error in the block, it marks the sweep and the trials of this process as FAILED; after Ctrl-C, as
        KILLED.
        """
        try:
            self._begin()
            yield
        except BaseException as error:
            # A second Ctrl-C must not interrupt this, and an error here must not replace the error of the block.
            with interrupts_ignored(), suppress(Exception):
                if not isinstance(error, Exception):
                    self._break_off("KILLED")
                elif self.run_id:  # otherwise the store does not answer
                    self._break_off("FAILED")
            raise

    def add(self, trial: Trial, reports: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Logs the new reports of a trial, and its end. An error of the store is printed once, and ends the logging."""
        if self._is_silent:
            return
        try:
            self._add(trial, reports)
        except UserError as error:
            self._is_silent = True
            console.print(f"{first_line(error)}\nthe sweep goes on; its end will log what is missing")

    def end(self, trials: Sequence[Trial], scores: Mapping[int, Sequence[tuple[int, float]]], folder: Path) -> None:
        """Logs the final status of all trials, missing reports, and the tables and figures of the sweep.

        Args:
            trials: all trials of the study.
            scores: number of a trial -> (step, validation score) of each report.
            folder: holds the tables and figures.
        """
        self._read_runs()
        for trial in trials:
            self._add(trial, [(step, {"val_score": score}) for step, score in scores.get(trial.number, [])])
        self._store.log_files(self.run_id, folder, "tune")
        notes.write_block(self._store, self.run_id, "results", self._outcome(trials))
        self._set_status(self.run_id, "FINISHED")

    def _outcome(self, trials: Sequence[Trial]) -> str:
        finished = [trial for trial in trials if not trial.stopped_early and trial.failure is None]
        scores = [(trial.metrics["val_score"], trial.number) for trial in finished if "val_score" in trial.metrics]
        best = max(scores, default=None)
        control = next((trial.metrics.get("val_score") for trial in finished if trial.is_control), None)
        failed = sum(trial.failure is not None for trial in trials)
        return notes.of_sweep(best, control, failed, self._store.score)

    def _begin(self) -> None:
        """Creates or finds the run of the sweep, and marks it as RUNNING."""
        with self._locked:
            parent = self._store.parent_run(self._lineage)
            found = self._store.find(self._tags)
            self.run_id = (
                str(found.info.run_id)
                if found
                else self._store.begin(f"sweep-{self._name}", {**self._lineage, **self._tags}, {})
            )
        # If trials were added, the lineage may have changed: the run of the sweep moves to the newest lineage.
        for tag, value in {**self._lineage, PARENT_TAG: parent}.items():
            self._store.set_tag(self.run_id, tag, value)
        self._set_status(self.run_id, "RUNNING")
        self._read_runs()

    def _break_off(self, status: str) -> None:
        """Ends the runs of the sweep and of the trials of this process.

        The runs are read again: an interrupt can come between the creation of a run and the record of its id.
        """
        self._read_runs()
        for number in self._own & self._runs.keys():
            if self._status[number] == "RUNNING":
                self._become(number, status)
        if (found := self._store.find(self._tags)) and found.info.status == "RUNNING":
            self._set_status(str(found.info.run_id), status)

    def _add(self, trial: Trial, reports: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        number = trial.number
        if not trial.has_ended:
            self._own.add(number)
        run_id = self._run_of(trial)
        if not trial.has_ended:
            self._become(number, "RUNNING")
        # A run that has ended is complete.
        elif self._status[number] in ("FINISHED", "FAILED") or (
            self._status[number] == "KILLED" and number in self._own
        ):
            return
        score = self._store.score.key
        if number not in self._last_steps:
            self._last_steps[number] = self._store.last_step(run_id, metric_names.validation(score))
        for step, metrics in reports:
            if step > self._last_steps[number]:
                self._store.log(run_id, step, metric_names.of_report(metrics, score))
                self._last_steps[number] = step
        if trial.has_ended:
            measured = metric_names.of_trial(trial.metrics)
            # All metrics are logged in one request: if the first is there, all are.
            if measured and self._store.last_step(run_id, next(iter(measured))) < trial.steps:
                self._store.log(run_id, trial.steps, measured)
            if trial.failure:
                self._store.set_tag(run_id, "eqreg.failure", trial.failure)
            self._store.set_tag(run_id, "eqreg.stopped_early", str(trial.stopped_early).lower())
            self._become(number, "FAILED" if trial.failure else "KILLED" if trial.stopped_early else "FINISHED")

    def _run_of(self, trial: Trial) -> str:
        """The id of the trial's run, which another driver may have created."""
        number = trial.number
        if number not in self._runs:
            tags = {_KIND: "trial", _STUDY: self._key, _NUMBER: str(number)}
            if found := self._store.find(tags):
                self._runs[number], self._status[number] = str(found.info.run_id), found.info.status
            else:
                own = {PARENT_TAG: self.run_id, "eqreg.control": str(trial.is_control).lower()}
                self._runs[number] = self._store.begin(
                    f"trial-{number}", {**self._lineage, **tags, **own}, trial.params
                )
                self._status[number] = "RUNNING"
        return self._runs[number]

    def _read_runs(self) -> None:
        """Reads the ids and the status of all trials' runs, with few requests."""
        condition = f"tags.`{_STUDY}` = '{self._key}' and tags.`{_KIND}` = 'trial'"
        token: str | None = None
        while True:
            with answering(self._store.uri):
                page = self._store.client.search_runs(
                    [self._store.experiment_id], condition, max_results=_MOST_RUNS, page_token=token
                )
            for run in page:
                number = int(run.data.tags[_NUMBER])
                self._runs[number], self._status[number] = str(run.info.run_id), run.info.status
            token = page.token
            if not token:
                return

    def _become(self, number: int, status: str) -> None:
        if self._status[number] != status:
            self._set_status(self._runs[number], status)
            self._status[number] = status

    def _set_status(self, run_id: str, status: str) -> None:
        if status == "RUNNING":
            with answering(self._store.uri):
                self._store.client.update_run(run_id, status=status)
        else:
            self._store.end(run_id, status)
