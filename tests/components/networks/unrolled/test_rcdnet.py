"""RCDNet and what it shares with other unrolled algorithms: what its fingerprint cannot say."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat
from scipy.signal import correlate2d
from torch import Tensor, nn

from components.networks import build_network
from components.networks.unrolled import dictionary
from components.networks.unrolled.dictionary import analysis, line_kernels, synthesis
from components.networks.unrolled.rcdnet import RCDNet
from tests.components.networks.small import SMALL, random, stack

pytestmark = pytest.mark.unit


def small(form: Any = "official", **settings: Any) -> RCDNet:
    """With random weights of all layers, thresholds and step sizes."""
    network = RCDNet(**{**SMALL["rcdnet"], "form": form, **settings}).double().eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return network


def rainy(height: int = 12, width: int = 10) -> Tensor:
    return 255 * torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------- the dictionary


@pytest.mark.parametrize("number", [1, 2, 5, 32])
def test_the_first_kernels_are_lines_in_all_directions(number: int) -> None:
    """The direction is that of the largest second moment."""
    kernels = line_kernels(number, 3)
    assert kernels.shape == (3, number, 9, 9)
    assert kernels.min() >= 0
    torch.testing.assert_close(kernels.sum(dim=(-2, -1)), torch.ones(3, number))
    assert torch.equal(kernels[0], kernels[2])
    y, x = np.mgrid[-4:5, -4:5]
    for k, kernel in enumerate(kernels[0].double().numpy()):
        moments = np.array([[(kernel * a * b).sum() for a in (x, y)] for b in (x, y)])
        sizes, axes = np.linalg.eigh(moments)
        angle = np.arctan2(axes[1, 1], axes[0, 1])
        assert np.sin(angle - np.pi * k / number) == pytest.approx(0, abs=0.02)
        assert sizes[1] > 6 * sizes[0]


@pytest.fixture
def kernel_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Tensor]:
    """A file in the form of the published one, which the code takes for it, and its kernels."""
    kernels = torch.rand(3, 32, 9, 9, dtype=torch.float64)
    path = tmp_path / "init_kernel.mat"
    savemat(path, {"C9": kernels.numpy()})
    monkeypatch.setattr(dictionary, "PUBLISHED_KERNELS", sha256(path.read_bytes()).hexdigest())
    return path, kernels.float()


def test_the_first_kernels_come_from_a_file_if_one_is_named(kernel_file: tuple[Path, Tensor]) -> None:
    path, kernels = kernel_file
    rcdnet = build_network("rcdnet", kernel_file=str(path), stages=4, maps=30)
    assert torch.equal(rcdnet.weight0, kernels[:, :30])
    assert all(torch.equal(copy, kernels[:, :30]) for copy in rcdnet.conv)
    dicdnet = build_network("dicdnet", kernel_file=str(path), stages=2)
    assert torch.equal(dicdnet.K0, kernels[:1])
    assert torch.equal(dicdnet.K, kernels[:1])
    oscnet = build_network("oscnet", kernel_file=str(path), stages=2)
    assert torch.equal(oscnet.C0, torch.cat([kernels[:1, :4]] * 8, dim=1))


def test_a_file_of_other_kernels_is_refused(kernel_file: tuple[Path, Tensor], tmp_path: Path) -> None:
    path, kernels = kernel_file
    with pytest.raises(ValueError, match=r"kernel_file: it holds 32 kernels for 3 channels, and 33 for 3 are wanted"):
        build_network("rcdnet", kernel_file=str(path), maps=33)
    with pytest.raises(ValueError, match=r"kernel_file: .*none\.mat: cannot be read \(No such file or directory\)"):
        build_network("rcdnet", kernel_file=str(tmp_path / "none.mat"))
    with pytest.raises(ValueError, match=r"kernel_file: 9: cannot be read \(.*not int\)"):
        build_network("rcdnet", kernel_file=9)
    with pytest.raises(ValueError, match=r"kernel_file: .*cannot be read \(embedded null byte"):
        build_network("rcdnet", kernel_file="\0")
    savemat(path, {"C9": kernels.numpy() + 1})
    with pytest.raises(ValueError, match=r"kernel_file: .*init_kernel\.mat: not the published init_kernel\.mat"):
        build_network("dicdnet", kernel_file=str(path))


def test_the_synthesis_is_a_sum_of_correlations_and_the_analysis_its_adjoint() -> None:
    generator = torch.Generator().manual_seed(0)
    kernels, maps = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 3, 9, 9), (1, 3, 11, 7))
    )
    layer = synthesis(maps, kernels)
    for channel in range(2):
        expected = sum(correlate2d(maps[0, k].numpy(), kernels[channel, k].numpy(), mode="same") for k in range(3))
        np.testing.assert_allclose(layer[0, channel].numpy(), expected, atol=1e-12)
    other = torch.randn(layer.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close((layer * other).sum(), (maps * analysis(other, kernels)).sum())


# -------------------------------------------------------------------------------------------------------- the algorithm


def seen_inputs(network: nn.Module, names: list[str], *images: Tensor) -> dict[str, Tensor]:
    """The first arguments of modules in a forward."""
    seen: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0].detach()})
        )
        for name in names
    ]
    network(*images)
    for handle in handles:
        handle.remove()
    return seen


def seen_outputs(network: nn.Module, names: list[str], *images: Tensor) -> dict[str, Tensor]:
    """What modules give in a forward."""
    seen: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: output.detach()})
        )
        for name in names
    ]
    network(*images)
    for handle in handles:
        handle.remove()
    return seen


def test_a_stage_descends_the_square_of_what_the_model_leaves() -> None:
    """By the gradients of ``|Y - X - C * M|^2 / 2`` in M and in X, of another implementation of the sum."""
    network, image = small(), rainy()
    output = network(image)
    seen = seen_inputs(network, ["m_stage.2", "x_stage.2"], image)
    outputs = seen_outputs(network, ["m_stage.1", "m_stage.2"], image)
    kernels = network.conv[1] / 10

    def left_over(restored: Tensor, maps: Tensor) -> Tensor:
        rain = sum(torch.conv2d(maps[:, k : k + 1], kernels[:, k : k + 1], padding=4) for k in range(maps.shape[1]))
        return (image - restored - rain).square().sum() / 2

    maps = outputs["m_stage.1"].requires_grad_()
    (gradient,) = torch.autograd.grad(left_over(output.images[1].detach(), maps), maps)
    torch.testing.assert_close(seen["m_stage.2"], maps.detach() - network.eta11[1].detach() / 10 * gradient)

    restored = output.images[1].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(left_over(restored, outputs["m_stage.2"]), restored)
    expected = restored.detach() - network.eta12[1].detach() / 10 * gradient
    torch.testing.assert_close(seen["x_stage.2"][:, :3], expected)


SAME = {
    "eta11": "etaM_S",
    "weight0": "C0",
    "w_z_f": "C_z",
    "tau": "tau",
    "xnet": "proxNet_B_0",
    "x_stage": "proxNet_B_S",
    "m_stage": "proxNet_M_S",
    "fxnet": "proxNet_B_last_layer",
}
"""Names of the official form -> names of the simple one."""


def test_both_forms_compute_the_same() -> None:
    official, simple = small("official"), small("simple")
    weights = {"C": official.conv[1], "etaB_S": torch.cat((official.eta2[None], official.eta12))}
    for name, value in official.state_dict().items():
        first, _, rest = name.partition(".")
        block = re.sub(r"res[xm](\d)", lambda found: f"layer.{int(found[1]) - 1}", rest)
        if first in SAME:
            weights[f"{SAME[first]}.{block}".rstrip(".")] = value
    simple.load_state_dict(weights)
    ours, theirs = official(rainy()), simple(rainy())
    torch.testing.assert_close(ours.images, theirs.images)
    torch.testing.assert_close(ours.layers, theirs.layers)


def test_the_official_form_has_numbers_that_nothing_uses() -> None:
    network, image = small(), rainy()
    before = network(image).images[-1]
    for unused in (network.eta1, *network.mnet.parameters(), network.conv[0], network.conv[2:]):
        unused.data.add_(1)
    assert torch.equal(network(image).images[-1], before)
    network.conv[1].data.add_(1)
    assert not torch.equal(network(image).images[-1], before)


@pytest.mark.parametrize("form", ["official", "simple"])
def test_no_two_parameters_share_their_storage(form: str) -> None:
    parameters = list(small(form).parameters())
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == len(parameters)
    assert all(parameter.untyped_storage().nbytes() == parameter.nbytes for parameter in parameters)


# ------------------------------------------------------------------------------------------------------------- the form


@pytest.mark.parametrize("form", ["official", "simple"])
@pytest.mark.parametrize("colours", [1, 3])
def test_the_form_gives_the_published_values_in_the_range_of_the_stack(form: str, colours: int) -> None:
    network = random("rcdnet", form=form, in_channels=colours, out_channels=colours)
    image = stack(network, 9, 14)
    published = network.published(255 * image)  # type: ignore[operator]
    torch.testing.assert_close(network(image), published.images[-1] / 255, rtol=0, atol=0)


def test_it_is_supervised_by_all_images_and_the_rain_with_the_published_weights() -> None:
    """Squared errors of B (1 for the last, 0.1 for the others) and of R (0.1 each, 0.9 more for the last)."""
    network = random("rcdnet").train()
    image = stack(network)
    outputs = network(image)
    published = network.published(255 * image)  # type: ignore[operator]
    wanted = [(published.images[-1], 1.0), *((each, 0.1) for each in (*published.images[:-1], published.first_image))]
    wanted += [(255 * image - rain, weight) for rain, weight in zip(published.layers, (0.1, 0.1, 1.0), strict=True)]
    assert network.output_weights == tuple(weight for _, weight in wanted)
    torch.testing.assert_close(list(outputs), [each / 255 for each, _ in wanted])
    assert isinstance(network.eval()(image), Tensor)
    alone = random("rcdnet", supervised="last").train()
    assert alone.output_weights == ()
    assert isinstance(alone(image), Tensor)
