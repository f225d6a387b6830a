"""One, two, three and four processes train alike; killed and resumed, as many of them end with the same bytes.

The processes (gloo, one thread each) train to the end, then once more until they are killed after step 9, and a new
group goes on from the last checkpoint. With three, pairs and singles do not divide evenly.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.components.training.runs import Interrupted, Run, settings, tensors

pytestmark = pytest.mark.process

WORLDS = (2, 3, pytest.param(4, marks=pytest.mark.slow))
BATCH_SIZE, NUM_PAIRS = 12, 4
# Name -> (settings, run).
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {"weight": None}),
    "penalised": ({}, {}),
    "batch": ({}, {"norm": "batch"}),
    "sampled": (
        {"task_loss_on_transformed": False},
        {"options": {"sample_layers": 1.5, "sample_fields": 0.5, "max_gradient_ratio": 0.3}},
    ),
    "balanced": ({}, {"balance": 0.1}),
    "accumulated": ({"micro_batch_size": 3}, {"options": {"max_gradient_ratio": 0.3}}),
    "projection": ({"micro_batch_size": 3}, {"penalty": "projection"}),
    "depth": ({"micro_batch_size": 3}, {"depth_rate": 0.4}),
}


def _run(kind: str, **changes: Any) -> Run:
    of_settings, of_run = KINDS[kind]
    return Run(
        settings(validate_every=3, **of_settings), batch_size=BATCH_SIZE, num_pairs=NUM_PAIRS, **of_run, **changes
    )


def _first_step() -> Run:
    return Run(settings(steps=1), norm="batch", batch_size=BATCH_SIZE, num_pairs=NUM_PAIRS).start()


def _worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    here = Path(folder)
    dist.init_process_group("gloo", f"file://{here}/first", rank=rank, world_size=world)
    _note(here / f"one-{rank}", _first_step())
    for kind in KINDS:
        _note(here / f"whole-{kind}-{rank}", _run(kind).start())
        (here / kind).mkdir(exist_ok=True)
        with contextlib.suppress(Interrupted):
            _run(kind, folder=here / kind, stop_after=9).start()
        dist.barrier()
    dist.destroy_process_group()
    dist.init_process_group("gloo", f"file://{here}/second", rank=rank, world_size=world)
    for kind in KINDS:
        resumed = _run(kind)
        data = (here / kind / "checkpoint.pt").read_bytes() if rank == 0 else None
        resumed.state.from_bytes(resumed.worker.from_first(data) or b"")
        _note(here / f"resumed-{kind}-{rank}", resumed.start())
    dist.destroy_process_group()


def _note(path: Path, run: Run) -> None:
    torch.save(tensors(run), path.with_suffix(".pt"))
    path.with_suffix(".json").write_text(json.dumps([_lasting(dict(row)) for row in run.state.history]))


def _lasting(row: dict[str, float]) -> dict[str, float]:
    """All but the wall clock."""
    return {name: value for name, value in row.items() if name != "images_per_second"}


@pytest.fixture(scope="module", params=WORLDS)
def processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """(their number, the folder with the notes of all runs)."""
    folder = tmp_path_factory.mktemp(f"processes-{request.param}")
    torch.multiprocessing.spawn(_worker, (request.param, str(folder)), request.param)
    return request.param, folder


def _history(path: Path) -> list[dict[str, Any]]:
    history: list[dict[str, Any]] = json.loads(path.read_text())
    return history


@pytest.fixture(scope="module")
def alone() -> dict[str, Run]:
    """The same runs in one process."""
    return {kind: _run(kind).start() for kind in KINDS}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "batch"])
def test_workers_have_the_losses_and_weights_of_one_to_rounding(
    processes: tuple[int, Path], alone: dict[str, Run], kind: str
) -> None:
    _, folder = processes
    history, one = _history(folder / f"whole-{kind}-0.json"), alone[kind]
    assert [row["step"] for row in history] == [row["step"] for row in one.state.history]
    # The validation has an image for each rank.
    names = one.state.history[-1].keys() - {"step", "images_per_second", "val_score"}
    for name in names:
        expected = [row.get(name) for row in one.state.history]
        for row, wanted in zip(history, expected, strict=True):
            assert row.get(name) == (wanted if wanted is None else pytest.approx(wanted, rel=1e-3, abs=1e-6)), name
    together = torch.load(folder / f"whole-{kind}-0.pt", weights_only=True)
    for name, value in tensors(one).items():
        assert torch.allclose(together[name], value, rtol=1e-2, atol=3e-4), name


@pytest.mark.parametrize("kind", KINDS)
def test_workers_stay_equal_to_the_bit(processes: tuple[int, Path], kind: str) -> None:
    world, folder = processes
    first, *others = (torch.load(folder / f"whole-{kind}-{rank}.pt", weights_only=True) for rank in range(world))
    assert all(torch.equal(value, other[name]) for other in others for name, value in first.items())


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_they_report_the_same_and_end_with_the_same_bytes(
    processes: tuple[int, Path], kind: str
) -> None:
    world, folder = processes
    whole, resumed = (_history(folder / f"{name}-{kind}-0.json") for name in ("whole", "resumed"))
    assert resumed == whole
    for rank in range(world):
        one, other = (
            torch.load(folder / f"{name}-{kind}-{rank}.pt", weights_only=True) for name in ("whole", "resumed")
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_accumulated_gradients_are_those_of_the_whole_batch(alone: dict[str, Run]) -> None:
    """One step, all at once and in parts of three; a fixed weight, as the weight in parts lags by a step."""
    states = []
    for micro_batch_size in (None, 3):
        run = Run(settings(steps=1, micro_batch_size=micro_batch_size, gradient_clip=1e9), weight=0.0, batch_size=12)
        states.append(tensors(run.start()))
    for name, value in states[0].items():
        if name.startswith(("network", "optimizer")):
            assert torch.allclose(states[1][name], value, rtol=1e-4, atol=1e-7), name


def test_batch_statistics_are_those_of_all_workers(processes: tuple[int, Path]) -> None:
    """The mean of a batch is the mean over its shares' means, where they are equal; after one step."""
    world, folder = processes
    expected = tensors(_first_step())
    for rank in range(world):
        together = torch.load(folder / f"one-{rank}.pt", weights_only=True)
        for name in ("network.3.0.running_mean", "averaged.module.3.0.running_mean"):
            rounding = 1e-4 if NUM_PAIRS % world == 0 else 0.05
            assert torch.allclose(together[name], expected[name], rtol=rounding, atol=rounding / 1000), name
