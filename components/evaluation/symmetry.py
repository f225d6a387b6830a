"""Symmetry tests of a set of images: distances between patches and rotated or mirrored patches.

Legend: S scenes, n patches per scene, P side of a patch in pixels, F feature vectors of a patch, K the order of the
cyclic group ``{e, h, h^2, ...}`` that a transform h generates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

# A transform is (number of counter-clockwise quarter turns, whether it first mirrors left-right). 1 and 3 quarter turns
# are one test: the distance from x to y rotated once equals the distance from x rotated three times to y.
Transform = tuple[int, bool]
GROUPS: Mapping[str, tuple[Transform, ...]] = MappingProxyType(
    {
        "quarter turns": ((0, False), (1, False), (2, False), (3, False)),
        "half turn": ((0, False), (2, False)),
        "mirrored": ((0, False), (0, True)),
    }
)
LEVEL = 0.01  # significance level: probability that a test finds a difference where there is none
# 8 scenes have 2^7 distinct relative transforms under a transform of order 2. With fewer, no p value reaches LEVEL.
MIN_SCENES = 8

_CONTRAST = 0.01  # in units of [0, 1]: gradients and textures with less contrast have a lower weight
_NUM_DIRECTIONS = 8  # directions of the spectrum, 22.5 degrees each


@dataclass(frozen=True)
class SymmetryTest:
    """Result of the test of one transform, as fractions of the mean distance between patches.

    Attributes:
        distance: increase of the distance between patches of different scenes when one of them is transformed. It is 0
            on average for a symmetric set, and may be negative by chance.
        null_median: median of the same statistic when whole scenes are transformed at random (the null distribution).
        null_high: value that the statistic exceeds with probability ``LEVEL`` under the null distribution.
        p: p value of ``distance`` under the null distribution; ``p <= LEVEL`` exactly if ``distance > null_high``.
    """

    distance: float
    null_median: float
    null_high: float
    p: float


def draw_patches(image: np.ndarray, number: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """Return patches ``(n, P, P)`` at uniformly random positions of an image.

    Args:
        image: ``(H, W)``.
        number: number of patches, n.
        size: side of a patch, P.
        generator: source of the random positions.

    Raises:
        ValueError: the image is smaller than a patch.
    """
    height, width = image.shape
    if min(height, width) < size:
        raise ValueError(f"{width}x{height} pixels, smaller than a patch of {size}x{size}")
    tops = generator.integers(height - size + 1, size=number)
    lefts = generator.integers(width - size + 1, size=number)
    return np.lib.stride_tricks.sliding_window_view(image, (size, size))[tops, lefts]


def transformed(patches: Tensor, transform: Transform) -> Tensor:
    """Mirror patches ``(..., P, P)`` left-right if the transform says so, then rotate them by its quarter turns."""
    turns, is_mirrored = transform
    return torch.rot90(patches.flip(-1) if is_mirrored else patches, turns, dims=(-2, -1))


def patch_figures(patches: Tensor) -> dict[str, Tensor]:
    """Compute four feature vectors of each patch; their distances are invariant if both patches are transformed.

    With ``c = 0.01``, the gradient ``(u, v)`` by differences in 2 x 2 windows and ``g = mean(u^2 + v^2) + c^2``:

    - ``slope``: ``(mean u, mean v) / sqrt(g)``. It detects, for example, light from above.
    - ``skew``: ``(mean u^3, mean v^3) / g^1.5``. It detects edges that rise fast and fall slowly.
    - ``spectrum``: for the patch under a Hann window, the power in each of 8 directions divided by the total power plus
      the power of white noise of standard deviation c; separately below and above half of the Nyquist frequency. It
      detects edges and stripes.
    - ``pixels``: the patch minus its mean, divided by its standard deviation ``sqrt(variance + c^2)``. It detects all
      other differences, with low sensitivity.

    Quarter turns and mirroring permute the entries of each vector or change their sign.

    Args:
        patches: ``(M, P, P)`` in [0, 1], floating point.

    Returns:
        ``(M, D)`` each; D differs between the vectors.
    """
    centred = patches - patches.mean(dim=(1, 2), keepdim=True)
    falling = centred[:, 1:, 1:] - centred[:, :-1, :-1]  # (M, P-1, P-1): difference along one diagonal
    rising = centred[:, :-1, 1:] - centred[:, 1:, :-1]  # difference along the other diagonal
    gradient = torch.stack([falling + rising, falling - rising], dim=1) / 2  # (M, 2, P-1, P-1)
    size = (gradient.square().sum(1).mean(dim=(1, 2)) + _CONTRAST**2).sqrt()[:, None]  # (M, 1)
    deviation = (centred.square().mean(dim=(1, 2)) + _CONTRAST**2).sqrt()[:, None]  # (M, 1)
    return {
        "slope": gradient.mean(dim=(2, 3)) / size,
        "skew": gradient.pow(3).mean(dim=(2, 3)) / size**3,
        "spectrum": _spectrum(centred),
        "pixels": centred.flatten(1) / deviation,
    }


def _spectrum(patches: Tensor) -> Tensor:
    """Compute the share of each direction in the power, first of the low, then of the high frequencies: ``(M, 16)``."""
    side = patches.shape[-1]
    hann = torch.hann_window(side + 2, periodic=False, dtype=patches.dtype)[1:-1]
    window = hann[:, None] * hann  # (P, P)
    power = torch.fft.fft2(patches * window).abs().square()  # (M, P, P)
    frequency = torch.fft.fftfreq(side, dtype=torch.float64)  # cycles per pixel
    rows, columns = torch.meshgrid(frequency, frequency, indexing="ij")
    radius = torch.hypot(rows, columns)
    # No frequency lies on the border of two directions, because the tangents of 11.25 + 22.5 k degrees are irrational.
    direction = (torch.atan2(rows, columns) * _NUM_DIRECTIONS / torch.pi).round().long() % _NUM_DIRECTIONS
    shares = []
    for low, high in ((0.0, 0.25), (0.25, 0.5)):
        is_in_band = (radius > low) & (radius <= high) & (torch.maximum(rows.abs(), columns.abs()) < 0.5)
        bins = [is_in_band & (direction == k) for k in range(_NUM_DIRECTIONS)]
        # (M, 8): means; in very small patches some directions have no frequency
        means = torch.stack([power[:, of].sum(1) / max(int(of.sum()), 1) for of in bins], dim=1)
        shares.append(means / (means.sum(1, keepdim=True) + _CONTRAST**2 * window.square().sum()))
    return torch.cat(shares, dim=1)


def scene_distances(patches: Tensor, transforms: Sequence[Transform]) -> np.ndarray:
    """Compute the mean distances between the patches of each pair of scenes; the second scene is transformed.

    ``out[h, f, i, j] = mean_{a, b} |feature_f(x_ia) - feature_f(h x_jb)|``.

    Args:
        patches: ``(S, n, P, P)``, floating point; float64 keeps equal patches at distance 0.
        transforms: the transforms h.

    Returns:
        ``(len(transforms), F, S, S)`` float64.
    """
    num_scenes, number = patches.shape[:2]
    own = patch_figures(patches.flatten(0, 1))
    result = []
    for transform in transforms:
        others = patch_figures(transformed(patches.flatten(0, 1), transform))
        means = []
        for name, figure in own.items():
            distances = torch.cdist(figure, others[name])  # (S n, S n)
            means.append(distances.view(num_scenes, number, num_scenes, number).mean(dim=(1, 3)).double())
        result.append(torch.stack(means))
    return torch.stack(result).numpy()


def energy_distance(distances: np.ndarray) -> float:
    """Compute the relative, unbiased energy distance between scenes and transformed scenes, averaged over the features.

    ``mean_f [mean_{i != j} (d_f(x_i, h x_j) - d_f(x_i, x_j)) / mean_{i != j, k} d_f(x_i, h^k x_j)]``. This is half the
    energy distance ``2 E|X - hY| - E|X - Y| - E|hX - hY|``, because h preserves distances. Patches of one scene are
    never compared with each other.

    Args:
        distances: ``(K, F, S, S)`` of `scene_distances` for the transforms ``e, h, h^2, ...``.

    Raises:
        ValueError: fewer than 2 scenes.

    Source: Székely, Rizzo, *Energy statistics*, J. Stat. Plan. Inference 143, 2013.
    """
    return float(_contrasts(distances)[0].sum())


def symmetry_test(distances: np.ndarray, num_draws: int = 999, seed: int = 0) -> SymmetryTest:
    """Test whether `energy_distance` is larger than for the same scenes, each transformed at random.

    The null hypothesis is that a scene and its transformed scene are equally likely. The statistic of the given scenes
    then has the same distribution as the statistic after each scene is transformed by a random power of h. This holds
    for any number of scenes. Hence ``p = (1 + #{draws as large}) / (1 + #draws)`` is at most q with probability q or
    less. Scenes are assumed to be independent. No new distances are computed, because
    ``d(h^a x_i, h h^b x_j) = d(x_i, h^(1 + b - a) x_j)``.

    Args:
        distances: ``(K, F, S, S)``, as for `energy_distance`.
        num_draws: number of random draws; at least 99, otherwise p cannot reach ``LEVEL``.
        seed: seed of the draws.

    Raises:
        ValueError: fewer than 2 scenes.

    Source: Lehmann, Romano, *Testing Statistical Hypotheses*, 2005, section 15.2 (randomisation tests).
    """
    order, _, num_scenes, _ = distances.shape
    contrasts = _contrasts(distances)
    powers = np.random.default_rng(seed).integers(order, size=(num_draws, num_scenes))
    members = np.eye(order)[powers].transpose(0, 2, 1)  # (draws, K, S): 1 where scene i has power a
    draws = np.zeros(num_draws)
    for difference in range(order):  # power of scene j minus power of scene i
        partners = np.roll(members, -difference, axis=1)  # (draws, K, S): 1 where scene j has power a + difference
        draws += np.einsum("mas,mas->m", members @ contrasts[difference], partners)
    distance = float(contrasts[0].sum())
    tolerance = 1e-12  # the same transform of all scenes changes the order of the sum only
    p = (1 + np.count_nonzero(draws >= distance - tolerance)) / (1 + num_draws)
    high = np.sort(draws)[-int(LEVEL * (1 + num_draws))]
    return SymmetryTest(distance, float(np.median(draws)), float(high), float(p))


def symmetry_tests(patches: np.ndarray, seed: int = 0) -> dict[str, SymmetryTest]:
    """Run `symmetry_test` for each of ``GROUPS``.

    Args:
        patches: ``(S, n, P, P)`` in [0, 1].
        seed: seed of the random transforms.

    Returns:
        Name of the group -> result.

    Raises:
        ValueError: fewer than 2 scenes, or all patches are constant.
    """
    if not np.ptp(patches, axis=(2, 3)).any():
        raise ValueError("every patch is of one grey: there is nothing to turn")
    transforms = sorted({transform for group in GROUPS.values() for transform in group})
    distances = scene_distances(torch.from_numpy(patches).double(), transforms)
    return {
        name: symmetry_test(distances[[transforms.index(transform) for transform in group]], seed=seed)
        for name, group in GROUPS.items()
    }


def _contrasts(distances: np.ndarray) -> np.ndarray:
    """Compute the contribution of each pair to the energy distance, ``(K, S, S)``; at k, ``h^k`` acts on scene j."""
    num_scenes = distances.shape[-1]
    if num_scenes < 2:
        raise ValueError(f"{num_scenes} scene: scenes are compared with each other, give at least 2 (better 20)")
    others = ~np.eye(num_scenes, dtype=bool)
    means = distances[..., others].mean(axis=(0, 2))  # (F,)
    scale = np.where(means > 0, means, 1)[:, None, None]  # a feature that is 0 everywhere contributes nothing
    relative = (distances / scale).mean(axis=1)  # (K, S, S)
    return np.where(others, np.roll(relative, -1, axis=0) - relative, 0) / others.sum()
