"""A sweep in MLflow: one run for the study, nested under the pipeline's, and one nested under it for each trial.

Runs are found again by their tags, so that a sweep that goes on, a second driver or an added trial doubles nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.console import console
from pipeline.errors import UserError
from pipeline.interrupts import deaf_to_interrupts
from pipeline.tracking.store import PARENT_TAG, Store, answering

if TYPE_CHECKING:
    from pipeline.cluster.study import Trial

_STUDY, _NUMBER, _KIND = "eqreg.study", "eqreg.trial", "eqreg.kind"
_MEASURED = ("equivariance_error", "layer_error", "step_time")  # at a trial's end
_MOST_RUNS = 1000  # a page of MLflow's


class SweepLog:
    """The runs of one study.

    Args:
        store: of the task.
        lineage: tags of what is swept now (``Lineage.tags()``).
        name: of the study.
        key: of the study; no other has the same.
        locked: alone with the study, so that two drivers do not begin its run twice.
    """

    def __init__(
        self, store: Store, lineage: Mapping[str, str], name: str, key: str, locked: AbstractContextManager[None]
    ) -> None:
        self._store, self._lineage, self._key = store, lineage, key
        tags = {_KIND: "sweep", _STUDY: key}
        with locked:
            parent = store.parent_run(lineage)
            found = store.find(tags)
            self.run_id = str(found.info.run_id) if found else store.begin(f"sweep-{name}", {**lineage, **tags}, {})
        # A trial that was added has another lineage: the sweep moves to the newest.
        for tag, value in {**lineage, PARENT_TAG: parent}.items():
            store.set_tag(self.run_id, tag, value)
        self._set_status(self.run_id, "RUNNING")
        self._runs: dict[int, str] = {}
        self._status: dict[int, str] = {}
        self._last_steps: dict[int, int] = {}
        self._read_runs()
        self._own: set[int] = set()
        self._is_silent = False

    def add(self, trial: Trial, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Logs reports of a trial that are not there yet, and its end. A store that fails is told of once."""
        if self._is_silent:
            return
        try:
            self._add(trial, rows)
        except UserError as error:
            self._is_silent = True
            console.print(f"{str(error).splitlines()[0]}\nthe sweep goes on; its end will log what is missing")

    def end(self, trials: Sequence[Trial], scores: Mapping[int, Sequence[tuple[int, float]]], folder: Path) -> None:
        """Marks all trials as what they became, fills in what is missing, and keeps the sweep's tables and figures."""
        self._read_runs()
        for trial in trials:
            self._add(trial, [(step, {"val_score": score}) for step, score in scores.get(trial.number, [])])
        self._store.log_files(self.run_id, folder, "tune")
        self._set_status(self.run_id, "FINISHED")

    @contextmanager
    def ended_if_broken_off(self) -> Iterator[None]:
        """Marks the sweep, and what of it this process ran, as FAILED, or KILLED by Ctrl-C, if the block breaks off."""
        try:
            yield
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            # A second Ctrl-C would break this off with a traceback; what fails here must not hide the error.
            with deaf_to_interrupts(), suppress(Exception):
                for number in self._own:
                    if self._status.get(number) == "RUNNING":
                        self._set_status(self._runs[number], status)
                self._set_status(self.run_id, status)
            raise

    def _add(self, trial: Trial, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        number = trial.number
        run_id = self._run_of(trial)
        if not trial.has_ended:
            self._own.add(number)
            self._become(number, "RUNNING")
        # A run that has ended has all there is.
        elif self._status[number] in ("FINISHED", "FAILED") or (
            self._status[number] == "KILLED" and number in self._own
        ):
            return
        if number not in self._last_steps:
            self._last_steps[number] = self._store.last_step(run_id, "val_score")
        for step, metrics in rows:
            if step > self._last_steps[number]:
                self._store.log(run_id, step, metrics)
                self._last_steps[number] = step
        if trial.has_ended:
            measured = {key: value for key, value in trial.metrics.items() if key in _MEASURED}
            # One write holds all of them: a driver that was killed after it has logged them all.
            if measured and self._store.last_step(run_id, next(iter(measured))) < trial.steps:
                self._store.log(run_id, trial.steps, measured)
            if trial.failure:
                self._store.set_tag(run_id, "eqreg.failure", trial.failure)
            self._store.set_tag(run_id, "eqreg.stopped_early", str(trial.stopped_early).lower())
            self._become(number, "FAILED" if trial.failure else "KILLED" if trial.stopped_early else "FINISHED")

    def _run_of(self, trial: Trial) -> str:
        """The trial's run, which another driver may have begun."""
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
        """All trials' runs that there are, with few questions."""
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
