"""A training in a real MLflow store: its images and the machine's load, once; a store that fails ends no training."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest

from pipeline.tracking.runs.training_log import TrainingLog, system_metrics
from pipeline.tracking.store import Store

pytestmark = pytest.mark.process

REPORT = {"task_loss": 0.5, "val_score": 21.0, "penalty/layers.conv1": 0.1}
IMAGES = [np.full((8, 44, 3), value, dtype=np.uint8) for value in (10, 200)]


def images(store: Store, run_id: str) -> list[tuple[str, str]]:
    """(key, step) of the images that MLflow's pages show with a slider."""
    names = [artifact.path for artifact in store.client.list_artifacts(run_id, "images")]
    parts = [name.removeprefix("images/").split("+") for name in names if name.endswith(".png")]
    return sorted((key.replace("~", "/"), step) for key, _, step, *_ in parts)


def test_each_step_is_logged_once_with_its_images_also_by_a_process_that_goes_on(store: Store) -> None:
    run_id = store.begin("run", {}, {})
    first = TrainingLog(store, run_id)
    first.show(10, IMAGES)
    first.add(10, REPORT)
    second = TrainingLog(store, run_id)
    for step in (10, 20):  # its checkpoint tells the first once more
        second.show(step, IMAGES)
        second.add(step, REPORT)
    keys = ("validation/1", "validation/2")
    assert images(store, run_id) == [(key, step) for key in keys for step in ("10", "20")]
    assert [entry.step for entry in store.client.get_metric_history(run_id, "validation/psnr")] == [10, 20]
    assert store.client.get_run(run_id).data.metrics.keys() == {"train/task_loss", "validation/psnr"}


def test_an_image_comes_back_as_it_was(store: Store, tmp_path: Any) -> None:
    from PIL import Image

    run_id = store.begin("run", {}, {})
    TrainingLog(store, run_id).show(10, IMAGES[:1])
    (name,) = (a.path for a in store.client.list_artifacts(run_id, "images") if a.path.endswith(".png"))
    found = np.asarray(Image.open(store.client.download_artifacts(run_id, name, str(tmp_path))))
    np.testing.assert_array_equal(found, IMAGES[0])


@pytest.mark.parametrize("request_", ["log_image", "log_batch"])
def test_a_store_that_fails_is_told_of_once_and_is_not_asked_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], request_: str
) -> None:
    asked = []

    def refuse(*arguments: Any, **named: Any) -> None:
        asked.append(arguments)
        raise OSError("no room")

    log = TrainingLog(store, store.begin("run", {}, {}))
    monkeypatch.setattr(store.client, request_, refuse)
    for step in (10, 20):
        log.show(step, IMAGES)
        log.add(step, REPORT)
    assert capsys.readouterr().out.count("does not answer as it should") == len(asked) == 1


def test_the_load_of_the_machine_is_logged_from_step_1_on_and_goes_on_after_a_stop(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    run_id = store.begin("run", {}, {})

    def steps() -> list[int]:
        return [entry.step for entry in store.client.get_metric_history(run_id, "system/cpu_utilization_percentage")]

    for least in (2, 4):
        with system_metrics(store, run_id):
            end = time.monotonic() + 300
            while len(steps()) < least and time.monotonic() < end:
                time.sleep(0.1)
    assert steps() == list(range(1, len(steps()) + 1))
    assert len(steps()) >= 4
    memory = store.client.get_run(run_id).data.metrics["system/system_memory_usage_megabytes"]
    assert 10 < memory < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_the_load_is_not_logged_where_mlflows_own_variable_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    run_id = store.begin("run", {}, {})
    with system_metrics(store, run_id):
        time.sleep(0.5)
    assert store.client.get_run(run_id).data.metrics == {}


def test_a_store_that_fails_ends_the_load_and_nothing_else(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    run_id = store.begin("run", {}, {})
    asked = []

    def refuse(*arguments: Any, **named: Any) -> None:
        asked.append(arguments)
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(store.client, "log_batch", refuse)
        with system_metrics(store, run_id):
            time.sleep(0.5)
    assert len(asked) == 1
