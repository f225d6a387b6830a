"""Which runs an ablation needs: every arm gets as much, and all that its arms differ in is what they penalise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from components.data.packs import Entry, write_pack
from components.networks.convolutional.dncnn import DnCNN
from pipeline.commands.ablation_plan import arms_of, candidate_results, comparison_space, points_to_try, winner
from pipeline.config.schema import load_params
from pipeline.errors import UserError
from pipeline.search_space.space import build_space, load_space
from pipeline.training_job import TrainingJob
from tests.pipeline.conftest import Project

pytestmark = pytest.mark.unit

REGULAR = {"equivariance.penalty": "regular"}
SPACE: dict[str, Any] = {
    "search": "grid",
    "arm": {
        "variants": {
            "pairs": {"equivariance.weight": 0.0},
            "regular": REGULAR,
            "paper": {"equivariance.penalty": "paper"},
        }
    },
    "equivariance.weight": [
        {"distribution": "choice", "values": [0.1, 0.2], "when": {"arm": "regular"}},
        {"distribution": "choice", "values": [1e-4, 1e-3], "when": {"arm": "paper"}},
    ],
}


def _arms(**changes: Any) -> Any:
    return arms_of(build_space("mine", SPACE | changes, load_params(), "mine.yaml"), "ablate.space: mine")


def test_candidates_take_turns_and_controls_are_not_tried(project: Project) -> None:
    arms = _arms()
    assert {arm: [point.weight for point in points] for arm, points in arms.items()} == {
        "pairs": [0.0],
        "regular": [0.1, 0.2],
        "paper": [1e-4, 1e-3],
    }
    assert [tuple(point.values()) for point in points_to_try(arms)] == [
        ("regular", 0.1),
        ("paper", 1e-4),
        ("regular", 0.2),
        ("paper", 1e-3),
    ]


def test_the_winner_is_the_best_on_validation_of_what_came_through(project: Project) -> None:
    arms = _arms()
    outcomes: list[Any] = [
        ({"arm": "regular", "equivariance.weight/1": 0.2}, 30.0, None),
        ({"arm": "regular", "equivariance.weight/1": 0.1}, 29.0, None),
        ({"arm": "paper", "equivariance.weight/2": 1e-4}, None, "no longer finite"),
    ]
    tried = {arm: candidate_results(arm, points, outcomes) for arm, points in arms.items()}
    assert tried["pairs"] == []
    assert [candidate.score for candidate in tried["regular"]] == [29.0, 30.0]
    assert [candidate.failure for candidate in tried["paper"]] == ["no longer finite", "it never ran"]
    chosen = {arm: winner(points, tried[arm]) for arm, points in arms.items()}
    assert {arm: point and point.weight for arm, point in chosen.items()} == {
        "pairs": 0.0,
        "regular": 0.2,
        "paper": None,
    }


def test_every_arm_is_compared_with_the_same_fresh_seeds(project: Project) -> None:
    arms = _arms()
    chosen = {arm: points[-1] for arm, points in arms.items()}
    space, seeds = comparison_space(chosen, load_params(), 2, "here")
    assert seeds == [1, 2]
    found = [space.given(point) for point in space.grid()]
    assert [(changes["seed"], changes["equivariance.weight"]) for changes in found] == [
        *((seed, weight) for seed in seeds for weight in (0.0, 0.2, 1e-3))
    ]
    assert found[1] == {"equivariance.penalty": "regular", "equivariance.weight": 0.2, "seed": 1}
    # More seeds are more points of the same study; other weights are another study.
    more, _ = comparison_space(chosen, load_params(), 5, "here")
    assert more.identity == space.identity
    assert more.grid()[:6] == space.grid()
    others, _ = comparison_space({arm: points[0] for arm, points in arms.items()}, load_params(), 2, "here")
    assert others.identity != space.identity
    _, wrapped = comparison_space(chosen, load_params().patched({"seed": 2**32 - 2}), 3, "here")
    assert wrapped == [2**32 - 1, 0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": "optuna"}, "search: optuna: an ablation takes every combination: use search: grid"),
        (
            {"arm": {"variants": {"regular": REGULAR}}, "equivariance.weight": SPACE["equivariance.weight"][:1]},
            "arm: missing",
        ),
        ({"seed": {"distribution": "choice", "values": [1, 2]}}, "seed: remove it from the space: ablate.seeds sets"),
        (
            {"arm": {"variants": {"regular": REGULAR, "paper": {}, "pairs": {}}}},
            "arm pairs: equivariance.weight is missing",
        ),
        (
            {
                "equivariance.weight": [
                    SPACE["equivariance.weight"][0],
                    {"distribution": "choice", "values": [1e-4], "when": {"arm": "paper"}},
                ]
            },
            "arm paper: 1 candidates, and regular has 2: give every arm the same number",
        ),
    ],
)
def test_a_space_that_favours_an_arm_or_is_no_ablation_is_refused(
    project: Project, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        _arms(**changes)
    assert str(caught.value).startswith("ablate.space: mine: ")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    random = np.random.default_rng(3)
    folder = tmp_path / "packed"
    for part in ("train", "val"):
        clean = [random.integers(0, 255, (3, 40, 40)).astype(np.uint8) for _ in range(3)]
        noisy = [(image / 255 + random.normal(0, 0.1, image.shape)).astype(np.float32) for image in clean]
        (folder / part).mkdir(parents=True)
        write_pack(
            folder / part,
            [Entry(f"{part}{n}", f"{part}{n}", 40, 40) for n in range(3)],
            clean,
            noisy if part == "val" else (),
        )
    return folder


@pytest.fixture
def seen() -> Iterator[list[Tensor]]:
    """What networks are given in training, as they are given it."""
    inputs: list[Tensor] = []

    def remember(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if isinstance(module, DnCNN) and module.training:
            inputs.append(arguments[0].detach().clone())

    hook = nn.modules.module.register_module_forward_pre_hook(remember)
    yield inputs
    hook.remove()


def test_the_arms_of_the_shipped_ablation_train_on_equal_batches(
    project: Project, packed: Path, seen: list[Tensor]
) -> None:
    """Each arm is trained for three steps: the penalty arms are given what `pairs` is given, byte for byte."""
    project.set(
        {
            "network.name": "dncnn",
            "network.width": 8,
            "network.depth": 3,
            "train.steps": 3,
            "train.batch_size": 4,
            "train.patch_size": 24,
            "train.num_workers": 1,
        }
    )
    params = load_params()
    arms = arms_of(load_space("ablation", params), "here")
    batches: dict[str, list[Tensor]] = {}
    for arm, points in arms.items():
        job = TrainingJob(params.patched(points[-1].changes, arm), packed)
        seen.clear()
        job.run(lambda step, metrics: None, lambda state, metrics: None)
        batches[arm] = [images for images in seen if len(images) == 4]
    assert all(
        len(given) == 3 and all(images.shape == (4, 3, 24, 24) for images in given) for given in batches.values()
    )
    for arm in ("rotation", "channel", "rotation+channel", "regular", "projection", "paper"):
        assert all(torch.equal(own, other) for own, other in zip(batches[arm], batches["pairs"], strict=True)), arm
    for own, other in zip(batches["pairs"], batches["plain"], strict=True):
        # One pair of four images: the copy takes the place of the second one, the others are those of `plain`.
        assert [torch.equal(a, b) for a, b in zip(own, other, strict=True)] == [True, False, True, True]
        assert any(torch.equal(own[1], torch.rot90(own[0], turns, (-2, -1))) for turns in (1, 2, 3))
    for own, other in zip(batches["none"], batches["plain"], strict=True):
        assert not torch.equal(own, other)
        # Averaged over the image a patch is the same however it is turned, but for the noise of 24 x 24 pixels.
        torch.testing.assert_close(own.mean((-2, -1)), other.mean((-2, -1)), atol=0.02, rtol=0)
