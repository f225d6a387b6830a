"""The kernels of group convolutions are those of the textbook, and their layers keep the fields of the regulariser."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.equivariance.groups import Group, group_named
from components.networks.group.convolution import (
    ComputedConvolution,
    FieldBatchNorm,
    GroupConvolution,
    LiftingConvolution,
    ProjectionConvolution,
)
from tests.components.equivariance.exact import random_images
from tests.components.equivariance.exact_groups import C2 as PLANE_C2
from tests.components.equivariance.exact_groups import C4 as PLANE_C4
from tests.components.equivariance.exact_groups import D4 as PLANE_D4
from tests.components.equivariance.exact_groups import PlaneGroup

pytestmark = pytest.mark.unit

GROUPS = {"C2": PLANE_C2, "C4": PLANE_C4, "D4": PLANE_D4}
"""Name -> the group of the oracle, whose elements are found by trying them on an array."""


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("name", GROUPS)
def test_the_kernels_are_those_of_the_textbook(name: str, size: int) -> None:
    group, plane = group_named(name), GROUPS[name]
    lifting = LiftingConvolution(3, 2, size, group).double()
    lifting.weight.data = random_images(2, 3, size, size, seed=0)[:, :, None]
    torch.testing.assert_close(lifting.computed_kernel(), plane.lifting_kernel(2, 3, size, seed=0), rtol=0, atol=0)
    between = GroupConvolution(3, 2, size, group).double()
    between.weight.data = random_images(2, 3, group.order, size, size, seed=1)
    torch.testing.assert_close(between.computed_kernel(), plane.group_kernel(2, 3, size, seed=1), rtol=0, atol=0)
    projection = ProjectionConvolution(3, 2, size, group).double()
    projection.weight.data = random_images(3, 2, size, size, seed=2).transpose(0, 1)
    torch.testing.assert_close(projection.computed_kernel(), plane.projection_kernel(2, 3, size, 2), rtol=0, atol=0)


def layers(group: Group, size: int = 3) -> dict[str, tuple[ComputedConvolution, str, str]]:
    """Name -> the layer, the field of its input, the field of its output (after PixelShuffle of its scale)."""
    torch.manual_seed(0)
    return {
        "lifting": (LiftingConvolution(3, 5, size, group).double(), "trivial", "regular"),
        "group": (GroupConvolution(3, 5, size, group).double(), "regular", "regular"),
        "projection": (ProjectionConvolution(3, 5, size, group).double(), "regular", "trivial"),
        **{
            f"projection {scale}": (ProjectionConvolution(3, 5, size, group, scale).double(), "regular", "trivial")
            for scale in (2, 3, 4)
        },
    }


def acted(plane: PlaneGroup, maps: Tensor, element: int, field: str) -> Tensor:
    return plane.regular(maps, element) if field == "regular" else plane.spatial(maps, element)


@pytest.mark.parametrize("shape", [(6, 6), (7, 7), (5, 8), (1, 1)])
@pytest.mark.parametrize("kind", list(layers(group_named("C2"))))
@pytest.mark.parametrize("name", GROUPS)
def test_a_layer_keeps_its_fields_whatever_its_weights(name: str, kind: str, shape: tuple[int, int]) -> None:
    plane = GROUPS[name]
    layer, field_in, field_out = layers(group_named(name))[kind]
    maps = random_images(2, layer.in_channels, *shape)
    scale = getattr(layer, "scale", 1)

    def run(values: Tensor) -> Tensor:
        return F.pixel_shuffle(layer(values), scale)

    for element in range(1, plane.order):
        expected = acted(plane, run(maps), element, field_out)
        torch.testing.assert_close(run(acted(plane, maps, element, field_in)), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["lifting", "group"])
def test_the_channels_of_a_field_differ(kind: str) -> None:
    """Equal ones would be symmetric kernels, which see no direction."""
    layer, _, _ = layers(group_named("D4"))[kind]
    maps = layer(random_images(1, layer.in_channels, 9, 9))
    elements = maps.unflatten(1, (-1, 8))  # (1, F t, H, W) -> (1, F, t, H, W)
    for other in range(1, 8):
        assert (elements[:, :, 0] - elements[:, :, other]).square().mean() > 0.1 * elements.square().mean()


def test_an_image_is_no_regular_field_of_the_other_direction() -> None:
    """The test above would notice a shift of the wrong sign."""
    layer, _, _ = layers(group_named("C4"))["lifting"]
    maps = random_images(1, 3, 6, 6)
    found = layer(maps.rot90(1, (2, 3)))
    assert (found - PLANE_C4.regular(layer(maps), 1)).abs().max() < 1e-13
    wrong = PLANE_C4.regular(layer(maps), 1).unflatten(1, (-1, 4)).roll(-2, 2).flatten(1, 2)
    assert (found - wrong).abs().max() > 0.1


@pytest.mark.parametrize("name", ["C4", "D4"])
def test_fields_are_normalised_by_statistics_over_images_elements_and_pixels(name: str) -> None:
    """Oracle: the definition, field by field."""
    order = group_named(name).order
    norm, maps = FieldBatchNorm(3, order).double(), random_images(2, 3 * order, 5, 6) * 3 + 1
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    found = norm(maps)
    for field in range(3):
        own = maps[:, order * field : order * (field + 1)]
        expected = (own - own.mean()) / (own.var(unbiased=False) + 1e-5).sqrt() * norm.weight[field] + norm.bias[field]
        torch.testing.assert_close(found[:, order * field : order * (field + 1)], expected)
        assert norm.running_mean is not None
        torch.testing.assert_close(norm.running_mean[field], 0.1 * own.mean())


@pytest.mark.parametrize("training", [True, False])
def test_normalised_fields_are_fields(training: bool) -> None:
    norm, maps = FieldBatchNorm(3, 8).double().train(training), random_images(2, 24, 5, 6)
    for element in range(1, 8):
        expected = PLANE_D4.regular(norm(maps), element)
        torch.testing.assert_close(norm(PLANE_D4.regular(maps, element)), expected, rtol=0, atol=1e-12)
        norm.reset_running_stats()


def test_a_new_layer_has_weights_as_large_as_a_plain_convolution_of_as_many_channels() -> None:
    for name, (layer, _, _) in layers(group_named("C4"), size=5).items():
        plain = nn.Conv2d(layer.in_channels, layer.out_channels, 5)
        assert layer.weight.std().item() == pytest.approx(plain.weight.std().item(), rel=0.1), name
        assert 4 * layer.weight.numel() == plain.weight.numel(), name


def test_layers_without_bias_have_none() -> None:
    group = group_named("C4")
    for layer in (
        LiftingConvolution(3, 2, 3, group, bias=False),
        GroupConvolution(3, 2, 3, group, bias=False),
        ProjectionConvolution(3, 2, 3, group, bias=False),
    ):
        assert layer.bias is None
        assert layer.computed_bias() is None
        assert [name for name, _ in layer.named_parameters()] == ["weight"]


@pytest.mark.parametrize(
    ("size", "group", "message"),
    [(2, "C4", "kernel_size: 2: use an odd number"), (3, "C8", "C8 turns by angles .*use C2, C4 or D4")],
)
def test_impossible_layers_are_refused(size: int, group: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupConvolution(2, 2, size, group_named(group))
