"""The private parts of Ray Train that the quick trainer replaces are there, and are replaced."""

from __future__ import annotations

import ast
import pickle
import queue
import resource
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import OutOfDiskError
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.util import construct_user_exception_with_traceback

from pipeline.cluster.controller import FixedHere, LossPolicy, LossWatcher, NoDatasets
from pipeline.cluster.quick_trainer import QuickTrainer
from pipeline.errors import FullDiskError
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.open_store import open_store

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]


def test_the_policy_replaces_methods_that_ray_has() -> None:
    for name in ("after_controller_start", "_maybe_send_resource_request"):
        assert callable(getattr(FixedScalingPolicy, name))
        assert getattr(FixedHere, name) is not getattr(FixedScalingPolicy, name)
    for name in ("_create_default_callbacks", "_initialize_and_run_controller"):
        assert callable(getattr(TorchTrainer, name))
        assert getattr(QuickTrainer, name) is not getattr(TorchTrainer, name)


def test_workers_are_told_that_there_are_no_datasets() -> None:
    assert hasattr(DatasetsCallback, "before_init_train_context")
    assert NoDatasets().before_init_train_context(["a", "b"]) == {"dataset_shard_provider": [None, None]}


@pytest.mark.parametrize("num_workers", [2, (1, 2)])
def test_an_elastic_run_still_asks_for_nodes(num_workers: int | tuple[int, int]) -> None:
    trainer = QuickTrainer(
        print,
        is_local=True,
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(name="test", storage_path="/nowhere"),
    )
    assert trainer._is_local is (num_workers == 2)


def _failed(*errors: Exception) -> WorkerGroupError:
    """What Ray's controller is handed when workers raise these: they come to it pickled."""
    wrapped = {}
    for rank, error in enumerate(errors):
        try:
            raise error
        except Exception as raised:
            wrapped[rank] = construct_user_exception_with_traceback(raised)
    failed: WorkerGroupError = pickle.loads(pickle.dumps(WorkerGroupError("failed", wrapped)))
    return failed


@pytest.fixture
def full_disk(tmp_path: Path) -> FullDiskError:
    """What a worker raises whose place of checkpoints is full: the limit stands for the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(FullDiskError) as caught:
            Checkpoints(open_store(str(tmp_path)), "run", 1).save(5, bytes(1 << 20), None)
    finally:
        signal.signal(signal.SIGXFSZ, before)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return caught.value


def test_a_full_disk_is_not_tried_again_and_a_loss_is(full_disk: FullDiskError) -> None:
    policy = LossPolicy(FailureConfig(max_failures=2))
    lost = _failed(RuntimeError("gloo: connection closed"), RuntimeError("killed"))
    assert policy.make_decision(lost) is FailureDecision.RETRY
    for error in (full_disk, OSError(28, "No space left on device"), OutOfDiskError("full")):
        assert policy.make_decision(_failed(RuntimeError("gloo"), error)) is FailureDecision.RAISE
    assert policy.make_decision(lost) is FailureDecision.RETRY
    assert policy.make_decision(lost) is FailureDecision.RAISE


def test_a_full_disk_is_no_lost_worker(full_disk: FullDiskError) -> None:
    mailbox: queue.Queue[tuple[str, str]] = queue.Queue()
    watcher = LossWatcher(mailbox)  # type: ignore[arg-type]
    watcher.after_exception(None, _failed(full_disk).worker_failures)
    assert mailbox.empty()
    watcher.after_exception(None, _failed(RuntimeError("killed")).worker_failures)
    assert mailbox.get() == ("lost", "worker 0: RuntimeError: killed")


def test_the_controller_gets_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(TorchTrainer, "_initialize_and_run_controller", lambda trainer, **parts: given.update(parts))
    for is_local in (False, True):
        run = RunConfig(name="test", storage_path="/nowhere", failure_config=FailureConfig(max_failures=7))
        QuickTrainer(print, is_local=is_local, run_config=run)._initialize_and_run_controller(failure_policy=None)
        policy = given.pop("failure_policy")
        assert isinstance(policy, LossPolicy)
        assert policy.failure_config.max_failures == 7


@pytest.mark.parametrize("is_trial", [False, True])
@pytest.mark.parametrize("is_local", [False, True])
def test_what_frees_the_room_of_a_dead_controller_is_left_out_where_ray_ends_with_the_command(
    is_local: bool, is_trial: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = "an actor" if is_trial else None
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_actor_id=lambda: actor))
    trainer = QuickTrainer(print, is_local=is_local, run_config=RunConfig(name="test", storage_path="/nowhere"))
    kinds = [type(callback) for callback in trainer._create_default_callbacks()]
    assert (PlacementGroupCleanerCallback in kinds) is (is_trial or not is_local)
    assert DatasetsCallback not in kinds
    assert NoDatasets in kinds


def test_the_controller_imports_neither_torch_nor_the_networks() -> None:
    """Else all workers wait for it: what the driver hands it is unpickled from these modules alone."""
    light = ("pipeline.cluster.controller", "pipeline.cluster.process_group", "pipeline.compat", "pipeline.errors")
    for module in light:
        names = []
        for node in ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text()).body:
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        heavy = [name for name in names if name.split(".")[0] in ("torch", "components", "pipeline")]
        assert [name for name in heavy if name not in light] == [], module
