"""Images are checked, split by scene and degraded; what is fixed stays fixed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.data.items import scene_of
from components.data.packs import Pack
from pipeline.config.sections import Preprocess
from pipeline.errors import UserError
from pipeline.stages.fetch import fetch
from pipeline.stages.preprocess import preprocess
from pipeline.stages.preprocessing.packing import centre_crop
from pipeline.stages.preprocessing.splitting import split_scenes
from tests.files import digests
from tests.pipeline.conftest import Project

pytestmark = pytest.mark.unit

PACKED = Path("data/packed")
SPLITS = {"train": ["a*"], "val": ["val"], "test": ["test*"]}


def _save(folder: Path, names: Iterable[str], size: tuple[int, int] = (40, 56)) -> None:
    """Images whose pixels depend on their name."""
    for name in names:
        seed = sum(map(ord, name))
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def small(project: Project) -> Project:
    """Five images fetched: two to train, one to validate, two to test."""
    _save(Path("photographs"), ["a1.png", "a2.png", "val.png", "test1.png", "sub/test2.png"])
    changes: dict[str, Any] = {
        "fetch.source": "photographs",
        "preprocess.splits": SPLITS | {"test": ["test*", "sub__*"]},
        "preprocess.crop": 32,
        "preprocess.realizations": {"train": 1, "val": 2, "test": 3},
        "train.patch_size": 16,
        "tasks.denoise.degradation": {"sigma": 25},
        "tasks.denoise.out_of_distribution": {"sigma_15": {"sigma": 15}, "sigma_50": {"sigma": 50}},
    }
    project.set(changes)
    fetch(project.params())
    return project


def _degraded(part: str) -> dict[str, bytes]:
    return {entry.name: degraded.tobytes() for entry, degraded, _ in Pack(PACKED / part).pairs()}


def test_training_images_are_packed_whole_and_clean(small: Project) -> None:
    preprocess(small.params())
    pack = Pack(PACKED / "train")
    pack.verify()
    assert [(e.name, e.scene, e.height, e.width) for e in pack.entries] == [("a1", "a1", 40, 56), ("a2", "a2", 40, 56)]
    for index, name in enumerate(("a1", "a2")):
        with Image.open(f"photographs/{name}.png") as image:
            assert np.array_equal(np.rint(pack.clean(index) * 255).astype(int), np.asarray(image).transpose(2, 0, 1))


def test_validation_and_test_pairs_are_central_crops_with_noise_of_the_right_strength(small: Project) -> None:
    preprocess(small.params())
    names = {part: [entry.name for entry in Pack(PACKED / part).entries] for part in ("val", "test")}
    assert names["val"] == ["val-0", "val-1"]
    assert names["test"] == [f"{image}-{draw}" for image in ("sub__test2", "test1") for draw in range(3)]
    for entry, degraded, clean in Pack(PACKED / "val").pairs():
        with Image.open("photographs/val.png") as image:
            assert np.array_equal(np.rint(clean * 255).astype(int).transpose(1, 2, 0), np.asarray(image)[4:36, 12:44])
        assert (entry.height, entry.width) == (32, 32)
        assert (degraded - clean).std() == pytest.approx(25 / 255, rel=0.05)
    draws = [degraded for _, degraded, _ in Pack(PACKED / "val").pairs()]
    assert not np.array_equal(*draws)


def test_pairs_out_of_distribution_are_the_test_images_otherwise_degraded(small: Project) -> None:
    preprocess(small.params())
    test = Pack(PACKED / "test")
    for name, sigma in (("sigma_15", 15), ("sigma_50", 50)):
        other = Pack(PACKED / "out_of_distribution" / name)
        assert other.entries == [replace(entry, noise_level=float(sigma)) for entry in test.entries]
        noise = np.stack([degraded - clean for _, degraded, clean in other.pairs()])
        assert noise.std() == pytest.approx(sigma / 255, rel=0.03)
        assert all(np.array_equal(test.clean(i), other.clean(i)) for i in range(len(test)))


def test_a_second_run_gives_the_same_bytes(small: Project) -> None:
    preprocess(small.params())
    first = digests(PACKED)
    preprocess(small.params())
    assert digests(PACKED) == first
    assert sorted(first) == sorted(
        f"{part}/{file}"
        for part, number in (
            ("train", 0),
            ("val", 1),
            ("test", 2),
            ("out_of_distribution/sigma_15", 2),
            ("out_of_distribution/sigma_50", 2),
        )
        for file in (f"chunk-{number:05d}-00000.safetensors", "index.json")
    )


def test_another_seed_draws_other_noise(small: Project) -> None:
    preprocess(small.params(seed=0))
    first = _degraded("val")
    preprocess(small.params(seed=1))
    assert _degraded("val").keys() == first.keys()
    assert not set(_degraded("val").values()) & set(first.values())


def test_a_pair_stays_as_it_is_when_images_come_and_go(small: Project) -> None:
    preprocess(small.params())
    first = _degraded("test")
    _save(Path("photographs"), ["test0.png", "a0.png"])
    Path("photographs/sub/test2.png").unlink()
    fetch(small.params())
    preprocess(small.params())
    now = _degraded("test")
    assert set(now) == {f"{image}-{draw}" for image in ("test0", "test1") for draw in range(3)}
    assert all(now[f"test1-{draw}"] == first[f"test1-{draw}"] for draw in range(3))


def test_the_built_in_motorcycles_are_one_scene_on_one_side(project: Project) -> None:
    params = project.params()
    assert scene_of("motorcycle_left", params.preprocess.scene_pattern) == "motorcycle"
    assert scene_of("motorcycle_right", params.preprocess.scene_pattern) == "motorcycle"
    assert scene_of("china", params.preprocess.scene_pattern) == "china"
    _save(Path("photographs"), ["motorcycle_left.png", "motorcycle_right.png", "flower.png", "china.png"])
    params = project.params(fetch__source="photographs", preprocess__crop=32, train__patch_size=16)
    fetch(params)
    preprocess(params)
    assert [(e.name, e.scene) for e in Pack(PACKED / "train").entries] == [
        ("motorcycle_left", "motorcycle"),
        ("motorcycle_right", "motorcycle"),
    ]


@pytest.mark.parametrize(
    ("name", "pattern", "scene"),
    [
        ("img_042_b", r"^(img_\d+)", "img_042"),
        ("other", r"^(img_\d+)", "other"),  # no match
        ("img_042", r"^img_\d+", "img_042"),  # no group
        ("img_", r"^img_(\d*)", "img_"),  # an empty group
    ],
)
def test_the_first_group_of_the_pattern_is_the_scene_else_the_name(name: str, pattern: str, scene: str) -> None:
    assert scene_of(name, pattern) == scene


def _settings(shares: tuple[float, float] = (0.2, 0.2), **splits: list[str]) -> Preprocess:
    return Preprocess.model_validate(
        {
            "colour": "rgb",
            "pairs": "none",
            "unusable": "refuse",
            "scene_pattern": "^$",
            "splits": {"train": [], "val": [], "test": [], **splits},
            "remaining": {"val": shares[0], "test": shares[1]},
            "crop": 64,
            "realizations": {"train": 1, "val": 1, "test": 1},
        }
    )


def test_scenes_are_dealt_out_in_about_the_shares_asked_for() -> None:
    split = split_scenes([f"scene{n}" for n in range(2000)], _settings((0.1, 0.3)))
    counts = {part: list(split.values()).count(part) for part in ("train", "val", "test")}
    # Three standard deviations of a binomial with 2000 draws.
    assert counts["val"] == pytest.approx(200, abs=3 * np.sqrt(2000 * 0.1 * 0.9))
    assert counts["test"] == pytest.approx(600, abs=3 * np.sqrt(2000 * 0.3 * 0.7))


def test_a_scene_stays_on_its_side_when_others_come_and_go() -> None:
    scenes = [f"scene{n}" for n in range(60)]
    before = split_scenes(scenes, _settings())
    more = split_scenes(sorted(scenes + [f"later{n}" for n in range(40)]), _settings())
    fewer = split_scenes(scenes[:50], _settings())
    assert all(more[scene] == before[scene] for scene in scenes)
    assert all(fewer[scene] == before[scene] for scene in scenes[:50])
    assert set(before.values()) == {"train", "val", "test"}


def test_the_order_of_scenes_does_not_matter() -> None:
    scenes = [f"scene{n}" for n in range(30)]
    assert split_scenes(scenes[::-1], _settings()) == split_scenes(scenes, _settings())


@pytest.mark.parametrize("count", range(3, 9))
def test_tiny_sets_leave_no_split_empty(count: int) -> None:
    for start in range(40):
        split = split_scenes([f"scene{n}" for n in range(start, start + count)], _settings())
        assert set(split.values()) == {"train", "val", "test"}


def test_listed_scenes_are_never_moved_to_fill_a_split() -> None:
    split = split_scenes(["a", "b", "c", "d"], _settings(train=["a", "b"], val=["c"]))
    assert split == {"a": "train", "b": "train", "c": "val", "d": "test"}
    with pytest.raises(UserError, match=r"preprocess\.splits: no scene for test among 3 scenes"):
        split_scenes(["a", "b", "c"], _settings(train=["a", "b"], val=["c"]))


def test_two_scenes_are_too_few_and_the_remedy_is_told() -> None:
    with pytest.raises(UserError, match=r"no scene for (train|val|test) among 2 scenes: bring at least 3"):
        split_scenes(["a", "b"], _settings())


def test_a_scene_in_two_lists_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"preprocess\.splits: scene 'chelsea' is in train and test: keep one"):
        split_scenes(["chelsea", "b", "c"], _settings(train=["chel*"], test=["chelsea"], val=["b"]))


def test_a_crop_is_central_and_never_larger_than_the_image() -> None:
    image = np.arange(3 * 10 * 7).reshape(3, 10, 7)
    assert np.array_equal(centre_crop(image, 4), image[:, 3:7, 1:5])
    assert np.array_equal(centre_crop(image, 8), image[:, 1:9])
    assert np.array_equal(centre_crop(image, 100), image)


def test_a_patch_larger_than_the_smallest_image_is_refused_and_leaves_what_was_there(small: Project) -> None:
    preprocess(small.params())
    before = digests(PACKED)
    with pytest.raises(
        UserError, match=r"(?s)2 of the images cannot be used.*a1: 56x40 pixels, and 48 are needed: use a"
    ):
        preprocess(small.params(train__patch_size=48))
    assert digests(PACKED) == before
    assert sorted(file.name for file in Path("data").iterdir()) == ["packed", "raw"]


@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_a_raw_file_that_is_not_what_was_fetched_is_refused_by_name(small: Project, damage: str) -> None:
    path = Path("data/raw/images/val.png")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"data/raw/images/val\.png: missing or altered .* run 'eqreg fetch' again"):
        preprocess(small.params())
    assert not PACKED.exists()


@pytest.mark.parametrize("manifest", [b"", b"{", b"[]", b"{}", b'{"images": [{"name": "a"}]}', b"\xff"])
def test_a_damaged_manifest_is_refused_by_name(small: Project, manifest: bytes) -> None:
    Path("data/raw/manifest.json").write_bytes(manifest)
    with pytest.raises(UserError, match=r"data/raw/manifest\.json: damaged .* run 'eqreg fetch' again"):
        preprocess(small.params())


def test_without_fetched_images_the_command_to_run_is_named(project: Project) -> None:
    with pytest.raises(UserError, match=r"data/raw/manifest\.json: not there yet; run 'eqreg fetch'"):
        preprocess(project.params())


def test_two_images_of_one_name_are_refused_with_a_remedy_and_one_is_skipped_on_demand(small: Project) -> None:
    _save(Path("photographs"), ["a1.jpg", "sub__test2.png"])
    Path("photographs/notes.csv").write_text("words")
    fetch(small.params())
    with pytest.raises(
        UserError, match=r"(?s)2 of the images.*a1\.jpg: it would be called a1, as a1\.png is: keep one"
    ):
        preprocess(small.params())
    preprocess(small.params(preprocess__unusable="skip"))
    assert [entry.name for entry in Pack(PACKED / "train").entries] == ["a1", "a2"]
    with Image.open("photographs/a1.png") as image:  # the one without loss
        assert np.array_equal(np.rint(Pack(PACKED / "train").clean(0) * 255), np.asarray(image).transpose(2, 0, 1))


def test_names_of_pairs_are_refused_where_every_image_would_be_clean(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{side}/{name}.png" for side in ("input", "target") for name in ("a", "b", "c", "d")]
    _save(Path("photographs"), names)
    Path("photographs/list.csv").write_text("words")
    shares = {"splits": {"train": [], "val": [], "test": []}, "crop": 32}
    project.set({"fetch.source": "photographs", "train.patch_size": 16})
    project.set({f"preprocess.{key}": value for key, value in shares.items()})
    fetch(project.params())
    with pytest.raises(UserError) as error:
        preprocess(project.params())
    assert str(error.value) == (
        "preprocess.pairs: none, but the names are those of 4 pairs, as input/a.png and target/a.png\n"
        "set preprocess.pairs: input/target to use them, or preprocess.pairs: clean if all images are clean"
    )
    with pytest.raises(UserError, match=r"take the degraded images away, or preprocess\.pairs: clean"):
        preprocess(project.params(task="inpaint"))
    preprocess(project.params(task="denoise", preprocess__pairs="clean"))
    scenes = [entry.scene for part in ("train", "val", "test") for entry in Pack(PACKED / part).entries]
    assert len(set(scenes)) == 8
    assert not Pack(PACKED / "train").holds_pairs
    assert "not used of data/raw/images: 1 .csv\n" in capsys.readouterr().out


def test_a_file_that_is_no_image_is_refused_by_name(small: Project) -> None:
    Path("photographs/a9.png").write_text("no image")
    fetch(small.params())
    with pytest.raises(UserError, match=r"(?s)1 of the images cannot be used.*a9: not a readable image"):
        preprocess(small.params())
    assert not PACKED.exists()


def test_rain_is_the_same_in_all_channels_never_darkens_and_stays_an_image(small: Project) -> None:
    dense = {"angle": 10, "length": 8, "width": 2, "density": 0.3, "brightness": 0.3}
    params = small.params(
        task="derain", tasks__derain__degradation=dense, tasks__derain__out_of_distribution={"more": dense}
    )
    preprocess(params)
    for _, degraded, clean in Pack(PACKED / "test").pairs():
        light = degraded - clean
        free = (degraded < 1).all(axis=0)  # where nothing was clipped
        assert light.min() >= 0
        assert light.max() > 0.1
        assert degraded.max() <= 1
        assert np.allclose(light[:, free], light[:1, free], atol=1e-6)
    assert len(Pack(PACKED / "out_of_distribution/more")) == len(Pack(PACKED / "test"))
