"""``eqreg probe``: tests whether a set of images is symmetric, and suggests a search range for lambda.

The command measures how much the distribution of the images changes when they are rotated or mirrored.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from rich import box
from rich.table import Table

from components.data.items import scene_of
from components.data.readers.images import is_image_name, read_image, to_float
from components.evaluation.symmetry import GROUPS, LEVEL, MIN_SCENES, SymmetryTest, draw_patches, symmetry_tests
from pipeline.console import console, track
from pipeline.errors import UserError
from pipeline.sources.folder_listing import read_tree
from pipeline.sources.kinds.builtin import BuiltinPhotographs
from pipeline.sources.names import is_hidden, skipped_text

PATCH = 24  # side in pixels
NUM_PATCHES = 4000  # from all scenes together
MAX_PATCHES = 200  # from one scene
MAX_SCENES = 400
_SHOWN = 20
"""Images left out that the console lists."""
_GREY = np.array([0.299, 0.587, 0.114])  # weights of R, G, B: the luma of BT.601
# Measured as distances under quarter turns with seeds 0 to 2 and 60 to 400 scenes of BSDS500, Train400, and Rain100L
# without and with its rain.
_SCALE = "For scale, quarter turns: noise 0.0 %, photographs 0.3 to 0.8 %, photographs in light rain about 2 %."


class _Problem(NamedTuple):
    """Why an image cannot be used: in a few words, and in a line that begins with its path."""

    kind: str
    text: str


def probe(data: str, scene_pattern: str, seed: int) -> tuple[dict[str, SymmetryTest], int]:
    """Prints the distances between the images and their rotated and mirrored versions, and returns the tests.

    An image that cannot be read or is too small is named and left out. The figures are those of a folder without it.

    Args:
        data: a folder of images, including its subfolders, or ``builtin``.
        scene_pattern: regular expression whose first group is the scene of a file name, as in
            ``preprocess.scene_pattern``.
        seed: seed of the patches and of the null distribution.

    Returns:
        (name of the transform -> its test, number of images that were left out).

    Raises:
        UserError: there are no images, no image can be used, or there are fewer than two scenes.
    """
    if data == "builtin":
        with TemporaryDirectory() as folder:
            source = BuiltinPhotographs()
            for name in source.names():
                source.copy(name, Path(folder) / name)
            return _probe(data, Path(folder), scene_pattern, seed)
    return _probe(data, Path(data).expanduser(), scene_pattern, seed)


def _probe(title: str, folder: Path, scene_pattern: str, seed: int) -> tuple[dict[str, SymmetryTest], int]:
    scenes = _scenes(folder, scene_pattern)
    problems: dict[Path, _Problem] = {}
    try:
        patches, num_scenes = _draw(title, scenes, seed, problems)
    finally:
        _report(title, problems)
    tests = symmetry_tests(patches, seed)
    of = f" of {num_scenes}" if len(patches) < num_scenes else ""
    size = f"{PATCH}x{PATCH} pixels"
    console.print(
        f"{title}: {len(patches)}{of} scenes, {patches.shape[1]} grey patches of {size} of each", markup=False
    )
    console.print(_table(tests, len(patches)))
    for line in _suggestion(tests, len(patches)) + _limits():
        console.print(line)
    return tests, len(problems)


def _scenes(folder: Path, pattern: str) -> dict[str, list[Path]]:
    """Finds the image files of each scene; hidden files and folders are ignored.

    Returns:
        Scene -> its files, sorted by name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give a folder of images, or 'builtin'")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"--scene-pattern {pattern}: not a regular expression ({error})") from error
    scenes: dict[str, list[Path]] = {}
    tree = read_tree(folder)
    for name in sorted(Path(file) for file in tree.files if is_image_name(Path(file)) and not is_hidden(file)):
        scene = scene_of(str(name.with_suffix("")).replace("/", "__"), pattern)
        scenes.setdefault(scene, []).append(folder / name)
    if left_out := skipped_text(tree.left_out()):
        console.print(f"{folder}: left out: {left_out}", markup=False)
    if not scenes:
        raise UserError(f"{folder}: no image in this folder (png, jpg, bmp, tif, webp)")
    return scenes


def _draw(
    title: str, scenes: dict[str, list[Path]], seed: int, problems: dict[Path, _Problem]
) -> tuple[np.ndarray, int]:
    """Draws patches of scenes; of more than `MAX_SCENES`, random ones.

    When images cannot be used, all patches are drawn again without them: an image that is left out changes no figure.

    Args:
        title: of the images, for messages.
        scenes: scene -> its files.
        seed: of all random choices.
        problems: file -> why it cannot be used; added here.

    Returns:
        (patches ``(S, number, P, P)``, number of scenes with an image that can be used).

    Raises:
        UserError: there are fewer than two scenes.
    """
    while True:
        usable = {scene: left for scene, files in scenes.items() if (left := [f for f in files if f not in problems])}
        if not usable:
            raise UserError(f"{title}: none of {sum(map(len, scenes.values()))} images can be used")
        if len(usable) < 2:
            raise UserError(f"{title}: one scene only; scenes are compared with each other, give at least {MIN_SCENES}")
        num_problems, generator = len(problems), np.random.default_rng(seed)
        chosen = sorted(generator.choice(sorted(usable), min(len(usable), MAX_SCENES), replace=False))
        number = min(MAX_PATCHES, NUM_PATCHES // len(chosen))
        patches = [_patches(usable[scene], number, generator, problems) for scene in track(chosen, "reading")]
        if len(problems) == num_problems:
            return np.stack(patches), len(usable)


def _patches(
    files: list[Path], number: int, generator: np.random.Generator, problems: dict[Path, _Problem]
) -> np.ndarray:
    """Draws grey patches ``(number, P, P)`` in [0, 1] from the images of one scene.

    All images of the scene have the same probability. An image that cannot be used is added to the problems, and its
    patches are missing.
    """
    patches = [np.empty((0, PATCH, PATCH))]
    for file, share in zip(files, generator.multinomial(number, np.full(len(files), 1 / len(files))), strict=True):
        if not share:
            continue
        try:
            grey = np.tensordot(_GREY, to_float(read_image(file)), axes=1)  # (H, W)
        except ValueError as error:
            problems[file] = _Problem("cannot be read", str(error))
            continue
        try:
            patches.append(draw_patches(grey, share, PATCH, generator))
        except ValueError as error:
            problems[file] = _Problem(f"smaller than {PATCH}x{PATCH} pixels", f"{file}: {error}")
    return np.concatenate(patches)


def _report(title: str, problems: dict[Path, _Problem]) -> None:
    """Says how many images are left out, for which reasons, and names them."""
    if not problems:
        return
    counts = Counter(problem.kind for problem in problems.values())
    reasons = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    console.print(f"{title}: {len(problems)} images left out: {reasons}", markup=False)
    for file in sorted(problems)[:_SHOWN]:
        console.print(f"  {problems[file].text}", markup=False)
    if len(problems) > _SHOWN:
        console.print(f"  ... and {len(problems) - _SHOWN} more")


def _table(tests: dict[str, SymmetryTest], num_scenes: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("in %", "distance", "null median", f"null {1 - LEVEL:.0%}", "p", "verdict"):
        table.add_column(column, justify="left" if column in ("in %", "verdict") else "right", no_wrap=True)
    for name, test in tests.items():
        figures = [f"{100 * value:.2f}" for value in (test.distance, test.null_median, test.null_high)]
        table.add_row(name, *figures, f"{test.p:.3f}", _verdict(test, num_scenes))
    return table


def _verdict(test: SymmetryTest, num_scenes: int) -> str:
    if num_scenes < MIN_SCENES:
        return "too few scenes to say"
    return "differs" if test.p <= LEVEL else "no difference seen"


def _suggestion(tests: dict[str, SymmetryTest], num_scenes: int) -> list[str]:
    """Returns what the verdicts suggest for the search, in short lines."""
    quarter, half, mirror = (_verdict(tests[name], num_scenes) == "differs" for name in GROUPS)
    if num_scenes < MIN_SCENES:
        return [
            f"Fewer than {MIN_SCENES} scenes: chance alone reaches any figure here. Search lambda as usual, with",
            "equivariance.weight 0 and with train.rotations true and false among the trials.",
        ]
    if quarter or half:
        which = "quarter and half turns" if quarter and half else "quarter turns" if quarter else "half turns"
        lines = [
            f"Not symmetric under {which}. Include in the search: train.rotations false; equivariance.weight",
            "(lambda) from one decade lower; weight 0, the control. p says that there is a difference, the distance",
            "how large it is: with many scenes even a small one is seen, which need not matter.",
            _SCALE,
        ]
    else:
        lines = [
            "No difference seen under turns: search lambda (equivariance.weight) as usual. This does not show",
            f"symmetry: a difference smaller than the null's {1 - LEVEL:.0%} point would likely not be seen.",
        ]
    if mirror:
        lines.append("Mirrored images differ: mirroring as augmentation would change this data, too.")
    return lines


def _limits() -> list[str]:
    """Returns the meaning of the columns and the limits of the test, in short lines."""
    once_in = f"once in {1 / LEVEL:.0f} times"
    return [
        "",
        "distance  how much farther patches of two scenes are apart if one is turned; mean of four figures of a patch",
        "null      the same after turning whole scenes at random: what a symmetric set of this size would show",
        f"verdict   differs if p <= {LEVEL:g}: each row sees a difference where there is none {once_in}",
        "",
        "It cannot tell whether rotations or the penalty gain a single dB: only the search can, against weight 0.",
        "It looks at these images, not at degradation or task: probe degraded images, too (rain has a direction).",
        f"It looks at grey patches of {PATCH} pixels, wherever they lie: not at colour, nor at larger shapes.",
        "It takes scenes as independent: with several files of one scene it is too sure (--scene-pattern).",
    ]
