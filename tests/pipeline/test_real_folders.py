"""Folders as people have them: pairs by name, files that cannot be used, twins, auxiliary data, and many chunks."""

from __future__ import annotations

import csv
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from components.data.items import _flat
from components.data.packs import Pack
from pipeline.errors import UserError
from pipeline.paths import PACKED
from pipeline.stages.fetch import fetch
from pipeline.stages.preprocess import preprocess
from tests.pipeline.conftest import Project

pytestmark = pytest.mark.unit

SETTINGS: dict[str, Any] = {
    "fetch.source": "source",
    "preprocess.crop": 32,
    "preprocess.realizations": {"train": 1, "val": 1, "test": 1},
    "preprocess.splits": {"train": ["a*"], "val": ["b*"], "test": ["c*"]},
    "train.patch_size": 16,
}
NAMES = ("a1", "a2", "b1", "c1")


def _pixels(name: str, size: tuple[int, int] = (40, 44)) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).integers(20, 200, (*size, 3), dtype=np.uint8)


def _save(path: str, pixels: np.ndarray) -> None:
    file = Path("source") / path
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def _packed(project: Project, changes: dict[str, Any]) -> None:
    project.set({**SETTINGS, **changes})
    fetch(project.params())
    preprocess(project.params())


def test_pairs_are_found_by_name_packed_as_they_are_and_cropped_alike(project: Project) -> None:
    for name in NAMES:
        clean = _pixels(name)
        _save(f"clean/{name}.png", clean)
        _save(f"noisy/{name}.png", (clean // 2).astype(np.uint8))
    _packed(project, {"preprocess.pairs": "auto", "tasks.denoise.out_of_distribution": {"sigma_50": {"sigma": 50}}})
    train, test = Pack(PACKED / "train"), Pack(PACKED / "test")
    assert [entry.name for entry in train.entries] == ["a1", "a2"]
    assert train.holds_pairs
    for pack in (train, test):
        for entry, degraded, clean in pack.pairs():
            whole = _pixels(entry.name).transpose(2, 0, 1)
            expected = whole if pack is train else whole[:, 4:36, 6:38]
            assert np.array_equal(np.rint(clean * 255), expected)
            assert np.array_equal(np.rint(degraded * 255), expected // 2)
    (pair,) = Pack(PACKED / "out_of_distribution/sigma_50").pairs()
    assert (pair[1] - pair[2]).std() == pytest.approx(50 / 255, rel=0.1)  # drawn on the clean image


def test_patterns_of_ones_own_pair_what_no_known_layout_does(project: Project) -> None:
    for name in NAMES:
        _save(f"{name}--x.png", _pixels(name))
        _save(f"{name}--y.png", _pixels(name) // 2)
    patterns = {"degraded": r"(?P<name>.+)--y\.png", "clean": r"(?P<name>.+)--x\.png"}
    _packed(project, {"preprocess.pairs": patterns, "tasks.denoise.out_of_distribution": {}})
    assert [entry.name for entry in Pack(PACKED / "train").entries] == ["a1", "a2"]


def test_patterns_that_share_nothing_are_refused_with_the_key(project: Project) -> None:
    _save("a1.png", _pixels("a1"))
    with pytest.raises(UserError, match=r"preprocess\.pairs: .*name what a pair shares in both"):
        _packed(project, {"preprocess.pairs": {"degraded": "y", "clean": "x"}})


def test_names_that_pair_in_no_known_way_are_refused_with_the_key(project: Project) -> None:
    for name in NAMES:
        _save(f"{name}.png", _pixels(name))
    with pytest.raises(UserError, match=r"preprocess\.pairs: "):
        _packed(project, {"preprocess.pairs": "auto"})


def test_low_resolution_folders_are_super_resolution(project: Project) -> None:
    for name in NAMES:
        clean = _pixels(name, (40, 48))
        _save(f"HR/{name}.png", clean)
        _save(f"LR_bicubic/X2/{name}x2.png", clean[::2, ::2])
    changes = {"task": "super_resolution", "preprocess.pairs": "auto", "tasks.super_resolution.out_of_distribution": {}}
    _packed(project, changes)
    (pair,) = Pack(PACKED / "test").pairs()
    assert pair[2].shape == (3, 32, 32)
    assert np.array_equal(pair[1], pair[2][:, ::2, ::2])


def test_a_pair_that_does_not_fit_and_a_file_without_partner_are_named(project: Project) -> None:
    for name in (*NAMES, "a3"):
        _save(f"clean/{name}.png", _pixels(name))
        _save(f"noisy/{name}.png", _pixels(name, (40, 44) if name != "a3" else (40, 45)))
    project.set({**SETTINGS, "preprocess.pairs": "noisy/clean"})
    _save("clean/alone.png", _pixels("alone"))
    fetch(project.params())
    with pytest.raises(UserError) as error:
        preprocess(project.params())
    assert "2 of the images cannot be used" in str(error.value)
    assert "clean/alone.png: it has no partner in a pair" in str(error.value)
    assert "a3: the degraded image is 45x40, the clean one 44x40: they must be of one size" in str(error.value)


def _odd_folder() -> None:
    """Good images of every kind, and bad ones."""
    for name in NAMES:
        _save(f"{name}.png", _pixels(name))
    Image.fromarray(_pixels("a_grey")[..., 0]).save("source/a_grey.png")
    Image.fromarray(_pixels("a_cmyk")).convert("CMYK").save("source/a_cmyk.jpg")
    Image.fromarray(_pixels("a_palette")).convert("P").save("source/a_palette.png")
    Image.fromarray(np.dstack([_pixels("a_alpha"), _pixels("x")[..., :1]])).save("source/a_alpha.png")
    deep = np.random.default_rng(0).integers(0, 65536, (40, 44), dtype=np.uint16)
    Image.fromarray(deep).save("source/a_deep.png")
    turned = Image.fromarray(_pixels("a_turned", (30, 50)))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save("source/a_turned.jpg", exif=exif)
    (Path("source") / "a_broken.png").write_bytes((Path("source") / "a1.png").read_bytes()[:200])
    _save("a_small.png", _pixels("a_small", (10, 44)))
    _save("a_twin.png", _pixels("c1"))


def test_an_odd_folder_is_refused_with_every_name_and_skipped_on_demand(project: Project) -> None:
    Path("source").mkdir()
    _odd_folder()
    project.set(SETTINGS)
    fetch(project.params())
    with pytest.raises(UserError) as error:
        preprocess(project.params())
    for part in (
        "3 of the images cannot be used, listed in .eqreg/unusable.csv (preprocess.unusable: skip leaves them out)",
        "a_broken: ",
        "a_small: 44x10 pixels, and 16 are needed",
        "a_twin: the same clean image is in test as c1",
    ):
        assert part in str(error.value)
    assert not PACKED.exists()

    preprocess(project.params(preprocess__unusable="skip"))
    train = Pack(PACKED / "train")
    shapes = {entry.name: train.stored(index).shape for index, entry in enumerate(train.entries)}
    assert set(shapes) == {"a1", "a2", "a_grey", "a_cmyk", "a_palette", "a_alpha", "a_deep", "a_turned"}
    assert shapes["a_turned"] == (3, 50, 30)
    assert {shape[0] for shape in shapes.values()} == {3}
    deep = [entry.name for entry in train.entries].index("a_deep")
    assert train.stored(deep).dtype == np.uint16
    with (PACKED / "unusable.csv").open() as file:
        assert sorted(row["name"] for row in csv.DictReader(file)) == ["a_broken", "a_small", "a_twin"]
    assert [entry.name for entry in Pack(PACKED / "test").entries] == ["c1-0"]


def test_images_of_blocks_are_cut_to_whole_ones(project: Project) -> None:
    for name in NAMES:
        _save(f"{name}.png", _pixels(name, (41, 47)))
    _packed(project, {"task": "jpeg", "preprocess.crop": 100, "train.patch_size": 8})
    for _, degraded, clean in Pack(PACKED / "test").pairs():
        assert clean.shape == degraded.shape == (3, 40, 40)


def test_every_twin_of_another_part_goes_whatever_its_depth_and_the_last_part_keeps_it(project: Project) -> None:
    for name in NAMES:
        _save(f"{name}.png", _pixels(name))
    for name in ("a8", "a9", "b9"):
        _save(f"{name}.png", _pixels("c1"))
    grey = _pixels("deep")[..., 0]
    _save("c2.png", np.stack([grey] * 3, axis=-1))
    Image.fromarray(grey.astype(np.uint16) * 257).save("source/a_deep.png")
    _packed(project, {"preprocess.unusable": "skip"})
    with (PACKED / "unusable.csv").open() as file:
        assert sorted(row["name"] for row in csv.DictReader(file)) == ["a8", "a9", "a_deep", "b9"]
    assert [entry.name for entry in Pack(PACKED / "train").entries] == ["a1", "a2"]
    assert [entry.scene for entry in Pack(PACKED / "val").entries] == ["b1"]


def test_given_pairs_of_jpeg_keep_their_blocks(project: Project) -> None:
    for name in NAMES:
        clean = _pixels(name, (60, 77))
        _save(f"clean/{name}.png", clean)
        _save(f"noisy/{name}.png", clean // 2)
    _packed(project, {"task": "jpeg", "preprocess.pairs": "auto", "preprocess.crop": 37})
    for _, degraded, clean in Pack(PACKED / "test").pairs():
        whole = _pixels("c1", (60, 77)).transpose(2, 0, 1)
        assert np.array_equal(np.rint(clean * 255), whole[:, 8:40, 16:48])  # the blocks nearest to the centre
        assert np.array_equal(np.rint(degraded * 255), whole[:, 8:40, 16:48] // 2)


def test_given_pairs_need_no_room_for_what_a_degradation_would_look_at(project: Project) -> None:
    for name in NAMES:
        _save(f"sharp/{name}.png", _pixels(name, (30, 30)))
        _save(f"blur/{name}.png", _pixels(name, (30, 30)) // 2)
    changes = {"task": "deblur", "preprocess.pairs": "auto", "train.patch_size": 24}
    _packed(project, {**changes, "tasks.deblur.out_of_distribution": {}})
    assert len(Pack(PACKED / "train")) == 2


def test_clean_images_that_were_not_cut_before_they_were_shrunk_are_cut(project: Project) -> None:
    for name in NAMES:
        clean = _pixels(name, (41, 49))
        _save(f"HR/{name}.png", clean)
        _save(f"LR_bicubic/X2/{name}x2.png", clean[:40:2, :48:2])
    changes = {"task": "super_resolution", "preprocess.pairs": "auto", "tasks.super_resolution.out_of_distribution": {}}
    _packed(project, changes)
    train = Pack(PACKED / "train")
    assert train.clean(0).shape == (3, 40, 48)
    assert np.array_equal(train.degraded(0), train.clean(0)[:, ::2, ::2])


def test_what_draws_nothing_is_degraded_once(project: Project) -> None:
    for name in NAMES:
        _save(f"{name}.png", _pixels(name))
    _packed(project, {"task": "super_resolution", "preprocess.realizations": {"train": 1, "val": 2, "test": 3}})
    assert len(Pack(PACKED / "test")) == 1
    assert len(Pack(PACKED / "out_of_distribution/noisy")) == 3


def _scan(size: int = 48) -> dict[str, np.ndarray]:
    rows, columns = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    body = np.where((rows / 0.6) ** 2 + (columns / 0.8) ** 2 < 1, 0.2, 0.0).astype(np.float32)
    metal = np.where(rows**2 + columns**2 < 0.01, 3.0, 0.0).astype(np.float32)
    return {"image": body, "ma_CT": body + metal + 0.01, "LI_CT": body + 0.005}


def test_given_scans_are_packed_as_the_inputs_of_the_network_and_have_no_other_conditions(project: Project) -> None:
    for number, case in enumerate(("000001_01_01", "000002_01_01", "000003_01_01", "000004_01_01")):
        folder = Path("source/train") / case / "100"
        folder.mkdir(parents=True)
        arrays = {name: array * (1 + 0.01 * number) for name, array in _scan().items()}
        with h5py.File(folder / "gt.h5", "w") as file:
            file["image"] = arrays["image"]
        with h5py.File(folder / "0.h5", "w") as file:
            for name in ("ma_CT", "LI_CT"):
                file[name] = arrays[name]
    splits = {"train": ["000001", "000002"], "val": ["000003"], "test": ["000004"]}
    _packed(project, {"task": "ct_mar", "preprocess.splits": splits})
    ((entry, inputs, clean),) = Pack(PACKED / "test").pairs()
    assert (entry.name, entry.scene) == ("000004_01_01-100-0", "000004")
    assert inputs.shape == (3, 32, 32)
    tissue = inputs[2] == 0
    assert np.allclose((inputs[0] - clean[0])[tissue], 0.005 * 1.03 / 0.5, atol=1e-5)  # LI, of 0.5 per cm
    assert np.allclose((inputs[1] - clean[0])[tissue], 0.01 * 1.03 / 0.5, atol=1e-5)  # artifacts
    assert inputs[2].sum() > 0
    assert not list((PACKED / "out_of_distribution").glob("*"))


def test_scans_named_by_their_unique_identifiers_are_told_apart() -> None:
    names = ["s/1.2.840.1", "s/1.2.840.2", "photo.v2.png", "a/slice.dicom"]
    assert [_flat(name) for name in names] == ["s__1.2.840.1", "s__1.2.840.2", "photo.v2", "a__slice"]


def test_a_class_that_training_does_not_know_is_refused(project: Project) -> None:
    labels = np.array([0] * 30 + [1] * 30 + [2])
    Path("source").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (61, 16, 16, 3), dtype=np.uint8)
    split = np.array(["train"] * 60 + ["test"])
    np.savez("source/set.npz", x=images, y=labels, split=split)
    splits = {"train": [], "val": [], "test": []}
    with pytest.raises(UserError, match=r"1 classes of test have no image in train, the first is that of 2-000060"):
        _packed(project, {"task": "classify", "preprocess.splits": splits})


def test_grey_is_asked_for_in_params(project: Project) -> None:
    for name in NAMES:
        _save(f"{name}.png", _pixels(name))
    _packed(project, {"preprocess.colour": "grey"})
    assert Pack(PACKED / "train").stored(0).shape == (1, 40, 44)
    assert next(Pack(PACKED / "test").pairs())[1].shape == (1, 32, 32)


def test_streaks_of_auxiliary_pairs_fall_on_the_images_and_those_of_the_test_are_others(project: Project) -> None:
    for name in NAMES:
        _save(f"{name}.png", _pixels(name))
    for number in range(1, 9):
        clean = np.full((50, 60, 3), 100, dtype=np.uint8)
        rainy = clean.copy()
        rainy[10:30, 5 * number] = 100 + 10 * number
        for kind, image in (("rain", rainy), ("norain", clean)):
            file = Path(f"pairs/{kind}/{kind}-{number:03d}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    changes = {
        "task": "derain",
        "fetch.auxiliary": "pairs",
        "tasks.derain.degradation": {"streaks": "auxiliary"},
        "tasks.derain.out_of_distribution": {},
    }
    _packed(project, changes)
    train, fixed = (Pack(PACKED / "auxiliary" / part) for part in ("train", "fixed"))
    assert len(train) + len(fixed) == 8
    assert len(fixed) >= 1
    brightest = {int(fixed.stored(index).max()) for index in range(len(fixed))}
    assert not brightest & {int(train.stored(index).max()) for index in range(len(train))}
    for part in ("val", "test"):
        for _, degraded, clean in Pack(PACKED / part).pairs():
            light = np.rint((degraded - clean) * 255)
            assert set(np.unique(light)) <= {0.0, *map(float, brightest)}


def _masks(project: Project, files: dict[str, int]) -> dict[str, set[int]]:
    """Packs masks, each a column of its own number; gives the numbers in each part."""
    for name in NAMES:
        _save(f"{name}.png", _pixels(name))
    for name, column in files.items():
        mask = np.zeros((20, 24), dtype=np.uint8)
        mask[:, column] = 255
        Path(f"masks/{name}").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(f"masks/{name}")
    changes = {
        "task": "inpaint",
        "fetch.auxiliary": "masks",
        "tasks.inpaint.degradation": {"masks": "auxiliary", "share": [0.01, 0.2]},
        "tasks.inpaint.out_of_distribution": {},
    }
    _packed(project, changes)
    packs = {part: Pack(PACKED / "auxiliary" / part) for part in ("train", "fixed")}
    return {
        part: {int(np.argmax(pack.stored(index)[0].max(axis=0))) for index in range(len(pack))}
        for part, pack in packs.items()
    }


def test_auxiliary_data_keep_the_split_that_their_folders_state(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"train/{n}.png": n for n in range(4)} | {f"test/{n}.png": n for n in range(10, 14)}
    assert _masks(project, files) == {"train": {0, 1, 2, 3}, "fixed": {10, 11, 12, 13}}
    assert "8 masks of 'masks', split by their folders" in capsys.readouterr().out


def test_many_auxiliary_data_of_one_content_are_refused_with_the_reason(project: Project) -> None:
    with pytest.raises(
        UserError, match=r"fetch\.auxiliary: masks: all 101 masks are for '(train|fixed)', by their folders or"
    ):
        _masks(project, {f"{n}.png": 1 for n in range(101)})


def test_the_same_auxiliary_data_under_several_names_are_in_one_part(project: Project) -> None:
    found = _masks(project, {f"{n}.png": n // 4 for n in range(40)})
    assert not found["train"] & found["fixed"]
    assert found["train"] | found["fixed"] == set(range(10))


def test_auxiliary_data_that_is_none_is_refused(project: Project) -> None:
    for name in NAMES:
        _save(f"{name}.png", _pixels(name))
    Path("notes").mkdir()
    Path("notes/readme.txt").write_text("no kernels here")
    changes = {
        "task": "deblur",
        "fetch.auxiliary": "notes",
        "tasks.deblur.degradation.kernels": "auxiliary",
        "tasks.deblur.out_of_distribution": {},
    }
    with pytest.raises(UserError, match=r"fetch\.auxiliary: notes: no blur kernels in it, which tasks\.deblur wants"):
        _packed(project, changes)


def test_the_wrong_kind_of_files_is_refused_with_what_the_task_needs(project: Project) -> None:
    for name in NAMES:
        _save(f"{name}.png", _pixels(name))
    project.set({**SETTINGS, "task": "ct_mar"})
    fetch(project.params())
    with pytest.raises(UserError, match=r"no CT slices \(npz, DICOM, h5\) among 4 files, which task ct_mar needs"):
        preprocess(project.params())


def test_a_slice_with_metal_in_it_is_no_clean_slice(project: Project) -> None:
    rows, columns = np.mgrid[-1:1:64j, -1:1:64j]
    body = np.where((rows / 0.6) ** 2 + (columns / 0.8) ** 2 < 1, 30, -1000)
    slices = np.stack([body, body + 1, body + 2, np.where(np.abs(rows) + np.abs(columns) < 0.1, 3000, body)])
    Path("source").mkdir()
    np.savez("source/slices.npz", hu=slices.astype(np.int16), patient=np.array(["a", "b", "c", "a"]))
    project.set({**SETTINGS, "task": "ct_mar", "tasks.ct_mar.degradation.size": 32})
    project.set({"tasks.ct_mar.out_of_distribution": {}})
    fetch(project.params())
    with pytest.raises(UserError, match=r"slices-0003: metal in it \(above 2500 HU\)"):
        preprocess(project.params())
    preprocess(project.params(preprocess__unusable="skip"))
    assert [(entry.name, entry.scene) for entry in Pack(PACKED / "train").entries] == [("slices-0000-0", "a")]
