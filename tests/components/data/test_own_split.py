"""The split that folder names state is read from them, and from nothing that only looks like one."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.data.items import find_items
from components.data.own_split import folder_parts, part_of

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["train/a.png", "test/b.png"], {"train": "train", "test": "test"}),
        (["Training/a.png", "TESTING/b.png"], {"Training": "train", "TESTING": "test"}),
        (["set/train/x/a.png", "set/valid/y/b.png"], {"set/train": "train", "set/valid": "val"}),
        (["input/val/a.png", "input/eval/a.png"], {"input/val": "val", "input/eval": "test"}),
        (["train/a.png", "validation/b.png", "c.png"], {"train": "train", "validation": "val"}),
        (
            ["DIV2K_train_HR/1.png", "DIV2K_valid_HR/2.png", "Flickr2K/3.png"],
            {"DIV2K_train_HR": "train", "DIV2K_valid_HR": "val"},
        ),
        (["train_640geo/1/gt.h5", "test_640geo/1/gt.h5"], {"train_640geo": "train", "test_640geo": "test"}),
        (["train/a.png", "test_a/b.png", "test_b/c.png"], {"train": "train", "test_a": "test", "test_b": "test"}),
        (["train2017/1.jpg", "val2017/2.jpg"], {"train2017": "train", "val2017": "val"}),
        (["train/a.png", "test-1/b.png", "test2/c.png"], {"train": "train", "test-1": "test", "test2": "test"}),
        (["test_a/a.png", "test_b/b.png"], {}),
        (["train/a.png", "testx/b.png", "test_ab/c.png"], {}),
        (["train/a.png", "b.png"], {}),  # one word alone says nothing
        (["train/a.png", "other/test/b.png"], {}),  # not side by side
        (["train_station/a.png", "crash_test/b.png"], {}),
        (["trains/a.png", "tests/b.png", "contest/c.png", "latest/d.png"], {}),
        (["train.png", "test.png"], {}),  # files, not folders
    ],
)
def test_folders_that_stand_side_by_side_with_such_names_state_a_split(names: list[str], parts: dict[str, str]) -> None:
    assert folder_parts(names) == parts


@pytest.mark.parametrize("layout", ["{part}/{kind}/{n}.png", "set/{part}/{kind}/{n}.png", "{kind}/{part}/{n}.png"])
def test_pairs_have_the_part_of_their_folders_wherever_the_level_is(layout: str) -> None:
    names = [
        layout.format(part=part, kind=kind, n=n)
        for part, numbers in (("train", range(6)), ("val", range(2)), ("test", range(3)))
        for kind in ("input", "target")
        for n in numbers
    ]
    found = find_items(names, Path(), "images", "auto", "^$")
    assert sorted(item.part for item in found.items) == ["test"] * 3 + ["train"] * 6 + ["val"] * 2
    assert all(f"{item.part}/" in file for item in found.items for file in item.files)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # The clean images of HIDE are in one folder.
        (
            ["train/1fromA.png", "test/test-close-ups/2fromB.png", "GT/1fromA.png", "GT/2fromB.png"],
            {"1__A": "train", "2__B": "test"},
        ),
        (
            [f"{p}_{k}/{s}/0.png" for p, s in (("train", "000"), ("val", "001")) for k in ("blur", "sharp")],
            {"train__000__0": "train", "val__001__0": "val"},
        ),
        (
            [
                f"{kind}/{number}.png"
                for part, n in (("DIV2K_train", 1), ("DIV2K_valid", 2))
                for kind, number in ((f"{part}_HR", f"000{n}"), (f"{part}_LR_bicubic/X2", f"000{n}x2"))
            ],
            {"DIV2K_train___bicubic__X2__0001": "train", "DIV2K_valid___bicubic__X2__0002": "val"},
        ),
        (
            [
                f"{p}/{k}/{n}.jpg"
                for p in ("training", "testing")
                for k, n in (("rainy_image", "1_1"), ("ground_truth", 1))
            ],
            {"training__1__1": "train", "testing__1__1": "test"},
        ),
    ],
)
def test_known_layouts_keep_the_split_that_they_are_published_with(names: list[str], expected: dict[str, str]) -> None:
    found = find_items(names, Path(), "images", "auto", "^$")
    assert {item.part for item in found.items} == set(expected.values())
    assert sorted(item.part for item in found.items) == sorted(expected.values())


def test_files_whose_folders_name_two_parts_are_refused_by_name() -> None:
    names = ["train/train/a.png", "train/test/b.png", "test/train/c.png", "test/test/d.png"]
    parts = folder_parts(names)
    assert part_of(["train/train/a.png"], parts) == "train"
    with pytest.raises(ValueError, match=r"train/test/b\.png: its folders name several parts of a split"):
        part_of(["train/test/b.png"], parts)
    with pytest.raises(ValueError, match=r"test/train/c\.png: .* test \(test\) and test/train \(train\): rename one"):
        find_items(names[2:] + names[:1], Path(), "images", None, "^$")
