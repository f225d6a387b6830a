"""Pairing of degraded and clean files by their names, for the layouts of common data sets.

A layout (`Naming`) is two regular expressions that match whole relative paths with ``/``, ignoring case. The named
groups of both expressions identify a pair. Named groups of the degraded expression only (a variant, a scale)
distinguish the degraded images of one clean image. Rain800 has no such layout, because each of its files holds both
images side by side.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from components.data.readers.images import IMAGE_SUFFIXES

ALMOST_ALL = 0.9
"""Share of the names that a layout must explain to be chosen automatically."""

_SUFFIX = rf"(?:{'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))})"
LIKELY = 0.5
"""Share of the names that a layout must explain to be likely."""

_ABOVE = r"(?P<above>(?:.*?/)?)"  # the folders above the folders of the layout; lazy, so as few as possible
_SAMPLED = 300  # number of names by which a layout is excluded
_NAMED = 3  # number of files that an error message lists


@dataclass(frozen=True)
class Naming:
    """A layout of pairs.

    Attributes:
        degraded: regular expression of whole paths of degraded images.
        clean: regular expression of whole paths of clean images. Every group of it is also a group of ``degraded``.
        scene: groups that name the scene; the first group that is not empty is used. If there is none, the scene is the
            identification of the pair.
        spare: regular expression of files that belong to the layout but are in no pair.
        patterns: the compiled expressions.

    Raises:
        ValueError: an expression does not compile, or the groups cannot identify pairs.
    """

    degraded: str
    clean: str
    scene: tuple[str, ...] = ("scene",)
    spare: str = ""
    patterns: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            patterns = tuple(re.compile(text, re.IGNORECASE) for text in (self.degraded, self.clean, self.spare))
        except re.error as error:
            raise ValueError(f"naming: {error.pattern!r} is not a regular expression ({error})") from error
        object.__setattr__(self, "patterns", patterns)
        ours, theirs = (set(pattern.groupindex) for pattern in patterns[:2])
        if not theirs or not theirs <= ours:
            raise ValueError(
                f"naming: clean {self.clean!r} has the groups {sorted(theirs)}, degraded {self.degraded!r} "
                rf"{sorted(ours)}: name what a pair shares in both, for instance input/(?P<name>.+)\.png and "
                r"target/(?P<name>.+)\.png"
            )


@dataclass(frozen=True)
class Pair:
    """The names of a degraded image and of its clean image; several degraded images may share a clean image.

    Attributes:
        key: unique among the pairs.
        degraded: name of the degraded image.
        clean: name of the clean image.
        scene: name of the scene; pairs of one scene belong on one side of a split.
    """

    key: str
    degraded: str
    clean: str
    scene: str


@dataclass(frozen=True)
class PairedNames:
    """All pairs and the remaining names.

    Attributes:
        naming: name of the layout in `NAMINGS`, or "given".
        pairs: the pairs, sorted by the degraded name.
        unpaired: names that are in no pair, sorted.
    """

    naming: str
    pairs: list[Pair]
    unpaired: list[str]


def _naming(degraded: str, clean: str, scene: tuple[str, ...] = ("scene",), spare: str = "") -> Naming:
    spare = rf"(?:.*/)?{spare}{_SUFFIX}" if spare else ""
    return Naming(f"{_ABOVE}{degraded}{_SUFFIX}", f"{_ABOVE}{clean}{_SUFFIX}", scene, spare)


_RAIN_SPARE = r"rain(?:region|streak)-?\d+"

_SPECIFIC: dict[str, Naming] = {
    # SIDD: 0001_001_S6_.../0001_NOISY_SRGB_010.PNG. The second number of the folder is the scene, that of the file the
    # instance.
    "sidd": _naming(
        r"(?:\d{4}_(?P<scene>\d{3})_[^/]+/)?(?P<instance>\d{4})_NOISY_SRGB_(?P<frame>\d{3})",
        r"(?:\d{4}_(?P<scene>\d{3})_[^/]+/)?(?P<instance>\d{4})_GT_SRGB_(?P<frame>\d{3})",
        scene=("scene", "instance"),
    ),
    # PolyU: Canon5D2_5_160_3200_chair_14_real.JPG; the last number is a crop of the scene. CC has the same names.
    "polyu": _naming(r"(?P<scene>[^/]+?)(?:_(?P<crop>\d+))?_real", r"(?P<scene>[^/]+?)(?:_(?P<crop>\d+))?_mean"),
    "gopro": _naming(
        r"(?P<scene>GOPR[^/]+)/blur/(?P<frame>\d+)",
        r"(?P<scene>GOPR[^/]+)/sharp/(?P<frame>\d+)",
        spare=r"GOPR[^/]+/blur_gamma/\d+",
    ),
    "gopro_gamma": _naming(
        r"(?P<scene>GOPR[^/]+)/blur_gamma/(?P<frame>\d+)",
        r"(?P<scene>GOPR[^/]+)/sharp/(?P<frame>\d+)",
        spare=r"GOPR[^/]+/blur/\d+",
    ),
    # HIDE: train/1fromGOPR0950.png, test/test-close-ups/... and GT/1fromGOPR0950.png
    "hide": _naming(
        r"(?:train|test)/(?:test-[^/]+/)?(?P<frame>\d+)from(?P<scene>[^/]+)", r"GT/(?P<frame>\d+)from(?P<scene>[^/]+)"
    ),
    "realblur": _naming(r"(?P<scene>[^/]+)/blur/blur_(?P<frame>\d+)", r"(?P<scene>[^/]+)/gt/gt_(?P<frame>\d+)"),
    "reds": _naming(
        r"(?P<part>train|val)_blur(?:_\w+)?/(?P<scene>\d+)/(?P<frame>\d+)",
        r"(?P<part>train|val)_sharp/(?P<scene>\d+)/(?P<frame>\d+)",
    ),
    # Rain1400 (DDN): 14 rainy images of each clean one
    "rain1400": _naming(r"rainy_image/(?P<scene>\d+)_(?P<variant>\d+)", r"ground_truth/(?P<scene>\d+)"),
    # SPA-Data, training: real_world/VIDEO/VIDEO-FRAME/VIDEO-FRAME_X_Y.png, real_world_gt/VIDEO/VIDEO_X_Y.png
    "spa": _naming(
        r"real_world/(?P<scene>\d+)/(?:[^/]+/)?(?P=scene)-(?P<frame>\d+)_(?P<x>\d+)_(?P<y>\d+)",
        r"real_world_gt/(?P<scene>\d+)/(?P=scene)_(?P<x>\d+)_(?P<y>\d+)",
    ),
    # SPA-Data with a suffix on one side: rain/000_rain.png, norain/000.png; in its test set 000.png and 000gt.png
    "spa_rain": _naming(r"rain/(?P<name>.+)_rain", r"(?:norain|gt)/(?P<name>.+?)(?:_?gt)?"),
    "spa_gt": _naming(r"rain/(?P<name>.+)", r"(?:norain|gt)/(?P<name>.+)_?gt"),
    # Rain100 and Rain200: rain/rain-001.png, norain/norain-001.png; rain/X2/norain-1x2.png; or rainy/ in the folder of
    # the clean images; or all images in one folder
    "rain100": _naming(
        r"(?:rainy?|input)/(?P<scale>X2/)?(?:no)?rain-?(?P<number>\d+)(?:x2)?",
        r"(?:norain|target|gt|groundtruth)/norain-?(?P<number>\d+)",
    ),
    "rain100_inside": _naming(r"rainy?/rain-?(?P<number>\d+)", r"norain-?(?P<number>\d+)"),
    "rain200": _naming(r"rain-?(?P<number>\d+)", r"norain-?(?P<number>\d+)", spare=_RAIN_SPARE),
    "rain12": _naming(r"(?P<number>\d+)_in", r"(?P<number>\d+)_GT"),
    "raindrop": _naming(r"data/(?P<number>\d+)_rain", r"gt/(?P<number>\d+)_clean"),
    # DIV2K and the benchmarks: DIV2K_train_LR_bicubic/X2/0001x2.png, DIV2K_train_HR/0001.png; LR/0001.png, HR/0001.png
    "low_resolution": _naming(
        r"(?P<part>[^/]*?)_?LR(?P<track>[^/]*)/(?P<scale>X[\d.]+/)?(?P<name>.+?)(?:x\d)?",
        r"(?P<part>[^/]*?)_?HR/(?P<name>.+?)",
    ),
    "low_resolution_scale": _naming(r"(?P<scale>X[\d.]+)/(?P<name>.+?)(?:x\d)?", r"HR/(?P<name>.+?)"),
    # image_SRF_2/img_001_SRF_2_LR.png and ..._HR.png
    "low_resolution_beside": _naming(r"(?P<name>.+)_LR", r"(?P<name>.+)_HR"),
}

# Words for the degraded and the clean image, used as folders (noisy/1.png, clean/1.png) or as suffixes of the names
# (1_noisy.png, 1_clean.png).
_WORDS = (
    "noisy/clean noisy/gt input/target inputs/targets input/gt input/groundtruth degraded/clean lq/gt lq/hq low/high "
    "blur/sharp blur/gt rain/norain rain/clean rain/gt rainy/clean rainy/gt hazy/clear hazy/gt"
)
_GENERIC: dict[str, Naming] = {}
for _words in _WORDS.split():
    _bad, _good = _words.split("/")
    _GENERIC[_words] = _naming(rf"{_bad}/(?P<name>.+)", rf"{_good}/(?P<name>.+)")
    _GENERIC[f"_{_bad}/_{_good}"] = _naming(rf"(?P<name>.+)[_-]{_bad}", rf"(?P<name>.+)[_-]{_good}")

NAMINGS: dict[str, Naming] = _SPECIFIC | _GENERIC
"""The known layouts, the more specific ones first."""


def find_pairs(names: Iterable[str], naming: str | Naming = "auto") -> PairedNames:
    """Find the pairs among relative paths of image files.

    Args:
        names: paths with ``/``; the order does not matter.
        naming: a name in `NAMINGS`, a `Naming`, or "auto". "auto" chooses the layout that explains the largest share of
            the names, and the more specific one among equals. The share must be at least `ALMOST_ALL`.

    Raises:
        ValueError: the layout is unknown, or a pair has two clean images. With "auto": no layout fits, or two general
            layouts (``input/target``, ``low/high``) fit equally well and give different pairs.
    """
    ordered = sorted(set(names))
    if isinstance(naming, Naming):
        return _required(_paired("given", naming, ordered), ordered)
    if naming == "auto":
        return _recognised(ordered)
    if naming not in NAMINGS:
        raise ValueError(f"naming {naming}: unknown; use auto, a pair of patterns, or one of {', '.join(NAMINGS)}")
    return _required(_paired(naming, NAMINGS[naming], ordered), ordered)


def likely_pairs(names: Iterable[str]) -> PairedNames | None:
    """Return the pairs of the layout that explains most names; None if its share of the names is below `LIKELY`."""
    share, best = _best(_candidates(sorted(set(names))))
    return best if share >= LIKELY else None


def _candidates(names: Sequence[str]) -> list[tuple[float, PairedNames]]:
    """Return (share of the names that it explains, its pairs) for each layout that has pairs."""
    found: list[tuple[float, PairedNames]] = []
    sample = names[:: len(names) // _SAMPLED + 1]
    for title, naming in NAMINGS.items():
        known = sum(any(pattern.fullmatch(name) for pattern in naming.patterns) for name in sample)
        if known < len(sample) / 2:  # most layouts match no name; with a million names, testing all takes minutes
            continue
        try:
            paired = _paired(title, naming, names)
        except ValueError:  # a pair has two clean or two degraded files, so this is not the layout
            continue
        if paired.pairs:
            spare = sum(naming.patterns[2].fullmatch(name) is not None for name in paired.unpaired)
            found.append((1 - (len(paired.unpaired) - spare) / len(names), paired))
    return found


def _best(found: Sequence[tuple[float, PairedNames]]) -> tuple[float, PairedNames]:
    return max(found, key=lambda candidate: candidate[0], default=(0.0, PairedNames("none", [], [])))


def _recognised(names: Sequence[str]) -> PairedNames:
    found = _candidates(names)
    share, best = _best(found)
    if share < ALMOST_ALL:
        nearest = f"the nearest, {best.naming}, leaves {_listed(best.unpaired)}" if best.pairs else _listed(names)
        raise ValueError(
            f"no known naming pairs these {len(names)} images: {nearest}. Give the patterns of your names, "
            r"for instance degraded input/(?P<name>.+)\.png and clean target/(?P<name>.+)\.png, or take files away"
        )
    if best.naming in _GENERIC:
        for other_share, other in found:
            if other_share == share and {(p.degraded, p.clean) for p in other.pairs} != {
                (p.degraded, p.clean) for p in best.pairs
            }:
                raise ValueError(
                    f"two namings fit equally well: {best.naming} ({_shown(best.pairs[0])}) and {other.naming} "
                    f"({_shown(other.pairs[0])}): say which"
                )
    return best


def _required(paired: PairedNames, names: Sequence[str]) -> PairedNames:
    if not paired.pairs:
        raise ValueError(f"naming {paired.naming}: pairs none of the {len(names)} images: {_listed(names)}")
    return paired


def _paired(title: str, naming: Naming, names: Sequence[str]) -> PairedNames:
    """Pair the names by a layout; a name that matches both expressions counts as clean."""
    degraded_pattern, clean_pattern, _ = naming.patterns
    clean: dict[tuple[str, ...], str] = {}
    degraded: dict[str, dict[str, str]] = {}
    for name in names:
        if match := clean_pattern.fullmatch(name):
            shared = tuple(_groups(match).values())
            if shared in clean:
                raise ValueError(f"naming {title}: {clean[shared]} and {name} are clean images of one pair; keep one")
            clean[shared] = name
        elif match := degraded_pattern.fullmatch(name):
            degraded[name] = _groups(match)
    pairs: dict[str, Pair] = {}
    for name, groups in degraded.items():
        shared = tuple(groups[group] for group in clean_pattern.groupindex)
        if shared in clean:
            key = _joined(groups.values())
            if key in pairs:
                raise ValueError(f"naming {title}: {pairs[key].degraded} and {name} are both pair {key}; rename one")
            scenes = (groups[group] for group in naming.scene if groups.get(group))
            pairs[key] = Pair(key, name, clean[shared], next(scenes, _joined(shared)))
    used = {name for pair in pairs.values() for name in (pair.degraded, pair.clean)}
    return PairedNames(title, list(pairs.values()), [name for name in names if name not in used])


def _groups(match: re.Match[str]) -> dict[str, str]:
    """Return the named groups in the order of the expression; a group that did not participate is empty."""
    return {group: value or "" for group, value in match.groupdict().items()}


def _joined(values: Iterable[str]) -> str:
    return "/".join(value.strip("/") for value in values if value)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown or "none"


def _shown(pair: Pair) -> str:
    return f"{pair.degraded} with {pair.clean}"
