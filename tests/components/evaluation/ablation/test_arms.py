"""Arms are compared image by image with equal seeds, and what is printed is what was computed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import style
from PIL import Image
from scipy import stats

from components.evaluation.ablation.arms import Arm, Candidate, Column, best, difference, mean_of
from components.evaluation.ablation.figure import save_arms
from components.evaluation.ablation.tables import Conditions, introduction, records, text_tables, weight_records

pytestmark = pytest.mark.unit

TEST = Column("test", "test", "psnr")
TURNED = Column("turned", "rotated", "psnr")
NOISE = Column("sigma_35", "out_of_distribution", "psnr", "sigma_35")
ERROR = Column("output error", "equivariance", "output_error", None, 4, 4)


def row(image: str, psnr: float, group: str = "test", condition: str = "0") -> dict[str, Any]:
    """The scene of image "a1" is "a"."""
    return {"group": group, "condition": condition, "image": image, "scene": image[0], "psnr": psnr}


def arm(name: str, by_seed: Mapping[int, Mapping[str, float]], **options: Any) -> Arm:
    rows = {seed: [row(image, value) for image, value in values.items()] for seed, values in by_seed.items()}
    return Arm(name, options.pop("weight", 0.0), rows=rows, **options)


PLAIN = arm("plain", {1: {"a1": 30, "a2": 32, "b1": 20}, 2: {"a1": 31, "a2": 33, "b1": 21}})
REGULAR = arm("regular", {1: {"b1": 21, "a1": 33, "a2": 32}, 2: {"b1": 20, "a1": 33, "a2": 36}}, weight=0.1)


def test_a_mean_is_that_of_the_images_and_its_deviation_that_of_the_seeds() -> None:
    mean = mean_of(PLAIN, TEST)
    assert mean is not None
    assert mean.mean == pytest.approx((30 + 32 + 20 + 31 + 33 + 21) / 6)
    # The means of the seeds, 27 1/3 and 28 1/3, are 1 apart: a standard deviation of 1 / sqrt(2).
    assert mean.seed_deviation == pytest.approx(0.5**0.5)
    assert mean_of(Arm("none", 0.0), TEST) is None


def test_a_difference_pairs_images_of_one_seed_whatever_their_order() -> None:
    found = difference(REGULAR, PLAIN, TEST)
    assert found is not None
    # Seed 1: a1 +3, a2 0, b1 +1; seed 2: a1 +2, a2 +3, b1 -1.
    assert found.by_seed == pytest.approx({1: 4 / 3, 2: 4 / 3})
    assert found.mean == pytest.approx(8 / 6)
    assert found.seed_deviation == pytest.approx(0)
    # Two scenes: a (3 + 0 + 2 + 3 over 4) or b (1 - 1 over 2) alone are the extremes of all resamples.
    assert (found.low, found.high) == pytest.approx((0, 2))


def test_the_interval_draws_scenes_with_all_their_images_of_all_seeds() -> None:
    """Oracle: SciPy's bootstrap of the scenes' sums and numbers of images."""
    random = np.random.default_rng(5)
    images = [f"{scene}{number}" for scene in "abcdefghijkl" for number in range(1 + ord(scene) % 3)]
    runs = {}
    for name, gain in (("regular", 0.3), ("pairs", 0.0)):
        level = {scene: random.normal(0, 1) for scene in "abcdefghijkl"} if gain else dict.fromkeys("abcdefghijkl", 0.0)
        runs[name] = arm(
            name,
            {seed: {image: gain + level[image[0]] + random.normal(0, 0.1) for image in images} for seed in (1, 2, 3)},
        )
    found = difference(runs["regular"], runs["pairs"], TEST)
    assert found is not None
    sums, sizes = np.zeros(12), np.zeros(12)
    for seed in (1, 2, 3):
        for own, other in zip(runs["regular"].rows[seed], runs["pairs"].rows[seed], strict=True):
            sums["abcdefghijkl".index(own["scene"])] += own["psnr"] - other["psnr"]
            sizes["abcdefghijkl".index(own["scene"])] += 1
    oracle = stats.bootstrap(
        (sums, sizes),
        lambda s, n, axis=-1: s.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.mean == pytest.approx(sums.sum() / sizes.sum())
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=0.03)
    # Images taken one by one would claim to be surer than that: the scenes differ far more than their images.
    values = np.repeat(sums / sizes, sizes.astype(int))
    assert found.high is not None
    assert found.low is not None
    assert found.high - found.low > 1.3 * 2 * 1.96 * values.std() / len(values) ** 0.5


def test_only_seeds_that_both_have_are_compared() -> None:
    other = arm("pairs", {2: {"a1": 30, "a2": 33, "b1": 21}, 3: {"a1": 0, "a2": 0, "b1": 0}})
    found = difference(PLAIN, other, TEST)
    assert found is not None
    assert found.by_seed == pytest.approx({2: 1 / 3})
    assert found.seed_deviation is None
    assert difference(PLAIN, arm("pairs", {7: {"a1": 1}}), TEST) is None


def test_arms_measured_on_different_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match="plain and pairs were measured on different images"):
        difference(PLAIN, arm("pairs", {1: {"a1": 30, "a2": 33, "c1": 21}}), TEST)
    with pytest.raises(ValueError, match="nothing was measured in group 'rotated'"):
        mean_of(PLAIN, TURNED)


def test_a_column_takes_its_group_and_condition_alone() -> None:
    rows = [
        row("a1", 1.0),
        row("a1", 2.0, "rotated", "90"),
        row("a1", 4.0, "rotated", "180"),
        row("a1", 8.0, "out_of_distribution", "sigma_15"),
        row("a1", 16.0, "out_of_distribution", "sigma_35"),
    ]
    run = Arm("plain", 0.0, rows={1: rows})
    means = [mean_of(run, column) for column in (TEST, TURNED, NOISE)]
    assert [mean and mean.mean for mean in means] == [1.0, 3.0, 16.0]


def test_the_best_candidate_has_the_highest_score_of_those_that_have_one() -> None:
    tried = [
        Candidate("regular", 0.01, 29.0),
        Candidate("regular", 0.1, 30.0),
        Candidate("regular", 1.0, None, "the loss is no longer finite"),
        Candidate("regular", 10.0, 30.0),
    ]
    assert best(tried) == tried[1]
    assert best([tried[2]]) is None
    assert best([Candidate("regular", 0.1, -3.0), Candidate("regular", 0.2, -2.0)]) == Candidate("regular", 0.2, -2.0)
    assert [Arm("regular", weight, tried).is_at_edge for weight in (0.01, 0.1, 1.0, 10.0, None)] == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert not Arm("pairs", 0.0).is_at_edge


CONDITIONS = Conditions("denoise", 300, 8, 48, True, 0, [1, 2], 2, "PSNR, dB")
FAILED = Arm(
    "paper", None, [Candidate("paper", 1e-3, None, "no longer finite"), Candidate("paper", 1e-2, None, "lost")]
)
TRIED = Arm(
    "regular",
    0.1,
    [Candidate("regular", 0.1, 28.1234), Candidate("regular", 0.2, 27.0)],
    {1: REGULAR.rows[1]},
    {2: "no longer finite"},
)


def test_the_text_says_what_was_equal_what_failed_and_how_few_scenes_there_are() -> None:
    text = " ".join(introduction([PLAIN, TRIED, FAILED], CONDITIONS).split())
    assert "300 steps of 8 images of 48 x 48 pixels; the task loss counts the transformed images" in text
    assert "chosen on validation images among 2 candidates (seed 0, one run each); then 2 fresh seeds" in text
    assert "Only 2 test scenes" in text
    assert "1 runs did not come to their end, and are in no mean: regular, seed 2: no longer finite" in text
    many = Conditions("classify", 300, 8, 0, False, 0, [4, 5, 6], 20, "accuracy")
    text = " ".join(introduction([PLAIN], many).split())
    assert "8 images; the task loss does not count the transformed images" in text
    assert "3 fresh seeds of every arm (4 to 6)" in text
    assert "chosen on validation" not in text
    assert "Only" not in text
    assert "All runs came to their end." in text


def test_the_tables_show_weights_means_and_differences_as_worked_out_by_hand() -> None:
    weights, means, to_plain = text_tables([PLAIN, TRIED, FAILED], [TEST])
    assert [list(line) for line in weights.rows] == [
        ["regular", "0.1: 28.123", "0.2: 27.000", "0.1 (at the edge)"],
        ["paper", "0.001: failed", "0.01: failed", "none came through"],
    ]
    assert [list(line) for line in means.rows] == [
        ["plain", "0", "2", "27.83 (0.71)"],
        ["regular", "0.1 (at the edge)", "1 (1 failed)", "28.67"],
        ["paper", "none came through", "0", "-"],
    ]
    assert to_plain.title == "Difference to plain:"
    # a1 +3, a2 0, b1 +1: scene a has a mean of 1.5, scene b of 1.
    assert [list(line) for line in to_plain.rows] == [["regular", "+1.333 [+1.000, +1.500]"], ["paper", "-"]]


def test_both_references_have_a_table_and_columns_stand_under_their_heads() -> None:
    pairs = arm("pairs", {1: {"a1": 30, "a2": 32, "b1": 20}})
    *_, to_plain, to_pairs = text_tables([PLAIN, pairs, TRIED], [TEST])
    assert [line[0] for line in to_plain.rows] == ["pairs", "regular"]
    assert [line[0] for line in to_pairs.rows] == ["plain", "regular"]
    title, head, rule, *lines = str(to_pairs).splitlines()
    assert title == "Difference to pairs:"
    place = head.index("test")
    assert all(line[place - 2 : place] == "  " and line[place] in "+-" for line in lines)
    assert set(rule) == {"-", " "}


def test_records_hold_every_figure_at_full_precision_and_survive_a_csv_file() -> None:
    found = records([PLAIN, TRIED, FAILED], [TEST])
    file = io.StringIO()
    writer = csv.DictWriter(file, list(found[0]))
    writer.writeheader()
    writer.writerows(found)
    plain, regular, paper = csv.DictReader(io.StringIO(file.getvalue()))
    assert (plain["minus_plain"], plain["minus_plain_seeds"]) == ("", "0")
    assert float(regular["minus_plain"]) == pytest.approx(4 / 3, abs=1e-12)
    assert (float(regular["minus_plain_low"]), float(regular["minus_plain_high"])) == (1.0, 1.5)
    assert (regular["runs"], regular["failed"], regular["trials"], regular["weight_at_edge"]) == ("1", "1", "2", "True")
    assert regular["minus_pairs"] == ""
    assert (paper["mean"], paper["weight"], paper["runs"]) == ("", "", "0")
    chosen = [
        (record["arm"], record["weight"], record["chosen"], record["failure"])
        for record in weight_records([TRIED, FAILED])
    ]
    assert chosen == [
        ("regular", 0.1, True, None),
        ("regular", 0.2, False, None),
        ("paper", 1e-3, False, "no longer finite"),
        ("paper", 1e-2, False, "lost"),
    ]


def test_the_figure_has_a_panel_a_column_a_marker_an_arm_and_a_dot_a_seed(tmp_path: Path) -> None:
    pairs = arm("pairs", {1: {"a1": 30, "a2": 32, "b1": 20}, 2: {"a1": 30, "a2": 32, "b1": 20}})
    figure = save_arms(tmp_path / "figure.png", [PLAIN, pairs, REGULAR, FAILED], [TEST])
    with style.context("ggplot"):  # of the user, or of a library
        save_arms(tmp_path / "other.png", [PLAIN, pairs, REGULAR, FAILED], [TEST])
    assert (tmp_path / "other.png").read_bytes() == (tmp_path / "figure.png").read_bytes()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plain", "pairs", "regular", "paper"]
    for name, reference in (("plain", PLAIN), ("pairs", pairs)):
        (mean,) = [line for line in axes.lines if str(line.get_label()).startswith(f"minus {name}")]
        first = PLAIN if reference is pairs else pairs
        assert list(mean.get_xdata()) == pytest.approx([difference(first, reference, TEST).mean])  # type: ignore[union-attr]
    seeds = [sorted(map(float, line.get_xdata())) for line in axes.lines if line.get_marker() == "."]
    assert sorted(seeds) == sorted(
        sorted(difference(one, other, TEST).by_seed.values())  # type: ignore[union-attr]
        for one, other in ((pairs, PLAIN), (REGULAR, PLAIN), (PLAIN, pairs), (REGULAR, pairs))
    )
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.size == tuple(round(inches * 120) for inches in figure.get_size_inches())


def test_without_a_reference_the_figure_shows_means(tmp_path: Path) -> None:
    figure = save_arms(tmp_path / "figure.png", [REGULAR, FAILED], [TEST] * 6)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == 6
    (mean,) = [line for line in shown[0].lines if line.get_marker() == "o"]
    assert list(mean.get_xdata()) == pytest.approx([(33 + 32 + 21 + 33 + 36 + 20) / 6])
