"""Restormer: what its fingerprint cannot say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from components.equivariance import EquivarianceRegularizer, diagnose
from components.equivariance.layers.spec import named_layers, requested_fields
from components.networks import build_network, layer_choices
from tests.components.networks.small import random, stack

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("settings", "hidden"),
    [
        ({}, [127, 255, 510, 1021]),
        ({"hidden_multiple": 4}, [128, 256, 512, 1024]),
        ({"hidden_multiple": 8, "width": 8}, [24, 48, 88, 176]),  # of 21, 42, 85, 170
        ({"expansion": 2, "hidden_multiple": 4}, [96, 192, 384, 768]),
    ],
)
def test_the_feed_forward_layers_of_restormer_have_the_published_width_or_a_multiple(
    settings: dict[str, Any], hidden: list[int]
) -> None:
    few = {"blocks": (1, 1, 1, 1), "refinement_blocks": 1}
    network = build_network("restormer", **{**few, **settings})
    levels = (network.encoder_level1, network.encoder_level2, network.encoder_level3, network.latent)
    assert [level[0].ffn.project_out.in_channels for level in levels] == hidden
    assert [level[0].ffn.project_in.out_channels for level in levels] == [2 * number for number in hidden]


def test_the_norms_of_restormer_without_a_bias_do_not_subtract_the_mean() -> None:
    maps = torch.rand(2, 8, 3, 4, dtype=torch.float64)
    variance = maps.var(dim=1, keepdim=True, correction=0)
    for norm, expected in (("bias_free", maps), ("with_bias", maps - maps.mean(dim=1, keepdim=True))):
        body = random("restormer", norm=norm).encoder_level1[0].norm1.body
        nn.init.ones_(body.weight)
        bias = 0 if body.bias is None else body.bias[:, None, None]
        torch.testing.assert_close(body(maps), expected / (variance + 1e-5).sqrt() + bias)


def test_the_layers_of_eqreg_t_are_those_that_its_released_code_penalises() -> None:
    """The first layer, both ends of the feed-forward layers, the end of the attention, and what changes the size."""
    network = build_network("restormer", width=16, blocks=(1, 1, 1, 1), refinement_blocks=1)
    layers = layer_choices(network)["eqreg-t"]
    of_blocks = ("attn.project_out", "ffn.project_in", "ffn.project_out")
    places = [f"encoder_level{n}.0" for n in (1, 2, 3)] + ["latent.0"]
    places += [f"decoder_level{n}.0" for n in (3, 2, 1)] + ["refinement.0"]
    expected = {f"{place}.{layer}" for place in places for layer in of_blocks}
    expected |= {f"{name}.body.0" for name in ("down1_2", "down2_3", "down3_4", "up4_3", "up3_2", "up2_1")}
    expected |= {"patch_embed.proj", "reduce_chan_level3", "reduce_chan_level2"}
    assert set(requested_fields(named_layers(network), layers)) == expected
    regularizer = EquivarianceRegularizer(network.train(), layers=layers)
    batch = regularizer.pair(torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16))
    network(batch.inputs)
    regularizer.penalty()
    assert set(regularizer.layer_penalties()) | set(regularizer.skipped) == expected
    hidden = {place: network.get_submodule(f"{place}.ffn.project_out").in_channels for place in places}
    # As published, 42, 85 and 170 hidden channels: the gate multiplies halves that cut through fields.
    assert set(regularizer.skipped) == {f"{place}.ffn.project_in" for place, number in hidden.items() if number % 4}


def test_the_feed_forward_layers_of_the_published_restormer_limit_its_fields() -> None:
    """127, 255, 510 and 1021 hidden channels, before the gate twice as many; 1020 divide by 4, their halves do not."""
    network = random("restormer", width=48, heads=(1, 2, 4, 8), hidden_multiple=1).float()
    found = diagnose(network, stack(network, 16, 16).float())
    limits = {
        (layer.name, each.kind, each.reason.partition(" channels")[0])
        for layer in found.layers
        for each in layer.incompatibilities
    }
    places = {"encoder_level1": 254, "encoder_level2": 510, "latent": 2042, "decoder_level2": 510}
    places |= {"decoder_level1": 510, "refinement": 510}
    layers = ("ffn.project_in", "ffn.dwconv")
    expected = {(f"{place}.0.{layer}", "channels", str(number)) for place, number in places.items() for layer in layers}
    whole = ("encoder_level3", "decoder_level3")
    expected |= {(f"{place}.0.{layer}", "split", "1020 output") for place in whole for layer in layers}
    assert limits == expected
    assert found.can_be_exact
    assert "only with trivial fields, so symmetric kernels, in 16 of 58 layers" in found.verdict


def test_heads_that_cut_through_fields_are_named() -> None:
    network = random("restormer", heads=(1, 8, 2, 2))  # 2 channels each at the second level
    found = diagnose(network, stack(network, 16, 16))
    kinds = {layer.name: [each.kind for each in layer.incompatibilities] for layer in found.layers}
    assert {name for name, of_layer in kinds.items() if of_layer} == {
        f"{place}.0.attn.qkv_dwconv" for place in ("encoder_level2", "decoder_level2")
    }
    assert kinds["encoder_level2.0.attn.qkv_dwconv"] == ["heads"]
