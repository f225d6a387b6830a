"""Degraded and clean files of the layouts that people have find each other by their names."""

from __future__ import annotations

import random
import time

import pytest

from components.data.pair_names import NAMINGS, Naming, find_pairs, likely_pairs

pytestmark = pytest.mark.unit

# Layout -> what is found: (degraded, clean, scene). One list of names holds exactly these.
LAYOUTS: list[tuple[str, list[tuple[str, str, str]]]] = [
    ("rain100", [(f"rain/rain-{n:03}.png", f"norain/norain-{n:03}.png", f"{n:03}") for n in range(1, 60)]),
    ("rain100", [(f"rain/norain-{n:03}.png", f"norain/norain-{n:03}.png", f"{n:03}") for n in range(1, 9)]),
    ("rain100_inside", [(f"rainy/rain-{n:03}.png", f"norain-{n:03}.png", f"{n:03}") for n in range(1, 9)]),
    ("rain100_inside", [(f"T/rainy/rain-{n:03}.png", f"T/norain-{n:03}.png", f"T/{n:03}") for n in range(1, 9)]),
    ("rain100", [(f"rain/X2/norain-{n}x2.png", f"norain/norain-{n}.png", f"{n}") for n in range(1, 1801)]),
    ("rain200", [(f"train/rain-{n}.png", f"train/norain-{n}.png", f"train/{n}") for n in range(1, 9)]),
    ("rain12", [(f"{n:03}_in.png", f"{n:03}_GT.png", f"{n:03}") for n in range(1, 13)]),
    ("input/target", [(f"input/{n}.png", f"target/{n}.png", f"{n}") for n in range(1, 9)]),
    ("input/target", [(f"Rain13k/input/{n}.jpg", f"Rain13k/target/{n}.png", f"Rain13k/{n}") for n in range(1, 9)]),
    (
        "rain1400",
        [
            (f"training/rainy_image/{n}_{v}.jpg", f"training/ground_truth/{n}.jpg", f"{n}")
            for n in (1, 11, 901)
            for v in range(1, 15)
        ],
    ),
    (
        "spa",
        [
            (
                f"real_world/{v:03}/{v:03}-{f}/{v:03}-{f}_{x}_512.png",
                f"real_world_gt/{v:03}/{v:03}_{x}_512.png",
                f"{v:03}",
            )
            for v in (0, 12)
            for f in (1, 20)
            for x in (0, 256)
        ],
    ),
    ("spa_rain", [(f"rain/{n:03}_rain.png", f"norain/{n:03}.png", f"{n:03}") for n in range(9)]),
    ("spa_gt", [(f"rain/{n:03}.png", f"gt/{n:03}gt.png", f"{n:03}") for n in range(9)]),
    ("raindrop", [(f"test_a/data/{n}_rain.png", f"test_a/gt/{n}_clean.png", f"test_a/{n}") for n in range(9)]),
    (
        "polyu",
        [
            (f"{scene}_{n}_real.JPG", f"{scene}_{n}_mean.JPG", scene)
            for scene in ("Canon5D2_5_160_3200_chair", "Sony_4-5_125_1600_toy")
            for n in (2, 14)
        ],
    ),
    (
        "polyu",
        [(f"{s}_real.JPG", f"{s}_mean.JPG", s) for s in ("Canon5D2_5_160_3200_chair", "NikonD800_4-5_160_1800_wall")],
    ),
    (
        "sidd",
        [
            (f"Data/{f}/{i}_NOISY_SRGB_{k}.PNG", f"Data/{f}/{i}_GT_SRGB_{k}.PNG", f[5:8])
            for f, i in (("0001_001_S6_00100_00060_3200_L", "0001"), ("0002_004_S6_00100_00020_3200_N", "0002"))
            for k in ("010", "011")
        ],
    ),
    ("sidd", [(f"{i:04}_NOISY_SRGB_010.PNG", f"{i:04}_GT_SRGB_010.PNG", f"{i:04}") for i in range(1, 9)]),
    ("noisy/gt", [(f"val/noisy/{n}.png", f"val/gt/{n}.png", f"val/{n}") for n in range(9)]),
    (
        "gopro",
        [
            (f"train/{clip}/blur/{n:06}.png", f"train/{clip}/sharp/{n:06}.png", clip)
            for clip in ("GOPR0372_07_00", "GOPR0374_11_03")
            for n in (1, 47)
        ],
    ),
    (
        "gopro_gamma",
        [(f"GOPR0372_07_00/blur_gamma/{n}.png", f"GOPR0372_07_00/sharp/{n}.png", "GOPR0372_07_00") for n in range(9)],
    ),
    (
        "hide",
        [
            ("train/1fromGOPR0950.png", "GT/1fromGOPR0950.png", "GOPR0950"),
            ("test/test-close-ups/26fromGOPR1089.png", "GT/26fromGOPR1089.png", "GOPR1089"),
        ],
    ),
    (
        "realblur",
        [
            (f"scene{s:03}/blur/blur_{n}.png", f"scene{s:03}/gt/gt_{n}.png", f"scene{s:03}")
            for s in (1, 2)
            for n in (1, 2)
        ],
    ),
    (
        "reds",
        [
            (f"train_blur/{s:03}/{n:08}.png", f"train_sharp/{s:03}/{n:08}.png", f"{s:03}")
            for s in (0, 1)
            for n in (0, 1)
        ],
    ),
    (
        "low_resolution",
        [
            (f"DIV2K_train_LR_bicubic/X2/{n:04}x2.png", f"DIV2K_train_HR/{n:04}.png", f"DIV2K_train/{n:04}")
            for n in range(1, 9)
        ],
    ),
    (
        "low_resolution",
        [(f"a_LR_bicubic/X{s}/{n:04}x{s}.png", f"a_HR/{n:04}.png", f"a/{n:04}") for n in (1, 2) for s in (2, 3, 4)],
    ),
    ("low_resolution", [(f"Set5/LR/{n}.png", f"Set5/HR/{n}.png", f"Set5/{n}") for n in ("baby", "bird")]),
    ("low_resolution_scale", [(f"X2/{n:04}x2.png", f"HR/{n:04}.png", f"{n:04}") for n in range(1, 9)]),
    (
        "low_resolution_beside",
        [
            (f"image_SRF_2/img_{n}_SRF_2_LR.png", f"image_SRF_2/img_{n}_SRF_2_HR.png", f"image_SRF_2/img_{n}_SRF_2")
            for n in range(9)
        ],
    ),
    ("noisy/clean", [(f"noisy/a/{n}.png", f"clean/a/{n}.tif", f"a/{n}") for n in range(9)]),
    ("degraded/clean", [(f"degraded/{n}.png", f"clean/{n}.png", f"{n}") for n in range(9)]),
    ("lq/gt", [(f"LQ/{n}.png", f"GT/{n}.png", f"{n}") for n in range(9)]),
    ("low/high", [(f"our485/low/{n}.png", f"our485/high/{n}.png", f"our485/{n}") for n in range(9)]),
    ("blur/sharp", [(f"blur/{n}.png", f"sharp/{n}.png", f"{n}") for n in range(9)]),
    ("_noisy/_clean", [(f"{n}_noisy.png", f"{n}_clean.png", f"{n}") for n in range(9)]),
]


@pytest.mark.parametrize(("layout", "expected"), LAYOUTS)
def test_a_known_layout_is_recognised_and_paired_in_any_order(
    layout: str, expected: list[tuple[str, str, str]]
) -> None:
    names = [name for degraded, clean, _ in expected for name in (degraded, clean)]
    random.Random(0).shuffle(names)
    found = find_pairs(names)
    assert found.naming == layout
    assert sorted((pair.degraded, pair.clean, pair.scene) for pair in found.pairs) == sorted(expected)
    assert len({pair.key for pair in found.pairs}) == len(expected)
    assert found.unpaired == []
    assert find_pairs(sorted(names), layout) == found


def test_every_specific_layout_is_tested_above() -> None:
    specific = list(NAMINGS)[: list(NAMINGS).index("noisy/clean")]
    assert set(specific) <= {layout for layout, _ in LAYOUTS}


def test_files_without_a_partner_are_left_over_by_name() -> None:
    names = [f"{folder}/{n}.png" for folder in ("input", "target") for n in range(20)]
    found = find_pairs([*names, "input/lonely.png", "readme.png"])
    assert len(found.pairs) == 20
    assert found.unpaired == ["input/lonely.png", "readme.png"]


def test_what_comes_with_a_layout_does_not_hide_it() -> None:
    clip = "GOPR0372_07_00"
    gopro = find_pairs([f"{clip}/{kind}/{n:06}.png" for kind in ("blur", "blur_gamma", "sharp") for n in range(5)])
    assert gopro.naming == "gopro"
    assert gopro.unpaired == [f"{clip}/blur_gamma/{n:06}.png" for n in range(5)]
    rain = find_pairs([f"{kind}-{n}.png" for kind in ("rain", "norain", "rainregion", "rainstreak") for n in range(5)])
    assert rain.naming == "rain200"
    assert len(rain.pairs) == 5


def test_a_hundred_thousand_names_are_paired_in_seconds() -> None:
    names = [
        name
        for video in range(50)
        for frame in range(10)
        for x in range(0, 25_600, 256)
        for name in (
            f"real_world/{video:03}/{video:03}-{frame}/{video:03}-{frame}_{x}_0.png",
            f"real_world_gt/{video:03}/{video:03}_{x}_0.png",
        )
    ]
    start = time.perf_counter()
    assert len(find_pairs(names).pairs) == 50_000
    assert time.perf_counter() - start < 10


def test_training_and_test_folders_with_equal_names_stay_apart() -> None:
    names = [f"{part}/{kind}/1.png" for part in ("train", "test") for kind in ("input", "target")]
    assert [(p.degraded, p.clean, p.scene) for p in find_pairs(names).pairs] == [
        ("test/input/1.png", "test/target/1.png", "test/1"),
        ("train/input/1.png", "train/target/1.png", "train/1"),
    ]


def test_patterns_of_ones_own_pair_what_no_layout_knows() -> None:
    names = ["night/house-7-dark.png", "night/house-8-dark.png", "day/house.png", "notes.png"]
    naming = Naming(
        degraded=r"night/(?P<house>\w+)-(?P<shot>\d+)-dark\.png", clean=r"day/(?P<house>\w+)\.png", scene=("house",)
    )
    found = find_pairs(names, naming)
    assert found.naming == "given"
    assert [(p.degraded, p.clean, p.scene, p.key) for p in found.pairs] == [
        ("night/house-7-dark.png", "day/house.png", "house", "house/7"),
        ("night/house-8-dark.png", "day/house.png", "house", "house/8"),
    ]
    assert found.unpaired == ["notes.png"]


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["1.png", "2.png"],
        [f"input/{n}.png" for n in range(9)],
        [f"Rain800/train/{n}.jpg" for n in range(9)],  # both images in one file
        [f"{kind}/{n}.png" for kind in ("input", "target", "other") for n in range(9)],
    ],
)
def test_what_no_layout_pairs_is_refused_with_some_names_and_the_remedy(names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"no known naming pairs these \d+ images.*Give the patterns") as error:
        find_pairs(names)
    assert not names or any(name in str(error.value) for name in names)
    assert len(str(error.value)) < 500


def test_two_layouts_that_fit_equally_well_are_refused() -> None:
    names = [f"{level}/{side}/{n}.png" for level in ("low", "high") for side in ("input", "target") for n in range(3)]
    with pytest.raises(ValueError, match=r"two namings fit equally well: input/target .* and low/high .*say which"):
        find_pairs(names)
    assert len(find_pairs(names, "low/high").pairs) == 6


def test_two_clean_images_of_one_pair_are_refused_by_name() -> None:
    names = ["input/1.png", "target/1.png", "target/1.jpg"]
    with pytest.raises(ValueError, match=r"target/1\.jpg and target/1\.png are clean images of one pair"):
        find_pairs(names, "input/target")
    with pytest.raises(ValueError, match=r"input/1\.jpg and input/1\.png are both pair 1"):
        find_pairs(["input/1.png", "input/1.jpg", "target/1.png"], "input/target")


def test_an_unknown_layout_and_impossible_patterns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"naming rain99: unknown; use auto.*rain100"):
        find_pairs(["1.png"], "rain99")
    with pytest.raises(ValueError, match=r"naming rain12: pairs none of the 1 images: 1\.png"):
        find_pairs(["1.png"], "rain12")
    with pytest.raises(ValueError, match="not a regular expression"):
        Naming(degraded="(", clean="(?P<name>.+)")
    for degraded, clean in ((".+", ".+"), (".+", "(?P<name>.+)"), ("(?P<name>.+)", "(?P<other>.+)")):
        with pytest.raises(ValueError, match="name what a pair shares in both"):
            Naming(degraded=degraded, clean=clean)


@pytest.mark.parametrize(("layout", "expected"), LAYOUTS)
def test_pairs_are_likely_where_a_layout_accounts_for_half_of_the_names(
    layout: str, expected: list[tuple[str, str, str]]
) -> None:
    names = [name for degraded, clean, _ in expected for name in (degraded, clean)]
    found = likely_pairs([*names, *(f"other/{n}.jfif" for n in range(len(set(names)) - 1))])
    assert found is not None
    assert found.naming == layout
    assert likely_pairs(clean for _, clean, _ in expected) is None
    assert likely_pairs([*names, *(f"other/{n}.png" for n in range(3 * len(names)))]) is None
