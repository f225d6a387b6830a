"""Which part a scene is in: lists first, then the data's own folders, then the hash; copies go together."""

from __future__ import annotations

import csv
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.data.items import Item
from components.data.packs import Pack
from pipeline.config.schema import Params
from pipeline.errors import UserError
from pipeline.paths import PACKED
from pipeline.sources.kinds.builtin import BuiltinPhotographs
from pipeline.stages.fetch import fetch
from pipeline.stages.preprocess import preprocess
from pipeline.stages.preprocessing.duplicates import MOST, Seen, find_duplicates, glances, look
from pipeline.stages.preprocessing.splitting import join_scenes, own_split_text, split_items
from tests.pipeline.conftest import Project

pytestmark = pytest.mark.unit

SETTINGS: dict[str, Any] = {
    "fetch.source": "source",
    "preprocess.crop": 32,
    "preprocess.realizations": {"train": 1, "val": 1, "test": 1},
    "preprocess.splits": {"train": [], "val": [], "test": []},
    "preprocess.remaining": {"val": 0.2, "test": 0.2},
    "train.patch_size": 16,
}


def _pixels(name: str, size: tuple[int, int] = (40, 44)) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).integers(20, 200, (*size, 3), dtype=np.uint8)


def _save(path: str, pixels: np.ndarray | None = None) -> None:
    file = Path("source") / path
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_pixels(path) if pixels is None else pixels).save(file)


def _packed(project: Project, **changes: Any) -> dict[str, dict[str, str]]:
    """part -> item -> scene."""
    project.set(SETTINGS | {key.replace("__", "."): value for key, value in changes.items()})
    fetch(project.params())
    preprocess(project.params())
    return {
        part: {
            entry.name.removesuffix("-0") if part != "train" else entry.name: entry.scene
            for entry in Pack(PACKED / part).entries
        }
        for part in ("train", "val", "test")
    }


def _rows() -> list[tuple[str, ...]]:
    with (PACKED / "duplicates.csv").open(newline="") as file:
        return [tuple(row.values()) for row in csv.DictReader(file)]


# ---------------------------------------------------------------------------------------------- the data's own folders


def _items(**parts: int) -> list[Item]:
    """So many scenes of each part; of "none" without one."""
    return [
        Item(f"{part}{n}", f"{part}{n}", (f"{part}{n}.png",), part="" if part == "none" else part)  # type: ignore[arg-type]
        for part, number in parts.items()
        for n in range(number)
    ]


def _settings(project: Project, **changes: Any) -> Params:
    project.set(SETTINGS | {key.replace("__", "."): value for key, value in changes.items()})
    return project.params()


def test_a_part_that_is_missing_is_dealt_out_of_train_and_never_out_of_test(project: Project) -> None:
    settings = _settings(project).preprocess
    split = split_items(_items(train=400, test=100), settings)
    assert {split[f"test{n}"] for n in range(100)} == {"test"}
    counts = {part: [split[f"train{n}"] for n in range(400)].count(part) for part in ("train", "val", "test")}
    assert counts["test"] == 0
    assert counts["val"] == pytest.approx(80, abs=3 * np.sqrt(400 * 0.2 * 0.8))
    split = split_items(_items(train=400, val=100), settings)
    assert {split[f"val{n}"] for n in range(100)} == {"val"}
    counts = {part: [split[f"train{n}"] for n in range(400)].count(part) for part in ("train", "val", "test")}
    assert counts["val"] == 0
    assert counts["test"] == pytest.approx(80, abs=3 * np.sqrt(400 * 0.2 * 0.8))


def test_with_all_three_parts_nothing_is_dealt_out_and_scenes_of_no_part_train(project: Project) -> None:
    settings = _settings(project).preprocess
    items = _items(train=50, val=3, test=7, none=60)
    split = split_items(items, settings)
    expected = {"train": "train", "val": "val", "test": "test", "none": "train"}
    assert split == {item.name: expected[item.name.rstrip("0123456789")] for item in items}


def test_two_images_to_train_are_enough_beside_a_test_of_their_own(project: Project) -> None:
    split = split_items(_items(train=2, test=1), _settings(project).preprocess)
    assert sorted(split.values()) == ["test", "train", "val"]
    with pytest.raises(UserError, match=r"preprocess\.splits: no scene for train among 3 scenes"):
        split_items(_items(val=1, test=2), _settings(project).preprocess)


def test_the_lists_overrule_the_folders_for_the_scenes_that_they_match(project: Project) -> None:
    settings = _settings(project, preprocess__splits={"train": ["test1"], "val": ["train3"], "test": []}).preprocess
    items = _items(train=5, val=1, test=3)
    split = split_items(items, settings)
    assert {name: part for name, part in split.items() if not name.startswith(part)} == {
        "test1": "train",
        "train3": "val",
    }
    assert own_split_text(items, settings) == (
        "the data's own split is kept, in images: train 5, val 1, test 3; preprocess.splits overrules it for 2 scenes"
    )


def test_a_scene_that_the_data_put_in_two_parts_is_refused_and_a_list_decides(project: Project) -> None:
    items = [*_items(train=3, test=2), Item("a", "clip", ("a.png",), part="train")]
    items.append(Item("b", "clip", ("b.png",), part="test"))
    with pytest.raises(UserError, match=r"scene 'clip' in test \(b\) and train \(a\): list the scene in one part") as e:
        split_items(items, _settings(project).preprocess)
    assert len(str(e.value).splitlines()) <= 2
    listed = _settings(project, preprocess__splits={"train": ["clip"], "val": [], "test": []}).preprocess
    split = split_items(items, listed)
    assert split["a"] == split["b"] == "train"


@pytest.mark.parametrize("pairs", [True, False])
def test_official_folders_are_the_split_and_said_so_in_one_line(
    project: Project, capsys: pytest.CaptureFixture[str], pairs: bool
) -> None:
    for part, number in (("train", 8), ("test", 4)):
        for n in range(number):
            clean = _pixels(f"{part}{n}")
            _save(f"set/{part}/target/{n}.png", clean)
            if pairs:
                _save(f"set/{part}/input/{n}.png", clean // 2)
    split = _packed(project, preprocess__pairs="auto" if pairs else "none", tasks__denoise__out_of_distribution={})
    assert {name.split("__")[1] for name in split["test"]} == {"test"}
    assert len(split["test"]) == 4
    assert {name.split("__")[1] for part in ("train", "val") for name in split[part]} == {"train"}
    assert len(split["train"]) + len(split["val"]) == 8
    assert split["val"]
    said = capsys.readouterr().out
    assert said.count("the data's own split is kept, in images: train 8, test 4; val dealt out of train\n") == 1


def test_folders_of_classes_have_a_validation_part_too(project: Project) -> None:
    for part, number in (("train", 3), ("val", 2), ("test", 1)):
        for label in ("cat", "dog"):
            for n in range(number):
                _save(f"{part}/{label}/{n}.png", _pixels(f"{part}{label}{n}", (32, 32)))
    split = _packed(project, task="classify", tasks__classify__out_of_distribution={})
    assert {part: len(names) for part, names in split.items()} == {"train": 6, "val": 4, "test": 2}


# ------------------------------------------------------------------------------------------- duplicates by content


def test_equal_images_are_one_scene_on_one_side_and_said_so_in_one_line(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(12):
        _save(f"{n:02}.png")
    for copy, n in (("20", 0), ("21", 3), ("22", 3)):
        _save(f"{copy}.png", _pixels(f"{n:02}.png"))
    _save("23.bmp", _pixels("05.png"))  # the same pixels in another file
    split = _packed(project)
    assert sum(map(len, split.values())) == 16
    scenes = {name: (part, scene) for part, names in split.items() for name, scene in names.items()}
    for copy, original in (("20", "00"), ("21", "03"), ("22", "03"), ("23", "05")):
        assert scenes[copy] == scenes[original] == (scenes[original][0], original)
    assert len({scene for _, scene in scenes.values()}) == 12
    said = "4 scenes show the same image as others and are put together with them: 20 with 00, 21 with 03, 22 with 03"
    assert capsys.readouterr().out.count(f"{said}, and 1 more\n") == 1
    assert [row[:3] for row in _rows()] == [
        ("20", "00", "same"),
        ("21", "03", "same"),
        ("22", "03", "same"),
        ("23", "05", "same"),
    ]
    assert all(row[3] == row[4] for row in _rows())


def test_pairs_that_share_a_clean_image_are_one_scene(project: Project) -> None:
    for n in range(1, 11):
        clean = _pixels(f"{n - n // 10 * 8}")  # 10 is 2 again
        _save(f"norain/norain-{n:03}.png", clean)
        _save(f"rain/rain-{n:03}.png", (clean + n).astype(np.uint8))
    split = _packed(project, task="derain", preprocess__pairs="auto", tasks__derain__out_of_distribution={})
    scenes = {name: (part, scene) for part, names in split.items() for name, scene in names.items()}
    assert len(scenes) == 10
    assert scenes["010"] == scenes["002"]


def test_without_duplicates_no_list_of_them_is_written(project: Project) -> None:
    for n in range(6):
        _save(f"{n}.png")
    _packed(project)
    assert not (PACKED / "duplicates.csv").exists()


def test_copies_that_the_lists_force_apart_are_refused_and_an_unlisted_one_follows_the_test(project: Project) -> None:
    for name in ("a1", "a2", "b1", "c1", "x"):
        _save(f"{name}.png", _pixels("c1" if name in ("a1", "x") else name))
    splits = {"train": ["a*"], "val": ["b*"], "test": ["c*"]}
    with pytest.raises(UserError, match=r"a1: the same clean image is in test as x; preprocess\.splits or the data's"):
        _packed(project, preprocess__splits=splits)
    split = _packed(project, preprocess__splits=splits, preprocess__unusable="skip")
    assert split == {"train": {"a2": "a2"}, "val": {"b1": "b1"}, "test": {"c1": "c1", "x": "c1"}}


def test_a_copy_in_the_folder_of_another_part_is_refused_and_the_test_keeps_it(project: Project) -> None:
    for part, n in (("train", 1), ("train", 2), ("train", 3), ("train", 4), ("test", 1)):
        _save(f"{part}/{n}.png", _pixels("official" if (part, n) in (("train", 2), ("test", 1)) else f"{part}{n}"))
    with pytest.raises(UserError, match=r"train__2: the same clean image is in test as test__1; preprocess\.splits or"):
        _packed(project)
    split = _packed(project, preprocess__unusable="skip")
    assert split["test"] == {"test__1": "test__1"}
    assert "train__2" not in split["train"] | split["val"]


def test_images_of_one_colour_tie_no_scenes_together(project: Project) -> None:
    for n in range(8):
        _save(f"{n}.png", np.full((40, 44, 3), 128, dtype=np.uint8) if n % 2 else None)
    split = _packed(project)
    assert {scene for names in split.values() for scene in names.values()} == {str(n) for n in range(8)}


def test_a_photograph_coded_again_or_cut_is_in_the_scene_of_the_whole(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("source").mkdir()
    for name in BuiltinPhotographs().names():
        BuiltinPhotographs().copy(name, Path("source") / name)
    with Image.open("source/coffee.png") as image:
        image.save("source/another.jpg", quality=40)
        image.crop((100, 40, 520, 360)).resize((315, 240)).save("source/zoom.png")
    split = _packed(project, preprocess__scene_pattern="^$")
    scenes = {name: (part, scene) for part, names in split.items() for name, scene in names.items()}
    assert scenes["coffee"] == scenes["zoom"] == scenes["another"]
    assert scenes["coffee"][1] == "another"
    # The stereo pair is found, too, although no name says so here.
    assert scenes["motorcycle_right"] == scenes["motorcycle_left"]
    assert len({scene for _, scene in scenes.values()}) == 11
    said = (
        "3 scenes show a picture of others, coded, sized or cut otherwise, and are put together with them: "
        "coffee with another, motorcycle_right with motorcycle_left, zoom with another"
    )
    assert said in capsys.readouterr().out
    assert {row[2] for row in _rows()} == {"alike"}


def test_what_looks_alike_and_is_listed_apart_stays_apart_and_is_told(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("source").mkdir()
    for name in ("coffee.png", "chelsea.png", "china.jpg"):
        BuiltinPhotographs().copy(name, Path("source") / name)
    with Image.open("source/coffee.png") as image:
        image.save("source/again.jpg", quality=40)
    splits = {"train": ["again", "chelsea"], "val": ["china"], "test": ["coffee"]}
    split = _packed(project, preprocess__splits=splits)
    assert (set(split["train"]), set(split["test"])) == ({"again", "chelsea"}, {"coffee"})
    said = "preprocess.splits or the data's own split keep apart what looks alike: again (train) and coffee (test)"
    assert said in capsys.readouterr().out
    assert _rows() == [("again", "coffee", "alike", "train", "test")]


# --------------------------------------------------------------------------------------------------- putting together


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"a": "a", "b": "a", "c": "a", "d": "a"}),
        ({"c": "train"}, {"a": "c", "b": "c", "c": "c", "d": "c"}),
        ({"a": "train", "d": "test"}, {"a": "a", "b": "d", "c": "d", "d": "d"}),
        ({"a": "train", "b": "test", "d": "val"}, {"a": "a", "b": "b", "c": "b", "d": "d"}),
        ({"a": "train", "b": "train"}, {"a": "a", "b": "a", "c": "a", "d": "a"}),
    ],
)
def test_scenes_that_are_given_no_part_follow_those_that_are_the_test_first(
    project: Project, given: dict[str, str], expected: dict[str, str]
) -> None:
    settings = _settings(project).preprocess
    assert join_scenes([("a", "b"), ("b", "c"), ("c", "d")], given, settings) == expected
    assert join_scenes([("d", "c"), ("c", "b"), ("b", "a")], given, settings) == expected


def test_a_listed_scene_gives_its_name_to_the_others(project: Project) -> None:
    """So that its list still finds it."""
    settings = _settings(project, preprocess__splits={"train": [], "val": [], "test": ["z*"]}).preprocess
    items = [*_items(train=6), Item("a", "a", ("a.png",)), Item("z", "z", ("z.png",), part="train")]
    assert join_scenes([("a", "z")], {"z": "test"}, settings) == {"a": "z", "z": "z"}
    assert split_items(items, settings)["z"] == "test"


def test_a_clean_image_of_many_pairs_is_looked_at_once_and_ties_all_of_them(tmp_path: Path) -> None:
    Image.fromarray(_pixels("clean")).save(tmp_path / "clean.png")
    items = [Item(f"{n}", f"scene{n}", (f"missing{n}.png", "clean.png")) for n in range(5)]
    (piece,) = glances(items, {"clean.png": ("", 100)}, tmp_path, "images", "rgb", 32)
    assert [(item.name, item.files) for item in piece.items] == [("0", ("clean.png",))]
    seen = look(piece)
    assert [each.name for each in seen] == ["0"]
    assert find_duplicates(items, seen).same == [["0", "1", "2", "3", "4"]]
    assert find_duplicates(items, []).same == []


def test_pieces_are_small_and_very_many_images_are_searched_for_equal_ones_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [Item(f"{n:05}", f"{n:05}", (f"{n}.png",)) for n in range(MOST + 1)]
    pieces = glances(items, {"0.png": ("", 1 << 25)}, tmp_path, "images", "rgb", 1000)
    assert [len(piece.items) for piece in pieces] == [1, *[1000] * 20]
    assert not any(piece.is_searched for piece in pieces)
    assert f"{MOST + 1} images are more than {MOST}: those that look alike are not searched" in capsys.readouterr().out
    assert all(piece.is_searched for piece in glances(items[1:], {}, tmp_path, "images", "rgb", 1000))
    twice = [Seen("00000", "x", None), Seen("00001", "x", None), Seen("00002", "y", None)]
    assert find_duplicates(items, twice).same == [["00000", "00001"]]
