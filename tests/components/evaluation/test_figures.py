"""Figures hold what they were given: the very pixels of images, a bar a layer, a marker a trial."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import skimage.data
import torch
from matplotlib import style
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from components.evaluation.comparison_images import save_comparison
from components.evaluation.figures import save_equivariance_bars, save_history, save_trials

pytestmark = pytest.mark.unit

COFFEE = skimage.data.coffee().transpose(2, 0, 1)


def read(path: Path) -> np.ndarray:
    """The PNG, (H, W, 3) in 8 bits."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def comparison_columns(channels: int, height: int, width: int) -> dict[str, np.ndarray]:
    """Input, restored and truth, of which only the truth is in 8 bits and only the input out of range."""
    truth = COFFEE[:channels, :height, :width].astype(np.float32) / 255
    noise = np.random.default_rng(0).normal(0, 0.2, truth.shape).astype(np.float32)
    return {"input": truth + noise, "restored": (truth + noise / 10).clip(0, 1), "truth": truth}


def file_pixels(image: np.ndarray) -> np.ndarray:
    """(C, H, W) -> the (H, W, 3) of an 8-bit file."""
    pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "enlargement"), [(70, 250, 1), (300, 241, 1), (61, 100, 2), (40, 33, 7)])
def test_a_strip_holds_the_pixels_of_every_image_in_its_column(
    tmp_path: Path, channels: int, height: int, width: int, enlargement: int
) -> None:
    images = comparison_columns(channels, height, width)
    save_comparison(tmp_path / "strip.png", images)
    picture = read(tmp_path / "strip.png")
    column = width * enlargement
    assert picture.shape[1] == 2 * 12 + 3 * column + 2 * 8
    for index, image in enumerate(images.values()):
        shown = picture[44:, 12 + index * (column + 8) :][: height * enlargement, :column]
        expected = file_pixels(image).repeat(enlargement, axis=0).repeat(enlargement, axis=1)
        differs = (shown != expected).any(axis=-1)
        # only the frame of the detail, four sides of 2 pixels, hides anything
        rows, columns = np.nonzero(differs)
        assert 0 < differs.sum() <= 8 * (np.ptp(columns) + 1)
        assert differs[rows.min() + 2 : rows.max() - 1, columns.min() + 2 : columns.max() - 1].sum() == 0


def test_the_detail_below_is_the_same_square_of_every_image_enlarged(tmp_path: Path) -> None:
    images = comparison_columns(3, 100, 240)
    save_comparison(tmp_path / "strip.png", images)
    picture = read(tmp_path / "strip.png")
    assert picture.shape == (44 + 100 + 8 + 240 + 12, 2 * 12 + 3 * 240 + 2 * 8, 3)
    corners = set()
    for index, image in enumerate(images.values()):
        shown = picture[44 + 100 + 8 :, 12 + index * 248 :][:240, :240]
        detail = shown[2::4, 2::4]  # one of each 4 x 4
        inside = shown[4:-4, 4:-4]
        assert np.array_equal(inside, detail.repeat(4, axis=0).repeat(4, axis=1)[4:-4, 4:-4])
        pixels = file_pixels(image)
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (60, 60, 3))[:, :, 0]
        found = np.argwhere((windows == detail).all(axis=(2, 3, 4)))
        assert len(found) == 1
        corners.add(tuple(found[0]))
    assert len(corners) == 1


@pytest.mark.parametrize(("top", "left"), [(0, 0), (150, 30), (180, 180)])
def test_the_detail_is_where_the_input_is_wrong_and_the_truth_has_structure(
    tmp_path: Path, top: int, left: int
) -> None:
    generator = np.random.default_rng(0)
    truth = np.full((3, 240, 240), 0.5, dtype=np.float32)
    truth[:, :40, 200:] = generator.integers(2, size=(3, 40, 40))  # only structured
    truth[:, top : top + 60, left : left + 60] = generator.random((3, 60, 60))
    degraded = truth.copy()
    degraded[:, top : top + 60, left : left + 60] += 0.3  # wrong and structured
    degraded[:, 100:140, 100:140] += 0.5  # only wrong
    save_comparison(tmp_path / "strip.png", {"input": degraded, "truth": truth})
    detail = read(tmp_path / "strip.png")[44 + 240 + 8 :, 12 + 248 :][:240, :240][2::4, 2::4]
    assert np.array_equal(detail, file_pixels(truth)[top : top + 60, left : left + 60])


def test_a_wide_image_is_shown_in_means_of_blocks(tmp_path: Path) -> None:
    images = comparison_columns(3, 400, 600)
    save_comparison(tmp_path / "strip.png", images)
    truth = read(tmp_path / "strip.png")[44:, 12 + 2 * 308 :][:200, :300].astype(int)
    means = file_pixels(images["truth"]).reshape(200, 2, 300, 2, 3).mean(axis=(1, 3))
    assert np.mean(np.abs(truth - means).max(axis=-1) <= 0.5) > 0.98  # all but the frame


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_strip_names_its_columns_and_their_psnr_to_the_last(tmp_path: Path, as_tensor: bool) -> None:
    images = comparison_columns(3, 90, 120)
    given = {title: torch.from_numpy(image) for title, image in images.items()} if as_tensor else images
    figure = save_comparison(tmp_path / "strip.png", given)
    truth = file_pixels(images["truth"])
    decibels = [peak_signal_noise_ratio(truth, file_pixels(images[title])) for title in ("input", "restored")]
    texts = [text.get_text() for text in figure.texts]
    assert texts == ["input", f"{decibels[0]:.2f} dB", "restored", f"{decibels[1]:.2f} dB", "truth", ""]


@pytest.mark.parametrize(
    "columns",
    [
        {"truth": np.zeros((3, 9, 9))},
        {"input": np.zeros((3, 9, 9)), "truth": np.zeros((3, 9, 8))},
        {"input": np.zeros((2, 9, 9)), "truth": np.zeros((2, 9, 9))},
        {"input": np.zeros((9, 9)), "truth": np.zeros((9, 9))},
        {},
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, columns: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"at least two images of one shape"):
        save_comparison(tmp_path / "strip.png", columns)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_networks", [1, 3])
@pytest.mark.parametrize("num_layers", [4, 60])
def test_every_layer_of_every_network_has_its_bar(tmp_path: Path, num_networks: int, num_layers: int) -> None:
    generator = np.random.default_rng(0)
    names = ["output", *(f"block{i // 4}.conv{i % 4}" for i in range(num_layers))]
    errors = {f"run {i}": dict(zip(names, generator.random(num_layers + 1), strict=True)) for i in range(num_networks)}
    figure = save_equivariance_bars(tmp_path / "bars.png", errors)
    (axes,) = figure.axes
    assert len(axes.patches) == num_networks * (num_layers + 1)
    assert len({to_hex(bar.get_facecolor()) for bar in axes.patches}) == num_networks
    assert [label.get_text() for label in axes.get_yticklabels()] == [*names[1:], "output"]
    ticks = dict(zip([*names[1:], "output"], axes.get_yticks(), strict=True))
    for network, bars in zip(errors.values(), axes.containers, strict=True):
        for (layer, error), bar in zip(network.items(), bars, strict=True):
            assert bar.get_width() == pytest.approx(error)
            assert abs(bar.get_y() + bar.get_height() / 2 - ticks[layer]) < 0.4
    assert axes.yaxis.get_inverted()
    assert ticks["output"] - ticks[names[-1]] > 1.5  # apart, where neighbours are 1 apart
    assert no_labels_overlap(figure)
    assert read(tmp_path / "bars.png").shape == (int(figure.bbox.height), 900, 3)


def no_labels_overlap(figure: Figure) -> bool:
    figure.canvas.draw()
    boxes = sorted((label.get_window_extent() for label in figure.axes[0].get_yticklabels()), key=lambda b: b.y0)
    return all(lower.y1 <= upper.y0 for lower, upper in pairwise(boxes))


def test_a_layer_that_one_network_lacks_has_one_bar_less(tmp_path: Path) -> None:
    errors = {"one": {"a": 0.1, "b": 0.2, "output": 0.3}, "other": {"a": 0.4, "c": 0.5}}
    (axes,) = save_equivariance_bars(tmp_path / "bars.png", errors).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c", "output"]
    assert [bar.get_width() for bar in axes.patches] == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_more_networks_than_colours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="8 networks: give 1 to 7"):
        save_equivariance_bars(tmp_path / "bars.png", {str(i): {"output": 1.0} for i in range(8)})


def trial(weight: float, psnr: float, penalty: str = "regular", **flags: bool) -> dict[str, Any]:
    return {"weight": weight, "penalty": penalty, "score": psnr, "stopped_early": False, "is_control": False} | flags


def markers(figure: Figure) -> list[tuple[float, float, str, bool]]:
    """(weight, dB, colour, hollow) of every marker."""
    return [
        (x, y, to_hex(line.get_color()), line.get_markerfacecolor() == "none")
        for line in figure.axes[0].lines
        if line.get_marker() != "None"
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_trials_stand_at_their_weight_and_psnr_hollow_if_stopped_early(tmp_path: Path) -> None:
    trials = [
        trial(0.01, 30.1),
        trial(0.1, 30.4, "rotation"),
        trial(1.0, 29.9, stopped_early=True),
        trial(0.0, 30.0, is_control=True),
    ]
    figure = save_trials(tmp_path / "trials.png", trials)
    (axes,) = figure.axes
    blue, orange = "#0072b2", "#e69f00"
    assert sorted(markers(figure)) == [(0.01, 30.1, blue, False), (0.1, 30.4, orange, False), (1.0, 29.9, blue, True)]
    (line,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert list(line.get_ydata()) == [30.0, 30.0]
    assert legend(figure) == ["regular", "rotation", "stopped early", "weight 0: 30.00"]
    assert axes.get_xscale() == "log"
    assert "one seed: not evidence" in axes.get_title()
    assert read(tmp_path / "trials.png").shape == (540, 900, 3)


def test_a_collapsed_trial_does_not_flatten_the_others(tmp_path: Path) -> None:
    trials = [trial(10.0**-i, 30 + i / 10) for i in range(6)] + [trial(10.0, 8.2), trial(20.0, math.nan)]
    figure = save_trials(tmp_path / "trials.png", trials)
    (axes,) = figure.axes
    assert axes.get_ylim()[0] > 28
    assert [text.get_text() for text in axes.texts] == ["↓ 8.2"]
    assert (10.0, 8.2) not in [marker[:2] for marker in markers(figure)]
    assert len(markers(figure)) == 7
    assert "1 without a finite score" in axes.get_xlabel()


@pytest.mark.parametrize("trials", [[], [trial(0.0, 30.0, is_control=True)], [trial(0.1, 30.0)]])
def test_a_sweep_of_one_trial_or_none_has_a_figure(tmp_path: Path, trials: list[dict[str, Any]]) -> None:
    figure = save_trials(tmp_path / "trials.png", trials)
    assert read(tmp_path / "trials.png").shape == (540, 900, 3)
    assert len(figure.axes[0].lines) >= len(trials)


def test_the_history_draws_loss_and_validation_against_the_step(tmp_path: Path) -> None:
    history = {50: {"task_loss": 0.1, "val_score": 28.0}, 25: {"task_loss": 0.2}, 75: {"task_loss": 0.05}}
    figure = save_history(tmp_path / "history.png", history)
    loss, validation = (axes.lines[0] for axes in figure.axes)
    assert loss.get_xydata().tolist() == [[25, 0.2], [50, 0.1], [75, 0.05]]
    assert validation.get_xydata().tolist() == [[50, 28.0]]
    assert figure.axes[0].get_yscale() == "log"
    assert read(tmp_path / "history.png").shape == (600, 900, 3)


def test_the_same_figure_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "other.png"):
        save_trials(tmp_path / name, [trial(0.1, 30.0), trial(0.0, 29.0, is_control=True)])
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()


def test_no_figure_depends_on_the_style_of_the_user_or_of_another_library(tmp_path: Path) -> None:
    drawings: dict[str, Callable[[Path], Figure]] = {
        "trials": lambda path: save_trials(path, [trial(0.1, 30.0), trial(0.0, 29.0, is_control=True)]),
        "history": lambda path: save_history(path, {25: {"task_loss": 0.2}, 50: {"task_loss": 0.1, "val_score": 28.0}}),
        "bars": lambda path: save_equivariance_bars(path, {"one": {"conv": 0.1}}),
        "strip": lambda path: save_comparison(path, comparison_columns(1, 32, 32)),
    }
    for name, draw in drawings.items():
        with style.context("default"):
            draw(tmp_path / "one.png")
        with style.context(["ggplot", {"font.size": 23, "savefig.dpi": 30, "figure.facecolor": "red"}]):
            draw(tmp_path / "other.png")
            assert matplotlib.rcParams["font.size"] == 23
        assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes(), name
