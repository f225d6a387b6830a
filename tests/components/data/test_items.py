"""What a folder holds is found by the names of its files, and each thing has a name and a scene of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.data.items import Loaded, Problem, find_items, load, scene_of

pytestmark = pytest.mark.unit


def test_a_scene_names_files_and_so_holds_no_slash() -> None:
    assert scene_of("a__b-0001", "^$", "study/1") == "study_1"
    assert scene_of("img_042_b", r"^(img_\d+)") == "img_042"


def test_slices_of_a_stack_are_items_of_their_patients_and_read_in_any_order(tmp_path: Path) -> None:
    hu = np.arange(3 * 4 * 4, dtype=np.int16).reshape(3, 4, 4) - 20
    np.savez(tmp_path / "stack.npz", hu=hu, patient=np.array(["p/1", "p/2", "p/1"]))
    found = find_items(["stack.npz", "notes.txt"], tmp_path, "ct", None, "^$")
    assert [(item.name, item.scene) for item in found.items] == [
        ("stack-0000", "p_1"),
        ("stack-0001", "p_2"),
        ("stack-0002", "p_1"),
    ]
    (loaded,) = load(found.items[2:], tmp_path, "ct", "rgb")
    assert isinstance(loaded, Loaded)
    assert np.array_equal(loaded.clean[0], hu[2])


def test_a_file_that_cannot_be_read_is_a_problem_of_its_items_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    found = find_items(["a.png"], tmp_path, "images", None, "^$")
    ((item,),) = [found.items]
    (problem,) = load([item], tmp_path, "images", "rgb")
    assert isinstance(problem, Problem)
    assert problem.name == "a"
    assert "not a readable image" in problem.reason


def test_of_two_things_of_one_name_the_one_without_loss_stays_and_the_other_is_a_problem(tmp_path: Path) -> None:
    found = find_items(["a.jpg", "a.png", "s/a.png", "s__a.png"], tmp_path, "images", None, "^$")
    assert [item.files for item in found.items] == [("a.png",), ("s/a.png",)]
    assert found.unused == [
        Problem("s__a.png", "it would be called s__a, as s/a.png is: keep one of them, or rename one"),
        Problem("a.jpg", "it would be called a, as a.png is: keep one of them, or rename one"),
    ]


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"  # the same to the eye


def test_names_that_differ_in_unicode_normalisation_alone_are_told_apart(tmp_path: Path) -> None:
    found = find_items([f"{COMPOSED}.png", f"{DECOMPOSED}.png"], tmp_path, "images", None, "^$")
    assert len(found.items) == 1
    (problem,) = found.unused
    assert "looks like" in problem.reason
    assert "other Unicode characters (composed in one name, decomposed in the other)" in problem.reason


@pytest.mark.parametrize("naming", ["auto", "input/target"])
def test_a_partner_that_is_spelled_otherwise_is_named(tmp_path: Path, naming: str) -> None:
    pair = [f"input/{COMPOSED}.png", f"target/{DECOMPOSED}.png"]
    others = [f"{side}/{n}.png" for side in ("input", "target") for n in range(20)]
    found = find_items([*others, *pair, "input/alone.png"], tmp_path, "images", naming, "^$")
    assert len(found.items) == 20
    reasons = {problem.name: problem.reason for problem in found.unused}
    assert reasons["input/alone.png"] == "it has no partner in a pair"
    for name, partner in (pair, pair[::-1]):
        assert reasons[name].startswith(f"{partner}, its partner in a pair, is spelled with other Unicode characters")
        assert reasons[name].endswith("rename one of them")
    with pytest.raises(ValueError, match=r"are no pair: the second is spelled with other Unicode characters.*rename"):
        find_items(pair, tmp_path, "images", naming, "^$")


def test_a_grey_image_with_a_clean_one_in_colour_is_a_problem(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    files = {"grey": colour[..., 0], "colour": colour, "black": np.zeros_like(colour)}
    reasons = {}
    for degraded in files:
        for clean in files:
            names = [f"{side}/{degraded}-{clean}.png" for side in ("input", "target")]
            for name, pixels in zip(names, (files[degraded], files[clean]), strict=True):
                (tmp_path / name).parent.mkdir(exist_ok=True)
                Image.fromarray(pixels).save(tmp_path / name)
            (item,) = find_items(names, tmp_path, "images", "input/target", "^$").items
            for wanted in ("rgb", "grey"):
                (loaded,) = load([item], tmp_path, "images", wanted)  # type: ignore[arg-type]
                if isinstance(loaded, Problem):
                    reasons[degraded, clean, wanted] = loaded.reason
    assert list(reasons) == [("grey", "colour", "rgb")]
    assert "the degraded image is grey, the clean one in colour: use preprocess.colour: grey" in min(reasons.values())


def test_what_is_left_out_is_counted_by_what_it_is(tmp_path: Path) -> None:
    clip = "GOPR0372_07_00"
    names = [f"{clip}/{kind}/{n:06}.png" for kind in ("blur", "blur_gamma", "sharp") for n in range(5)]
    found = find_items([*names, "a.csv", "b.csv", "README"], tmp_path, "images", "gopro", "^$")
    assert len(found.items) == 5
    assert found.left_out == {"images beside the pairs": 5, ".csv": 2, "without suffix": 1}
    assert find_items(["a.png", "b.npz"], tmp_path, "images", None, "^$").left_out == {".npz": 1}
