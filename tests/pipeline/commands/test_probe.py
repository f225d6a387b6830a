"""``eqreg probe``: a folder in, a table and a suggestion out; says when it cannot say; errors in one line."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.evaluation.symmetry import GROUPS, MIN_SCENES
from pipeline.commands.probe import probe
from pipeline.errors import UserError

pytestmark = pytest.mark.process

QUARTER, HALF, MIRROR = GROUPS
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with fewer patches, which is faster."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.commands.probe.MAX_PATCHES", 30)


def _stripes(generator: np.random.Generator) -> np.ndarray:
    """(40, 56), vertical."""
    wave = np.sin(2 * math.pi * np.arange(56) / generator.uniform(5, 12) + generator.uniform(0, 2 * math.pi))
    return 128 + 50 * wave + 10 * generator.normal(size=(40, 1)) + 5 * generator.normal(size=(40, 56))


def _noise(generator: np.random.Generator) -> np.ndarray:
    return 128 + 30 * generator.normal(size=(40, 56))


def _save(path: str, levels: np.ndarray) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(path)


def _folder(image: Callable[[np.random.Generator], np.ndarray], number: int, seed: int = 0) -> str:
    generator = np.random.default_rng(seed)
    for index in range(number):
        _save(f"images/{'sub/' * (index % 2)}{index}.png", image(generator))
    return "images"


def _refusal(data: str, scene_pattern: str = "") -> str:
    with pytest.raises(UserError) as caught:
        probe(data, scene_pattern, 0)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_stripes_differ_under_quarter_turns_and_the_search_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    tests, _ = probe(_folder(_stripes, 16), "", 0)
    assert tests[QUARTER].p <= 0.01 < min(tests[HALF].p, tests[MIRROR].p)
    shown = capsys.readouterr().out
    assert "images: 16 scenes, 30 grey patches of 24x24 pixels of each" in shown
    verdicts = {name: line for name in GROUPS for line in shown.splitlines() if line.strip().startswith(name)}
    assert verdicts[QUARTER].split() == [
        *QUARTER.split(),
        f"{100 * tests[QUARTER].distance:.2f}",
        f"{100 * tests[QUARTER].null_median:.2f}",
        f"{100 * tests[QUARTER].null_high:.2f}",
        f"{tests[QUARTER].p:.3f}",
        "differs",
    ]
    assert verdicts[HALF].strip().endswith("no difference seen")
    assert "Not symmetric under quarter turns. Include in the search: train.rotations false" in shown
    assert "Mirrored images differ" not in shown
    assert "It cannot tell whether rotations or the penalty gain a single dB" in shown


def test_noise_shows_no_difference_which_is_not_called_symmetry(capsys: pytest.CaptureFixture[str]) -> None:
    tests, _ = probe(_folder(_noise, 16), "", 0)
    assert min(test.p for test in tests.values()) > 0.01
    shown = capsys.readouterr().out
    assert shown.count("no difference seen") == 3
    assert "search lambda (equivariance.weight) as usual. This does not show\nsymmetry" in shown
    assert "Not symmetric" not in shown


def test_light_from_above_differs_under_half_turns_too(capsys: pytest.CaptureFixture[str]) -> None:
    def lit(generator: np.random.Generator) -> np.ndarray:
        return _noise(generator) + np.linspace(90, -90, 40)[:, None]

    tests, _ = probe(_folder(lit, 16), "", 0)
    assert max(tests[QUARTER].p, tests[HALF].p) <= 0.01 < tests[MIRROR].p
    assert "Not symmetric under quarter and half turns" in capsys.readouterr().out


def test_slanted_stripes_differ_when_mirrored(capsys: pytest.CaptureFixture[str]) -> None:
    def slanted(generator: np.random.Generator) -> np.ndarray:
        rows, columns = np.mgrid[:40, :56]
        return 128 + 50 * np.sin((columns + 0.6 * rows) / generator.uniform(1, 2) + generator.uniform(0, 6))

    assert probe(_folder(slanted, 16), "", 0)[0][MIRROR].p <= 0.01
    assert "Mirrored images differ" in capsys.readouterr().out


def test_with_few_scenes_it_says_that_it_cannot_say(capsys: pytest.CaptureFixture[str]) -> None:
    probe(_folder(_stripes, MIN_SCENES - 1), "", 0)
    shown = capsys.readouterr().out
    assert shown.count("too few scenes to say") == 3
    assert "Fewer than 8 scenes: chance alone reaches any figure here" in shown
    assert "Not symmetric" not in shown


def test_files_of_one_scene_count_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Copies of 4 scenes are evidence of 4 scenes, however many files there are."""
    generator = np.random.default_rng(0)
    for scene in range(4):
        levels = _stripes(generator)
        for copy in range(5):
            _save(f"images/s{scene}_{copy}.png", levels)
    probe("images", "", 0)
    assert "images: 20 scenes" in capsys.readouterr().out
    probe("images", r"^(s\d)_", 0)
    shown = capsys.readouterr().out
    assert "images: 4 scenes" in shown
    assert "too few scenes to say" in shown


def test_the_seed_decides_the_figures() -> None:
    folder = _folder(_noise, 8)
    first, again, other = (probe(folder, "", seed)[0] for seed in (0, 0, 1))
    assert first == again
    assert first[QUARTER].distance != other[QUARTER].distance


def test_of_very_many_scenes_some_are_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.commands.probe.MAX_SCENES", 9)
    probe(_folder(_noise, 12), "", 0)
    assert "images: 9 of 12 scenes" in capsys.readouterr().out


def test_the_built_in_photographs_are_probed(capsys: pytest.CaptureFixture[str]) -> None:
    tests, _ = probe("builtin", "^(motorcycle)_(?:left|right)$", 0)
    assert list(tests) == list(GROUPS)
    assert "builtin: 11 scenes" in capsys.readouterr().out


def test_colour_is_read_as_its_luma_and_hidden_files_are_left_alone() -> None:
    generator = np.random.default_rng(0)
    for index in range(8):
        levels = _stripes(generator).clip(0, 255).round()
        _save(f"grey/{index}.png", levels)
        _save(f"colour/{index}.png", np.stack([levels] * 3, axis=-1))
    Path("colour/.thumbnails").mkdir()
    Path("colour/.thumbnails/a.png").write_text("not an image")
    Path("colour/notes.txt").write_text("notes")
    assert probe("grey", "", 0) == probe("colour", "", 0)


def test_missing_folders_and_folders_without_images_are_named() -> None:
    Path("empty/.hidden").mkdir(parents=True)
    _save("empty/.hidden/a.png", np.zeros((40, 40)))
    _save("file.png", np.zeros((40, 40)))
    assert _refusal("nowhere") == "nowhere: there is no such folder; give a folder of images, or 'builtin'"
    assert _refusal("file.png") == "file.png: there is no such folder; give a folder of images, or 'builtin'"
    assert _refusal("empty").startswith("empty: no image in this folder")


def test_images_that_cannot_be_used_are_named_by_reason_and_change_no_figure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also in a scene of several files."""
    folder = _folder(_stripes, 16)
    for number in range(3):
        _save(f"images/s7_{number}.png", _stripes(np.random.default_rng(number)))
    without = probe(folder, r"^(s\d)_", 0)
    assert without[1] == 0
    assert "left out" not in capsys.readouterr().out
    _save("images/sub/tiny.png", np.zeros((23, 60)))
    data = Path("images/0.png").read_bytes()
    for name in ("a_cut", "s7_cut", "z_cut"):
        Path(f"images/{name}.png").write_bytes(data[: len(data) // 2])
    found, num_left_out = probe(folder, r"^(s\d)_", 0)
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if line.startswith("  images/")]
    assert num_left_out == 4
    assert found == without[0]
    assert "images: 4 images left out: 3 cannot be read, 1 smaller than 24x24 pixels" in shown
    assert [line.split(":")[0].strip() for line in lines] == [
        "images/a_cut.png", "images/s7_cut.png", "images/sub/tiny.png", "images/z_cut.png",
    ]  # fmt: skip
    assert "  images/sub/tiny.png: 60x23 pixels, smaller than a patch of 24x24\n" in shown
    assert "  images/a_cut.png: not a readable image " in shown


def test_when_too_few_images_can_be_used_the_others_are_named_before_the_refusal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in "ab":
        Path("images").mkdir(exist_ok=True)
        Path(f"images/{name}.png").write_text("no image")
    assert _refusal("images") == "images: none of 2 images can be used"
    assert "images: 2 images left out: 2 cannot be read" in capsys.readouterr().out
    _save("images/c.png", np.random.default_rng(0).uniform(0, 255, (40, 40)))
    assert _refusal("images").startswith("images: one scene only; scenes are compared with each other")


def test_a_single_scene_and_plain_images_and_bad_patterns_are_refused() -> None:
    folder = _folder(_noise, 3)
    assert _refusal(folder, "[").startswith("--scene-pattern [: not a regular expression")
    _save("one/a.png", np.zeros((40, 40)))
    assert _refusal("one").startswith("one: one scene only; scenes are compared with each other")
    _save("one/b.png", np.full((40, 40), 9))
    with pytest.raises(ValueError, match="every patch is of one grey"):
        probe("one", "", 0)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 2, "error: nowhere: there is no such folder; give a folder of images, or 'builtin'\n"),
        (["plain"], 2, "error: every patch is of one grey: there is nothing to turn\n"),
        (["images", "--seed", "1"], 0, ""),
        (["spoilt"], 1, ""),
    ],
)
def test_the_command_ends_with_a_code_and_without_a_traceback(arguments: list[str], code: int, message: str) -> None:
    _folder(_stripes, 8)
    for name in "ab":
        _save(f"plain/{name}.png", np.zeros((40, 40)))
    shutil.copytree("images", "spoilt")
    Path("spoilt/notes.png").write_text("no image")
    environment = {name: value for name, value in os.environ.items() if name != "EQREG_DEBUG"}
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "probe", *arguments]
    finished = subprocess.run(
        command, capture_output=True, text=True, env=environment | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    )
    assert (finished.returncode, finished.stderr) == (code, message)
    assert ("verdict" in finished.stdout) == (code < 2)
    assert ("  spoilt/notes.png: not a readable image" in finished.stdout) == (code == 1)
    assert "…" not in finished.stdout  # the table fits 80 columns
