"""The study of the control arms: what it compares is comparable, and what is finished stays finished."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.does_it_help import (
    CANDIDATES,
    Records,
    Run,
    build_denoiser,
    build_regularizer,
    chosen_weight,
    difference,
    read_split,
    training_batch,
)
from components.data.randomness import Stream, torch_generator

pytestmark = pytest.mark.unit

IMAGES = np.random.default_rng(0).random((5, 60, 60), dtype=np.float32)


def finished_run(arm: str, weight: float = 0.0, seed: int = 1, **figures: Any) -> dict[str, Any]:
    return vars(Run("compare", "4", arm, weight, seed, 10, 4, "float32")) | figures


@pytest.mark.parametrize("arm", ["rotation", "channel", "rotation+channel", "regular"])
def test_penalty_arms_see_the_batches_of_pairs_byte_for_byte(arm: str) -> None:
    for step in range(3):
        seen = []
        for of_arm in ("pairs", arm):
            regularizer = build_regularizer(of_arm, build_denoiser(1))
            assert regularizer is not None
            turns = torch_generator(1, Stream.TURN, step)
            seen.append(regularizer.pair(*training_batch(IMAGES, 1, step, 4), generator=turns))
        assert torch.equal(seen[0].inputs, seen[1].inputs)
        assert torch.equal(seen[0].targets, seen[1].targets)


def test_without_rotation_the_batch_differs_in_the_turns_alone() -> None:
    turned, upright = (training_batch(IMAGES, 1, 0, 8, turned=turned) for turned in (True, False))
    torch.testing.assert_close(turned[0] - turned[1], upright[0] - upright[1])  # the noise
    for one, other in zip(turned[1], upright[1], strict=True):
        assert any(torch.equal(one, torch.rot90(other, turns, (-2, -1))) for turns in range(4))
    assert not torch.equal(turned[1], upright[1])


def test_a_line_cut_short_is_dropped_and_the_others_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(finished_run("plain")) + "\n" + '{"phase": "comp')
    records = Records(path)
    assert [run.arm for run in records.finished] == ["plain"]
    records.add(finished_run("pairs"))
    assert [json.loads(line)["arm"] for line in path.read_text().splitlines()] == ["plain", "pairs"]


def test_a_second_process_is_refused_while_the_first_writes(tmp_path: Path) -> None:
    first = Records(tmp_path / "runs.jsonl")
    with pytest.raises(ValueError, match=r"runs\.jsonl: another process is writing it; wait for it, or give another"):
        Records(tmp_path / "runs.jsonl")
    first.add(finished_run("plain"))
    del first
    assert [run.arm for run in Records(tmp_path / "runs.jsonl").finished] == ["plain"]


def test_a_weight_is_chosen_when_all_of_its_arm_have_finished() -> None:
    runs = [finished_run("regular", w, validation=30 - abs(w - 0.01)) for w in CANDIDATES["regular"]]
    assert chosen_weight("regular", runs) == 0.01
    assert chosen_weight("regular", runs[1:]) is None
    assert chosen_weight("plain", []) == 0.0


def test_differences_are_paired_over_the_seeds_that_both_have() -> None:
    arm = {seed: {"psnr": {"test": [30.0 + seed, 32.0]}} for seed in (1, 2, 3)}
    reference = {seed: {"psnr": {"test": [30.0, 31.0]}} for seed in (2, 3, 4)}
    found = difference(arm, reference, "test")
    assert found is not None
    assert found["seeds"] == [2, 3]
    assert found["mean"] == pytest.approx((2 + 3 + 1 + 1) / 4)
    assert (found["low"], found["high"]) == pytest.approx((1.0, 2.5))  # either image alone, its seeds together
    assert found["seed_deviation"] == pytest.approx(0.5 / 2**0.5)
    assert difference(arm, {}, "test") is None


def test_a_picture_in_two_parts_is_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (74, 8, 8), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number:03}.png")
    split = read_split(tmp_path)
    assert sorted(split.test + split.validation + split.train) == list(range(74))
    folder = tmp_path / "doubled"
    folder.mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(pixels[split.test[0]] if number == split.train[0] else image).save(folder / f"{number:03}.png")
    with pytest.raises(ValueError, match="same picture is in two parts"):
        read_split(folder)
