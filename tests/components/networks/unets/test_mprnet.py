"""MPRNet: its patches, its shared slope, its stages, and what forbids equivariance in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from components.equivariance import EquivarianceRegularizer, diagnose, equivariance_error, projected
from components.networks import build_network
from components.networks.unets.mprnet import MPRNet, cut, join
from tests.components.networks.fingerprints import fingerprint as fingerprints
from tests.components.networks.small import random, stack

pytestmark = pytest.mark.unit

BANDS = ("stage1_decoder.", "sam12.", "shallow_feat2.", "concat12", "stage2_encoder.")
QUARTERS = ("shallow_feat1.", "stage1_encoder.")


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (2, 1), (1, 2), (1, 1)])
def test_patches_are_those_of_slices_in_the_order_of_images_rows_and_columns(rows: int, columns: int) -> None:
    maps = torch.rand(3, 2, 4 * rows, 5 * columns)
    slices = [
        image[:, 4 * i : 4 * i + 4, 5 * j : 5 * j + 5] for image in maps for i in range(rows) for j in range(columns)
    ]
    assert torch.equal(cut(maps, rows, columns), torch.stack(slices))
    assert torch.equal(join(torch.stack(slices), rows, columns), maps)


def test_all_blocks_share_one_slope_which_has_a_name_in_each() -> None:
    network = MPRNet()
    slopes = {id(module) for module in network.modules() if isinstance(module, nn.PReLU)}
    assert len(slopes) == 1
    assert len(list(network.named_parameters())) == len(fingerprints.load("MPRNet_derain")["parameters"]) == 262
    assert len(network.state_dict()) == 316
    assert sum(key.endswith("body.1.weight") for key in network.state_dict()) == 55
    assert float(network.shallow_feat1[1].body[1].weight.detach()) == 0.25  # type: ignore[index, union-attr]


def test_in_training_it_gives_the_images_of_the_stages_three_two_and_one() -> None:
    network = random("mprnet").train()
    image = stack(network, 11, 18)
    outputs = network(image)
    wide = np.pad(image.numpy(), [(0, 0), (0, 0), (0, 5), (0, 6)], mode="reflect")
    expected = [each[..., :11, :18] for each in network.published(torch.from_numpy(wide))]
    assert isinstance(outputs, tuple)
    assert len(outputs) == len(expected) == 3
    for found, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert network.output_weights == ()  # equal weights
    torch.testing.assert_close(network.eval()(image), expected[0], rtol=0, atol=1e-12)
    assert isinstance(random("mprnet", supervised="last").train()(image), Tensor)


@pytest.mark.parametrize(("size", "wide"), [((1, 1), (16, 16)), ((9, 16), (16, 16)), ((17, 40), (24, 40))])
def test_an_image_is_reflected_below_and_on_the_right(size: tuple[int, int], wide: tuple[int, int]) -> None:
    network = random("mprnet")
    image = stack(network, *size)
    around = [(0, 0), (0, 0), *((0, b - a) for a, b in zip(size, wide, strict=True))]
    expected = network.published(torch.from_numpy(np.pad(image.numpy(), around, mode="reflect")))[0]
    torch.testing.assert_close(network(image), expected[..., : size[0], : size[1]], rtol=0, atol=1e-12)


def test_the_stages_see_quarters_bands_and_the_whole_image() -> None:
    """A change in one quarter reaches the maps of stage 1's encoder in this quarter alone, and so on."""
    network, image = random("mprnet"), stack(random("mprnet"), 32, 48)
    other = image.clone()
    other[..., :16, :24] += 0.1 * torch.rand(16, 24, dtype=torch.float64)
    seen: dict[str, list[Tensor]] = {}
    for name in ("stage1_encoder.encoder_level1", "stage1_decoder.decoder_level1", "stage3_orsnet.orb1"):
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: seen.setdefault(name, []).append(output)
        )
    network(torch.cat((image, other)))
    encoder, decoder, last = (maps[0] for maps in seen.values())
    assert [not torch.equal(encoder[k], encoder[4 + k]) for k in range(4)] == [True, False, False, False]
    assert [not torch.equal(decoder[k], decoder[2 + k]) for k in range(2)] == [True, False]
    assert bool((decoder[0] != decoder[2])[:, :, 24:].any())  # the right half of the upper band, too
    assert bool((last[0] != last[1])[:, 16:, 24:].any())


def test_the_diagnosis_blames_the_bands_and_not_the_quarters() -> None:
    network = random("mprnet")
    found = diagnose(network, stack(network, 32, 32))
    assert found.can_be_exact is False
    assert {incompatibility.kind for _, incompatibility in found.fatal} == {"patches"}
    assert all("2x1 patches of each image" in incompatibility.reason for _, incompatibility in found.fatal)
    layers = {layer.name: layer for layer in found.layers}
    in_bands = {name for name in layers if name.startswith(BANDS)}
    assert {where for where, _ in found.fatal} == in_bands
    for name, layer in layers.items():
        notes = [note for note in layer.notes if "patches" in note]
        patches = "2x2" if name.startswith(QUARTERS) else "2x1" if name in in_bands else None
        assert notes == ([f"runs on {patches} patches of each image, which are joined to be compared"] * bool(patches))
    assert found.fitting_size is None
    assert "the output cannot be exactly equivariant under C4 at 32x32 because of patches" in found.verdict


def test_projected_weights_make_the_quarters_exact_and_half_turns_of_all_and_leave_the_bands() -> None:
    network = random("mprnet")
    images = stack(network, 32, 32)
    errors = equivariance_error(projected(network, images), images)
    assert max(value for name, value in errors.items() if name.startswith(QUARTERS)) < 1e-12
    assert errors["output"] > 1e-3
    assert errors["stage1_decoder.decoder_level3.0.body.0"] > 1e-3
    half_turns = projected(network, images, "C2")
    assert equivariance_error(half_turns, images, group="C2")["output"] < 1e-12
    assert diagnose(network, images, group="C2").can_be_exact


def test_the_whole_image_in_stage_2_can_be_exact_at_sizes_that_need_no_extension() -> None:
    network = random("mprnet", stage2="whole")
    assert diagnose(network, stack(network, 24, 24)).can_be_exact
    exact = projected(network, stack(network, 24, 24))
    assert equivariance_error(exact, stack(network, 24, 40))["output"] < 1e-12
    assert equivariance_error(exact, stack(network, 20, 20))["output"] > 1e-6


def test_the_regulariser_compares_every_layer_on_the_whole_image() -> None:
    """All but those whose channels do not divide, inside the attentions and at the images of the stages, and but for
    the attentions of the bands: two bands have two means, above each other.
    """
    network = random("mprnet").train()
    regularizer = EquivarianceRegularizer(network, pairing="append", pair_fraction=1.0)
    images = stack(network, 16, 16, batch=2)
    for _ in range(2):
        batch = regularizer.pair(images, images, element=1)
        network(batch.inputs)
        regularizer.penalty()
    layers = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    undivided = {name for name in layers if name.endswith("CA.conv_du.0") and "level3" not in name}
    undivided |= {"sam12.conv2", "sam23.conv2"}
    of_bands = {name for name in layers - undivided if "CA.conv_du" in name and name.startswith(BANDS)}
    assert of_bands
    reasons = regularizer.skipped
    assert {name for name, reason in reasons.items() if "do not divide by 4" in reason} == undivided
    assert {name for name, reason in reasons.items() if reason.startswith("its maps of square images are 2x1")} == (
        of_bands
    )
    assert set(reasons) == undivided | of_bands
    assert set(regularizer.layer_penalties()) == layers - undivided - of_bands


def test_without_reduction_every_block_has_a_channel_in_its_attention() -> None:
    network = build_network("mprnet", width=2, unet_growth=0, orsnet_growth=0, orsnet_blocks=1, reduction=4)
    assert network.shallow_feat1[1].CA.conv_du[0].out_channels == 1  # type: ignore[index, union-attr]
