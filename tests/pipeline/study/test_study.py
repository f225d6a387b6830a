"""A study knows all that decides: drivers may die, come back, and work on it together."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest

from pipeline.config.schema import load_params
from pipeline.errors import UserError
from pipeline.search_space.space import WEIGHT, Space, build_space
from pipeline.storage.databases import sqlite_address
from pipeline.study import heartbeats as drivers
from pipeline.study.database import StudyStorage
from pipeline.study.study import Rules, Study, Trial

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]
IDENTITY = {"data": "1", "params": "2", "code": "3"}
RULES = Rules(("score",), steps=80, grace_steps=10, reduction_factor=2, seed=0)
SEARCH = {
    WEIGHT: {"distribution": "log_uniform", "low": 0.003, "high": 0.3},
    "equivariance.penalty": {"distribution": "choice", "values": ["regular", "rotation"]},
    "equivariance.layer_weights.decay": {
        "distribution": "uniform",
        "low": 0.6,
        "high": 1.0,
        "when": {"equivariance.penalty": "regular"},
    },
}
GRID = {"search": "grid", "network.width": {"distribution": "choice", "values": [8, 12, 16]}} | {
    "equivariance.penalty": {"distribution": "choice", "values": ["regular", "rotation"]}
}


def space(plain: dict[str, Any] = SEARCH) -> Space:
    return build_space("test", plain, load_params(ROOT / "params.yaml"), "test")


def open_study(address: str, plain: dict[str, Any] = SEARCH, rules: Rules = RULES, **identity: str) -> Study:
    return Study(StudyStorage(address), "test", IDENTITY | identity, space(plain), rules)


def reached(trial: Trial) -> float:
    """A score that depends on what was proposed alone."""
    return 20 - abs(math.log10(trial.params[WEIGHT]) + 1.5) - 0.1 * len(trial.params["equivariance.penalty"])


def run_trials(address: str, num_trials: int, pause: float = 0.0) -> None:
    """A driver: runs what there is, in a process of its own."""
    with open_study(address) as study:
        while (trial := study.claim_next(num_trials)) is not None:
            if trial == "wait":
                time.sleep(0.02)
                continue
            time.sleep(pause)
            score = 0.0 if trial.is_control else reached(trial)
            study.report(trial.number, [(10, {"val_score": score})])
            study.complete(trial.number, {"val_score": score})


def take_and_hang(address: str, num_taken: int) -> None:
    """A driver that begins some trials and then waits to be killed."""
    with open_study(address) as study:
        for _ in range(num_taken):
            trial = study.claim_next(10)
            assert trial is not None
            study.report(trial.number, [(10, {"val_score": 5.0})])
        Path(f"{os.environ['MARK']}").write_text("ready")
        time.sleep(600)


class Deadly(Space):
    """A space in which a driver dies while it chooses."""

    def choose(self, chooser: Any) -> dict[str, Any]:
        chooser.suggest_float(WEIGHT, 0.003, 0.3, log=True)
        os.kill(os.getpid(), signal.SIGKILL)
        return {}


def die_while_choosing(address: str) -> None:
    deadly = Deadly(**{each.name: getattr(space(), each.name) for each in fields(Space)})
    with Study(StudyStorage(address), "test", IDENTITY, deadly, RULES) as study:
        study.claim_next(10)  # the control
        study.claim_next(10)


def started(function: Any, *arguments: Any) -> Any:
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    return process


@pytest.mark.slow
def test_two_drivers_at_once_run_each_trial_once(database: str) -> None:
    both = [started(run_trials, database, 9, 0.1) for _ in range(2)]
    for process in both:
        process.join(300)
        assert process.exitcode == 0
    study = open_study(database)
    trials = study.trials()
    assert [trial.number for trial in trials] == list(range(10))
    assert [trial.is_control for trial in trials] == [True] + 9 * [False]
    assert len({str(trial.params) for trial in trials}) == 10
    owners = {trial.user_attrs["owner"] for trial in study.with_control().get_trials()}
    assert len(owners) == 2
    assert study.is_complete(9)
    assert not study.is_complete(10)


def test_what_a_killed_driver_ran_is_taken_over_with_the_same_params(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    process = started(take_and_hang, database, 3)
    while not (tmp_path / "mark").exists():
        time.sleep(0.05)
    study = open_study(database)
    before = [study.trial(number) for number in range(3)]
    assert not study.has_orphan()
    assert study.others_have_trials()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert study.has_orphan()
    with study:
        taken = [study.claim_next(2) for _ in range(3)]
        assert taken == before
        assert study.claim_next(2) is None
        assert not study.others_have_trials()


def test_a_driver_that_dies_while_it_chooses_leaves_a_trial_for_the_next(database: str) -> None:
    process = started(die_while_choosing, database)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    with open_study(database) as study:
        taken = [study.claim_next(1), study.claim_next(1)]
        assert study.claim_next(1) is None
    assert [trial.number for trial in taken if trial] == [0, 1]
    assert taken[1] is not None
    assert set(taken[1].params) >= {WEIGHT, "equivariance.penalty"}


def test_a_driver_that_comes_back_proposes_what_it_would_have_without_leaving(database: str, tmp_path: Path) -> None:
    for num_trials in (2, 5, 13):
        run_trials(database, num_trials)
    broken = [trial.params for trial in open_study(database).trials()]
    other = f"sqlite:///{tmp_path / 'other.db'}"
    run_trials(other, 13)
    assert broken == [trial.params for trial in open_study(other).trials()]
    assert len({str(params) for params in broken}) == 14


def test_ended_drivers_leave_their_trials_to_others_in_the_same_process(database: str) -> None:
    with open_study(database) as first:
        trial = first.claim_next(3)
        second = open_study(database)
        assert not second.has_orphan()
    with second:
        assert second.has_orphan()
        assert second.claim_next(3) == trial


def test_a_silent_driver_elsewhere_loses_its_trial_and_cannot_change_it_any_more(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "SILENT_S", 0.3)
    monkeypatch.setattr(drivers, "_machine", lambda: "far")
    far = open_study(database)
    monkeypatch.setattr(drivers, "_machine", lambda: "near")
    with far, open_study(database) as near:
        trial = far.claim_next(3)
        assert trial is not None
        assert not near.has_orphan()  # heard of for the first time
        time.sleep(0.4)
        assert near.has_orphan()
        assert near.claim_next(3) == trial
        assert far.report(trial.number, [(10, {"val_score": 1.0})]) == "lost"
        far.fail(trial.number, "wrong")
        assert near.report(trial.number, [(10, {"val_score": 2.0})]) == "continue"
        near.complete(trial.number, {"val_score": 3.0})
        assert (near.trial(trial.number).failure, near.trial(trial.number).metrics) == (None, {"val_score": 3.0})


def test_a_driver_elsewhere_that_beats_keeps_its_trial(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "SILENT_S", 3.0)
    monkeypatch.setattr(drivers, "BEAT_S", 0.1)
    monkeypatch.setattr(drivers, "_machine", lambda: "far")
    far = open_study(database)
    monkeypatch.setattr(drivers, "_machine", lambda: "near")
    near = open_study(database)
    with far:
        far.claim_next(3)
        end = time.monotonic() + 1.2 * drivers.SILENT_S
        while time.monotonic() < end:
            assert not near.has_orphan()
            time.sleep(0.1)


def test_the_control_comes_first_is_never_stopped_and_is_no_bar(tmp_path: Path) -> None:
    with open_study(f"sqlite:///{tmp_path / 'studies.db'}") as study:
        control, first, second = (study.claim_next(3) for _ in range(3))
        assert control is not None
        assert first is not None
        assert second is not None
        assert (control.is_control, control.params, control.choices) == (True, {WEIGHT: 0.0}, {})
        assert study.report(first.number, [(10, {"val_score": 20.0})]) == "continue"
        assert study.report(second.number, [(10, {"val_score": 19.0})]) == "stop"
        assert study.report(control.number, [(10, {"val_score": 1.0}), (20, {"val_score": 1.0})]) == "continue"
        third = study.claim_next(3)
        assert third is not None
        assert study.report(third.number, [(10, {"val_score": 19.5})]) == "continue"  # the upper half of 20 and 19


def _begun(study: Study, num_trials: int) -> list[Trial]:
    """The control, and so many trials."""
    study.set_window(num_trials + 1)
    trials = [study.claim_next(num_trials) for _ in range(num_trials + 1)]
    assert all(isinstance(trial, Trial) for trial in trials)
    return trials[1:]  # type: ignore[return-value]


SCORES = {
    (number, step): float(score)
    for number, row in enumerate(np.random.default_rng(0).normal(20, size=(13, 8)))
    for step, score in zip(range(10, 90, 10), row, strict=True)
}
"""(number of a trial, step) -> the score that it has there."""


def _by_rays_scheduler(numbers: Sequence[int]) -> dict[int, int]:
    """Number -> the step at which Ray's scheduler stops it, if the trials report one after the other; 80 for none."""
    from ray.tune.schedulers import AsyncHyperBandScheduler  # slow, and not for the processes that others start

    ray = AsyncHyperBandScheduler(
        time_attr="step", metric="score", mode="max", max_t=801, grace_period=10, reduction_factor=2
    )
    trials = {number: SimpleNamespace(trial_id=str(number)) for number in numbers}
    for trial in trials.values():
        ray.on_trial_add(None, trial)
    ended = dict.fromkeys(numbers, 80)
    for step in range(10, 80, 10):
        for number in [number for number in numbers if ended[number] == 80]:
            if ray.on_trial_result(None, trials[number], {"step": step, "score": SCORES[number, step]}) == "STOP":
                ended[number] = step
    return ended


@pytest.mark.parametrize("order", ["by number", "backwards", "by chance", "one after the other", "the last one first"])
def test_the_study_stops_what_rays_scheduler_would_by_number_whichever_trial_is_faster(
    order: str, tmp_path: Path
) -> None:
    with open_study(f"sqlite:///{tmp_path / 'studies.db'}") as study:
        numbers = [trial.number for trial in _begun(study, 12)]
        events = [(number, step) for step in range(10, 90, 10) for number in numbers]
        if order == "backwards":
            events.sort(key=lambda event: (event[1], -event[0]))
        elif order == "by chance":
            left = {number: list(range(10, 90, 10)) for number in numbers}
            generator = np.random.default_rng(1)
            events = [(int(n), left[n].pop(0)) for n in generator.permutation(np.repeat(numbers, 8))]
        elif order == "one after the other":
            events.sort()
        elif order == "the last one first":
            events.sort(key=lambda event: (-event[0], event[1]))
        stopped: set[int] = set()
        for number, step in events:
            if number in stopped:
                continue
            score = SCORES[number, step]
            told = study.report(number, [(step, {"val_score": score, "own": step})])
            assert study.report(number, [(step, {"val_score": -score})]) == told  # told once more
            if told == "stop":
                study.stop(number)
                stopped.add(number)
            elif step == 80:
                study.complete(number, {"val_score": score, "own": step})
        trials = [study.trial(number) for number in numbers]
    expected = _by_rays_scheduler(numbers)
    assert sum(step < 80 for step in expected.values()) >= 4
    assert all(trial.has_ended for trial in trials)
    assert {trial.number: trial.steps for trial in trials} == expected
    assert [trial.stopped_early for trial in trials] == [expected[number] < 80 for number in numbers]
    # What was done beyond the rung does not count.
    metrics = [{"val_score": SCORES[number, expected[number]], "own": expected[number]} for number in numbers]
    assert [trial.metrics for trial in trials] == metrics
    assert all(step <= expected[number] for number in numbers for step, _ in study.scores()[number])


def test_a_trial_that_cannot_be_judged_yet_goes_on_and_ends_when_it_can(tmp_path: Path) -> None:
    with open_study(f"sqlite:///{tmp_path / 'studies.db'}") as study:
        first, second, third = (trial.number for trial in _begun(study, 3))
        assert study.report(third, [(10, {"val_score": 5.0}), (20, {"val_score": 6.0})]) == "continue"
        study.complete(third, {"val_score": 7.0})
        assert not study.trial(third).has_ended
        assert not study.has_orphan()  # it needs nobody
        assert study.report(first, [(10, {"val_score": 9.0})]) == "continue"
        assert not study.trial(third).has_ended
        study.fail(second, "it broke off before the first rung")
        ended = study.trial(third)
        assert (ended.has_ended, ended.stopped_early, ended.steps) == (True, True, 10)
        assert ended.metrics == {"val_score": 5.0}


def test_a_trial_that_breaks_off_after_a_rung_that_stops_it_was_stopped_whichever_trial_is_faster(
    tmp_path: Path,
) -> None:
    found = []
    for is_first_faster in (True, False):
        with open_study(f"sqlite:///{tmp_path / f'{is_first_faster}.db'}") as study:
            first, second = (trial.number for trial in _begun(study, 2))
            if is_first_faster:
                study.report(first, [(10, {"val_score": 9.0})])
            told = study.report(second, [(10, {"val_score": 1.0})])
            assert told == ("stop" if is_first_faster else "continue")
            if told == "continue":
                study.report(second, [(20, {"val_score": 2.0})])
                study.fail(second, "the loss is no longer finite")
                assert not study.trial(second).has_ended
                study.report(first, [(10, {"val_score": 9.0})])
            else:
                study.fail(second, "its process was lost")
            found.append(study.trial(second))
    assert found[0] == found[1]
    assert (found[0].stopped_early, found[0].steps, found[0].failure) == (True, 10, None)


def test_a_study_lies_in_a_folder_whose_name_would_be_read_otherwise_in_an_address(tmp_path: Path) -> None:
    folder = tmp_path / "is it? 50%41 'é#b"
    address = sqlite_address(folder / "studies.db")
    run_trials(address, 0)
    assert [trial.params[WEIGHT] for trial in open_study(address).trials()] == [0.0]  # the control
    assert {path.name for path in folder.iterdir()} == {"studies.db", "studies.db.lock"}
    assert list(tmp_path.iterdir()) == [folder]


def test_a_driver_that_dies_between_the_end_of_a_trial_and_its_judgement_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"sqlite:///{tmp_path / 'studies.db'}"
    with open_study(address) as gone, monkeypatch.context() as patch:
        trial = gone.claim_next(0)
        assert isinstance(trial, Trial)
        patch.setattr(Study, "_make_decisions", lambda self: None)
        gone.complete(trial.number, {"val_score": 1.0})
    study = open_study(address)
    assert study.others_have_trials()
    study.make_decisions()
    assert not study.others_have_trials()
    assert study.is_complete(0)


def test_a_driver_with_more_room_widens_the_window_for_later_proposals(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'studies.db'}"
    with open_study(address) as study:
        study.set_window(1)
        for _ in range(12):
            trial = study.claim_next(40)
            assert isinstance(trial, Trial)
            study.complete(trial.number, {"val_score": 1.0})
        assert isinstance(study.claim_next(40), Trial)
        assert study.claim_next(40) == "wait"
        study.set_window(3)
        study.set_window(2)  # narrower: no change
        assert [isinstance(study.claim_next(40), Trial) for _ in range(5)] == [True, True, True, True, False]


def test_what_an_orphan_did_beyond_its_rung_is_not_run_again(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'studies.db'}"
    with open_study(address) as gone:
        first, second = (trial.number for trial in _begun(gone, 2))
        assert gone.report(second, [(10, {"val_score": 1.0})]) == "continue"  # the first has not come so far
    with open_study(address) as study:
        taken = [study.claim_next(2), study.claim_next(2)]
        assert [trial.number for trial in taken if isinstance(trial, Trial)] == [0, first]
        study.report(first, [(10, {"val_score": 2.0})])
        assert study.trial(second).stopped_early
        assert study.claim_next(2) is None


def _proposed(address: str, concurrent: int, seed: int, sign: int = 1) -> list[dict[str, Any]]:
    """The params of 20 trials, of which so many run at a time; which of them ends next is drawn."""
    generator = np.random.default_rng(seed)
    with open_study(address) as study:
        study.set_window(concurrent)
        running: list[Trial] = []
        waited = 0
        while True:
            taken = study.claim_next(20) if len(running) < concurrent else "wait"
            if isinstance(taken, Trial):
                running.append(taken)
            elif taken is None and not running:
                break
            else:
                waited += len(running) < concurrent and taken == "wait"
                trial = running.pop(int(generator.integers(len(running))))
                study.complete(trial.number, {"val_score": 0.0 if trial.is_control else sign * reached(trial)})
        assert not waited or concurrent > 1
        return [trial.params for trial in study.trials()]


@pytest.mark.parametrize("concurrent", [1, 2, 4])
def test_what_is_proposed_does_not_depend_on_which_trial_is_faster(concurrent: int, tmp_path: Path) -> None:
    found = [_proposed(f"sqlite:///{tmp_path / f'{seed}.db'}", concurrent, seed) for seed in range(3)]
    assert len(found[0]) == 21
    assert found[1:] == [found[0], found[0]]


def test_the_search_learns_from_its_results(tmp_path: Path) -> None:
    """After the random proposals come better ones, or worse ones where worse is what scores."""
    towards, away = (
        [abs(math.log10(each[WEIGHT]) + 1.5) for each in _proposed(f"sqlite:///{tmp_path / name}", 2, 0, sign)[1:]]
        for name, sign in (("towards.db", 1), ("away.db", -1))
    )
    assert towards[:9] == away[:9]
    assert np.mean(towards[10:]) < np.mean(away[10:])


def test_a_study_of_a_newer_format_is_refused_and_one_without_a_format_is_read(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'studies.db'}"
    study = open_study(address)
    study._optuna.set_user_attr("format", 2)
    with pytest.raises(UserError, match=r"^tune.study: test: this study has format 2, and .*\nor give a new name"):
        open_study(address)
    study._optuna.set_user_attr("format", 0)
    assert open_study(address).key == study.key


def test_a_study_of_something_else_is_refused_in_two_lines(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'studies.db'}"
    open_study(address)
    with pytest.raises(
        UserError, match=r"^tune.study: test: this study was started with another data and code"
    ) as error:
        open_study(address, data="x", code="y")
    assert len(str(error.value).splitlines()) == 2
    open_study(address)


def test_a_grid_has_each_point_once_and_takes_in_more(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'studies.db'}"
    points = space(GRID).grid()
    few = Study(StudyStorage(address), "test", IDENTITY, space(GRID).only(points[2:4]), RULES)
    with few:
        for _ in range(2):
            trial = few.claim_next(2)
            assert trial is not None
            few.complete(trial.number, {"val_score": 1.0})
        assert few.claim_next(2) is None
    with open_study(address, GRID) as whole:
        while trial := whole.claim_next(6):
            whole.complete(trial.number, {"val_score": 1.0})
        found = [trial.choices for trial in whole.trials()]
        assert not any(trial.is_control for trial in whole.trials())
    assert found == [*points[2:4], *points[:2], *points[4:]]
    assert found[0] == whole.trials()[0].params


def test_of_several_objectives_some_stop_early_and_what_was_not_measured_fails(tmp_path: Path) -> None:
    rules = replace(RULES, objectives=("score", "equivariance_error"))
    with open_study(f"sqlite:///{tmp_path / 'studies.db'}", rules=rules) as study:
        numbers = [trial.number for trial in (study.claim_next(3) for _ in range(4)) if trial]
        assert study.report(1, [(10, {"val_score": 20.0})]) == "continue"
        assert study.report(2, [(10, {"val_score": 19.0})]) == "stop"
        study.stop(2)
        study.complete(1, {"val_score": 21.0, "equivariance_error": 0.1})
        study.complete(3, {"val_score": 21.0})
        found = study.with_control()
    assert numbers == [0, 1, 2, 3]
    assert found.directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    assert [trial.values for trial in found.get_trials()] == [[21.0, 0.1], None, None]  # the control runs still
    assert [trial.failure for trial in study.trials()] == [None, None, "equivariance_error is not finite"]


def test_a_server_that_does_not_answer_is_told_in_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "not-to-be-told")
    with pytest.raises(UserError, match=r"^tune.study_storage: postgresql://test@127.0.0.1:1/nothing") as error:
        StudyStorage("postgresql://test@127.0.0.1:1/nothing")
    assert len(str(error.value).splitlines()) == 2
    assert "not-to-be-told" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda file: file.write_bytes(b"something else" * 100),
            "{file} is damaged, or no SQLite database: move it away",
        ),
        (Path.mkdir, "{file} is not there and cannot be made, or is not yours to read"),
    ],
)
def test_a_file_that_is_no_database_is_told_and_no_password_is_asked_for(
    tmp_path: Path, make: Callable[[Path], object], told: str
) -> None:
    file = tmp_path / "study.db"
    make(file)
    with pytest.raises(UserError) as caught:
        StudyStorage(f"sqlite:///{file}")
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"tune.study_storage: sqlite:///{file}: the database does not answer as it should (")
    assert second == f"{told.format(file=file)}; the sweep goes on when it is run again"
