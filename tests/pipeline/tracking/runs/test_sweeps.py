"""A sweep in a real MLflow store: whoever logs it, and however often, each run and each report is there once."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.study.study import Trial
from pipeline.tracking.runs.notes import NOTE_TAG
from pipeline.tracking.runs.sweeps import SweepLog
from pipeline.tracking.store import PARENT_TAG, Store

pytestmark = pytest.mark.process

LINEAGE = {"eqreg.lineage": "abc", "eqreg.git_commit": "none"}
TRIAL = Trial(1, {"equivariance.weight": 0.1}, False, False, 30, {"val_score": 22.0}, None, has_ended=False)
ROWS = [(10, {"val_score": 20.0, "task_loss": 0.3}), (20, {"val_score": 21.0}), (30, {"val_score": 22.0})]


def sweep_log(store: Store, **lineage: str) -> SweepLog:
    tags = LINEAGE | {f"eqreg.{key}": value for key, value in lineage.items()}
    log = SweepLog(store, tags, "name", "name-key", contextlib.nullcontext())
    with log.running():
        pass
    return log


def children(store: Store, log: SweepLog) -> list[Any]:
    return list(store.client.search_runs([store.experiment_id], f"tags.`{PARENT_TAG}` = '{log.run_id}'"))


def steps(store: Store, run: Any, metric: str = "validation/psnr") -> list[int]:
    return [entry.step for entry in store.client.get_metric_history(run.info.run_id, metric)]


def test_a_trial_that_goes_on_under_another_driver_has_one_run_without_gaps_or_doubles(store: Store) -> None:
    first = sweep_log(store)
    first.add(TRIAL, ROWS[:1])
    second = sweep_log(store)
    assert second.run_id == first.run_id
    second.add(TRIAL, ROWS[:2])  # its checkpoint tells the first once more
    second.add(TRIAL, ROWS[2:])
    ended = replace(TRIAL, has_ended=True, metrics={"val_score": 22.0, "step_time": 0.1})
    second.add(ended, [])
    second.end([ended], {1: [(step, metrics["val_score"]) for step, metrics in ROWS]}, Path("tune_spaces"))
    (run,) = children(store, second)
    assert steps(store, run) == [10, 20, 30]
    assert steps(store, run, "train/step_time") == [30]
    assert run.info.status == "FINISHED"
    assert store.client.get_run(second.run_id).info.status == "FINISHED"
    assert run.data.params == {"equivariance.weight": "0.1"}


def test_a_sweep_moves_under_the_newest_lineage_and_keeps_its_trials(store: Store) -> None:
    first = sweep_log(store)
    first.add(TRIAL, ROWS)
    second = sweep_log(store, lineage="def")
    second.add(replace(TRIAL, number=2), ROWS)
    parent = store.find({"eqreg.kind": "pipeline", "eqreg.lineage": "def"})
    assert parent is not None
    assert store.tag(second.run_id, PARENT_TAG) == parent.info.run_id
    lineages = {run.data.tags["eqreg.trial"]: run.data.tags["eqreg.lineage"] for run in children(store, second)}
    assert lineages == {"1": "abc", "2": "def"}


def test_the_end_fills_in_what_a_driver_could_not_log(store: Store) -> None:
    log = sweep_log(store)
    log.add(TRIAL, ROWS[:1])
    others = [
        replace(TRIAL, has_ended=True, stopped_early=True),
        replace(TRIAL, number=2, has_ended=True, failure="out of memory"),
        replace(TRIAL, number=0, has_ended=True, is_control=True),
    ]
    scores = {number: [(step, metrics["val_score"]) for step, metrics in ROWS] for number in range(3)}
    for _ in range(2):
        log.end(others, scores, Path("tune_spaces"))
    runs = {run.data.tags["eqreg.trial"]: run for run in children(store, log)}
    assert {number: run.info.status for number, run in runs.items()} == {"0": "FINISHED", "1": "KILLED", "2": "FAILED"}
    assert all(steps(store, run) == [10, 20, 30] for run in runs.values())
    assert runs["2"].data.tags["eqreg.failure"] == "out of memory"
    assert runs["0"].data.tags["eqreg.control"] == "true"
    assert "Control (weight 0, the same pairs): 22.00." in str(store.tag(log.run_id, NOTE_TAG))


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), "KILLED"), (ValueError(), "FAILED")])
def test_a_sweep_that_breaks_off_ends_the_runs_of_its_own_trials(
    store: Store, error: BaseException, status: str
) -> None:
    sweep_log(store).add(replace(TRIAL, number=2), [])  # another driver's
    log = sweep_log(store)

    def break_off() -> None:
        with log.running():
            log.add(TRIAL, ROWS[:1])
            raise error

    with pytest.raises(type(error)):
        break_off()
    runs = {run.data.tags["eqreg.trial"]: run.info.status for run in children(store, log)}
    assert runs == {"1": status, "2": "RUNNING"}
    again = sweep_log(store)
    again.add(TRIAL, ROWS)
    assert {run.data.tags["eqreg.trial"]: run.info.status for run in children(store, again)}["1"] == "RUNNING"


@pytest.mark.parametrize("request_", ["create_run", "log_batch", "set_tag"])
def test_an_interrupt_within_any_request_leaves_no_run_running(
    store: Store, monkeypatch: pytest.MonkeyPatch, request_: str
) -> None:
    """The request reaches the store before the interrupt: the run exists, but its id is not known here yet."""
    original = getattr(store.client, request_)

    def interrupted(*arguments: Any, **named: Any) -> None:
        original(*arguments, **named)
        raise KeyboardInterrupt

    for is_new in (True, False):
        log = SweepLog(store, LINEAGE, "name", "name-key", contextlib.nullcontext())
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
            if is_new:
                patch.setattr(store.client, request_, interrupted)
            with log.running():
                patch.setattr(store.client, request_, interrupted)
                log.add(TRIAL, ROWS[:1])
                log.add(replace(TRIAL, has_ended=True), [])
        found = store.client.search_runs([store.experiment_id], "tags.`eqreg.study` = 'name-key'")
        assert [run.info.run_name for run in found if run.info.status == "RUNNING"] == []
    assert any(run.info.run_name == "trial-1" for run in found)


def test_a_store_that_fails_is_told_of_once_and_does_not_end_the_sweep(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = sweep_log(store)

    def refuse(*arguments: Any, **named: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(store.client, "log_batch", refuse)
    for row in ROWS:
        log.add(TRIAL, [row])
    assert capsys.readouterr().out.count("does not answer as it should") == 1
