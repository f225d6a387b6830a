"""A checkpoint gives back everything to the bit, or is refused."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch

from tests.components.training.runs import Run, settings, tensors


@pytest.fixture
def trained(tmp_path: Path) -> Run:
    """Seven steps, saved into tmp_path."""
    run = Run(settings(steps=7)).start()
    run.state.save(tmp_path)
    return run


def test_saving_and_loading_gives_everything_back_to_the_bit(trained: Run, tmp_path: Path) -> None:
    fresh = Run(settings(steps=7))
    before = tensors(fresh)
    fresh.state.load(tmp_path)
    expected, found = tensors(trained), tensors(fresh)
    assert fresh.state.step == 7
    assert expected.keys() == found.keys()
    assert len(expected) >= 4 + 5 + 12 + 4  # network; averages and their count; two moments and a step each; numbers
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
    assert not torch.equal(before["network.0.weight"], found["network.0.weight"])
    assert not torch.equal(found["averaged.module.0.weight"], found["network.0.weight"])


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_checkpoint_cut_short_is_refused_by_name(tmp_path: Path, kept: int) -> None:
    data = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(data[:kept])
    with pytest.raises(ValueError, match=r"state\.pt: damaged"):
        Run().state.load(tmp_path)


@pytest.mark.usefixtures("trained")
def test_one_flipped_bit_is_refused_by_name_and_changes_nothing(tmp_path: Path) -> None:
    data = bytearray((tmp_path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "state.pt").write_bytes(data)
    fresh = Run()
    before = tensors(fresh)
    with pytest.raises(ValueError, match=r"state\.pt: damaged"):
        fresh.state.load(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in tensors(fresh).items())


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("missing", ["state.pt", "state.pt.sha256"])
def test_half_a_checkpoint_is_refused_by_name(tmp_path: Path, missing: str) -> None:
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=rf"{tmp_path.name}: no complete checkpoint"):
        Run().state.load(tmp_path)


def test_no_checkpoint_at_all_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no complete checkpoint"):
        Run().state.load(tmp_path / "nowhere")


class _Intruder:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickle_with_a_program_in_it_is_not_run(tmp_path: Path) -> None:
    data = pickle.dumps(_Intruder(tmp_path / "intruded"), protocol=2)
    (tmp_path / "state.pt").write_bytes(data)
    (tmp_path / "state.pt.sha256").write_text(hashlib.sha256(data).hexdigest())
    with pytest.raises(pickle.UnpicklingError):
        Run().state.load(tmp_path)
    assert not (tmp_path / "intruded").exists()


def test_a_save_that_breaks_off_leaves_nothing_that_looks_like_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def breaks_off(path: Path, data: bytes) -> int:
        write(path, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", breaks_off)
    with pytest.raises(OSError, match="No space left"):
        Run().state.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith(".")] == []


def test_only_the_checkpoint_and_its_sum_are_left(trained: Run, tmp_path: Path) -> None:
    assert sorted(file.name for file in tmp_path.iterdir()) == ["state.pt", "state.pt.sha256"]
    digest = hashlib.sha256((tmp_path / "state.pt").read_bytes()).hexdigest()
    assert (tmp_path / "state.pt.sha256").read_text() == digest
