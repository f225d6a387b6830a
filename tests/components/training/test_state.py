"""A checkpoint gives back everything to the bit, or is refused."""

import io
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from components.equivariance import PenaltyWeight
from components.training.state import TrainingResult, TrainingState
from tests.components.training.runs import Run, settings, tensors

pytestmark = pytest.mark.unit


@pytest.fixture
def trained() -> Run:
    """Seven steps."""
    return Run(settings(steps=7)).start()


def test_a_checkpoint_gives_everything_back_to_the_bit(trained: Run) -> None:
    fresh = Run(settings(steps=7))
    before = tensors(fresh)
    fresh.state.from_bytes(trained.state.to_bytes())
    expected, found = tensors(trained), tensors(fresh)
    assert fresh.state.step == 7
    assert fresh.state.last_task_loss == trained.losses()[-1]
    assert fresh.state.history == [{"step": step, **metrics} for step, metrics in trained.reports]
    assert expected.keys() == found.keys()
    assert len(expected) >= 4 + 5 + 12 + 4  # network; averages and their count; two moments and a step each; numbers
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
    assert not torch.equal(before["network.0.weight"], found["network.0.weight"])
    assert not torch.equal(found["averaged.module.0.weight"], found["network.0.weight"])


def test_the_result_of_a_checkpoint_is_the_averaged_network_with_its_history(trained: Run) -> None:
    found = TrainingResult.from_bytes(trained.state.to_bytes(), Run().state.network)
    own = trained.state.result
    assert (found.step, found.history) == (own.step, own.history) == (7, trained.state.history)
    expected = own.network.state_dict()
    assert found.network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.network.state_dict().items())
    assert not torch.equal(expected["0.weight"], trained.state.network.state_dict()["0.weight"])
    with pytest.raises(ValueError, match="a checkpoint that does not fit this run"):
        TrainingResult.from_bytes(trained.state.to_bytes(), nn.Conv2d(3, 3, 3))


def test_a_checkpoint_without_a_format_is_read_and_a_newer_one_is_refused_by_name(trained: Run) -> None:
    saved = torch.load(io.BytesIO(trained.state.to_bytes()), weights_only=True)
    assert saved.pop("format") == 1
    for version in (None, 2):
        content = io.BytesIO()
        torch.save(saved if version is None else {"format": version, **saved}, content)
        if version is None:
            trained.state.from_bytes(content.getvalue())
            continue
        with pytest.raises(ValueError, match=r"does not fit this run .it has format 2, and this eqreg reads formats"):
            trained.state.from_bytes(content.getvalue())


def test_a_state_before_the_first_step_has_no_loss_and_no_history() -> None:
    fresh, other = Run(), Run()
    other.state.from_bytes(fresh.state.to_bytes())
    assert math.isnan(other.state.last_task_loss)
    assert other.state.history == []


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_bytes_cut_short_are_refused(trained: Run, kept: int) -> None:
    with pytest.raises(ValueError, match="a checkpoint that does not fit this run"):
        Run().state.from_bytes(trained.state.to_bytes()[:kept])


@pytest.mark.parametrize(
    "content", [[1, 2], "text", 5, {"averaged": 5, "network": 5}, {"averaged": [1], "network": {}}, {}]
)
def test_a_checkpoint_of_other_content_is_refused(content: object) -> None:
    data = io.BytesIO()
    torch.save(content, data)
    with pytest.raises(ValueError, match="a checkpoint that does not fit this run"):
        Run().state.from_bytes(data.getvalue())
    with pytest.raises(ValueError, match="a checkpoint that does not fit this run"):
        TrainingResult.from_bytes(data.getvalue(), Run().state.network)


@pytest.mark.parametrize("part", ["averaged", "network", "optimizer", "penalty_weight"])
def test_a_checkpoint_of_which_one_part_is_no_mapping_is_refused(trained: Run, part: str) -> None:
    content = torch.load(io.BytesIO(trained.state.to_bytes()), weights_only=True)
    data = io.BytesIO()
    torch.save({**content, part: 5}, data)
    with pytest.raises(ValueError, match="a checkpoint that does not fit this run"):
        Run().state.from_bytes(data.getvalue())


def test_a_checkpoint_of_another_network_is_refused(trained: Run) -> None:
    run = Run()
    other = TrainingState(nn.Conv2d(3, 3, 3), PenaltyWeight(0.1), run.settings, run.worker)
    with pytest.raises(ValueError, match="a checkpoint that does not fit this run"):
        other.from_bytes(trained.state.to_bytes())


class _Intruder:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickle_with_a_program_in_it_is_not_run(tmp_path: Path) -> None:
    data = pickle.dumps(_Intruder(tmp_path / "intruded"), protocol=2)
    with pytest.raises(ValueError, match="a checkpoint that does not fit this run"):
        Run().state.from_bytes(data)
    assert not (tmp_path / "intruded").exists()
