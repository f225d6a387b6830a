"""What a folder holds is found by the names of its files, and each thing has a name and a scene of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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


def test_two_things_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jpg and a\.png would both be called a"):
        find_items(["a.jpg", "a.png"], tmp_path, "images", None, "^$")
