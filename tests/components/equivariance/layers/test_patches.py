"""Layers on patches that lie on the batch axis are compared on the images that the patches make up."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from components.equivariance import EquivarianceRegularizer, Patches, diagnose, equivariance_error, projected
from components.equivariance.layers.layouts import Layout, Maps, transposed
from components.equivariance.layers.tracing import run_traced
from tests.components.equivariance.exact import (
    convolution,
    group_kernel,
    lifting_kernel,
    projection_kernel,
    random_images,
)

pytestmark = pytest.mark.unit

Cut = Callable[[Tensor], Tensor]


def cut(rows: int, columns: int) -> Cut:
    """Patches in the order of images, rows and columns, by slices; on the way by operations that the trace knows."""

    def of(maps: Tensor) -> Tensor:
        number, channels, height, width = maps.shape
        h, w = height // rows, width // columns
        return maps.view(number, channels, rows, h, columns, w).permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, h, w)

    return of


def join(rows: int, columns: int) -> Cut:
    def of(maps: Tensor) -> Tensor:
        _, channels, h, w = maps.shape
        apart = maps.view(-1, rows, columns, channels, h, w).permute(0, 3, 1, 4, 2, 5)
        return apart.reshape(-1, channels, rows * h, columns * w)

    return of


class PatchNetwork(nn.Module):
    """Its hidden layer runs on patches; all its convolutions are exact."""

    def __init__(self, before: Cut, after: Cut) -> None:
        super().__init__()
        self.first, self.last = convolution(lifting_kernel(2, 3)), convolution(projection_kernel(3, 2))
        self.hidden = convolution(group_kernel(2, 2))
        self.before, self.after = before, after

    def forward(self, images: Tensor) -> Tensor:
        maps = self.hidden(self.before(self.first(images)).relu())
        return self.last(self.after(maps))


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (2, 1), (1, 3), (2, 3)])
def test_the_layout_joins_patches_as_slices_cut_them(rows: int, columns: int) -> None:
    maps = random_images(2, 5, 6 * rows, 4 * columns)
    patches = [
        image[:, 6 * i : 6 * i + 6, 4 * j : 4 * j + 4] for image in maps for i in range(rows) for j in range(columns)
    ]
    layout = Patches(rows, columns)
    assert torch.equal(layout.to_maps(torch.stack(patches)), maps)
    assert torch.equal(layout.from_maps(maps), torch.stack(patches))
    assert torch.equal(layout.to_maps(torch.stack(patches[: rows * columns])), maps[:1])
    assert transposed(layout) == Patches(columns, rows)


def nothing(maps: Tensor) -> Tensor:
    return maps


@pytest.mark.parametrize(
    ("before", "after", "patches"),
    [
        (cut(2, 2), join(2, 2), (2, 2)),
        (cut(2, 1), join(2, 1), (2, 1)),
        (cut(1, 2), join(1, 2), (1, 2)),
        (lambda x: cut(1, 2)(cut(2, 1)(x)), join(2, 2), (2, 2)),
        (lambda x: join(1, 2)(cut(2, 2)(x)), join(2, 1), (2, 1)),  # of two columns, halves again
        (nothing, nothing, (1, 1)),
        # The same patches in another order, which is not that of the layout.
        (lambda x: torch.cat((x[:, :, :4], x[:, :, 4:])), lambda x: torch.cat(x.chunk(2), dim=2), (1, 1)),
        (lambda x: cut(2, 1)(cut(1, 2)(x)), lambda x: join(1, 2)(join(2, 1)(x)), (1, 1)),
    ],
    ids=["quarters", "rows", "columns", "twice", "joined", "none", "by patch", "columns of rows"],
)
def test_the_trace_sees_into_which_patches_images_are_cut(before: Cut, after: Cut, patches: tuple[int, int]) -> None:
    trace, _ = run_traced(PatchNetwork(before, after), random_images(2, 3, 8, 8))
    assert [call.patches for call in trace.calls] == [(1, 1), patches, (1, 1)]


def penalties(network: nn.Module, images: Tensor) -> tuple[dict[str, float], dict[str, str]]:
    regularizer = EquivarianceRegularizer(network.train(), pairing="append", pair_fraction=1.0)
    for _ in range(2):  # the first step is traced, the second one knows
        batch = regularizer.pair(images, images, element=1)
        network(batch.inputs)
        regularizer.penalty().backward()
    return {name: float(value) for name, value in regularizer.layer_penalties().items()}, dict(regularizer.skipped)


def test_quarters_of_an_exact_network_are_exact_and_bands_are_not() -> None:
    """A quarter turn moves the quarters of an image as it moves its pixels; of two bands it makes two other ones."""
    images = random_images(4, 3, 8, 8)
    quarters, bands = PatchNetwork(cut(2, 2), join(2, 2)), PatchNetwork(cut(2, 1), join(2, 1))
    assert max(equivariance_error(quarters, images).values()) < 1e-12
    values, skipped = penalties(quarters, images)
    assert set(values) == {"first", "hidden", "last"}
    assert skipped == {}
    assert max(values.values()) < 1e-20

    found = equivariance_error(bands, images)
    assert found["hidden"] > 1e-2
    assert found["output"] > 1e-2
    values, _ = penalties(bands, images)
    assert values["hidden"] == pytest.approx(
        equivariance_error(bands, images, elements=1)["hidden"] ** 2, rel=0.2
    )  # a mean over images of ratios there, here one of pairs


def test_the_diagnosis_names_bands_and_leaves_quarters_alone() -> None:
    images = random_images(1, 3, 8, 8)
    healthy = diagnose(PatchNetwork(cut(2, 2), join(2, 2)), images)
    assert healthy.can_be_exact
    assert healthy.layers[1].notes == ("runs on 2x2 patches of each image, which are joined to be compared",)
    sick = diagnose(PatchNetwork(cut(2, 1), join(2, 1)), images)
    ((where, incompatibility),) = sick.fatal
    assert (where, incompatibility.kind) == ("hidden", "patches")
    assert "2x1 patches" in incompatibility.reason
    assert sick.can_be_exact is False
    assert sick.fitting_size is None
    assert diagnose(PatchNetwork(cut(2, 1), join(2, 1)), images, group="C2").can_be_exact


def test_weights_on_quarters_can_be_projected() -> None:
    network, images = PatchNetwork(cut(2, 2), join(2, 2)), random_images(1, 3, 8, 8)
    for parameter in network.parameters():
        parameter.data.add_(torch.rand_like(parameter))
    assert equivariance_error(network, images)["output"] > 1e-2
    assert equivariance_error(projected(network, images), images)["output"] < 1e-12


def test_the_gradient_of_patches_is_that_of_the_joined_maps() -> None:
    """Oracle: the penalty by plain autograd on the joined output of the hidden layer."""
    network = PatchNetwork(cut(2, 1), join(2, 1)).train()
    images = random_images(2, 3, 8, 8)
    regularizer = EquivarianceRegularizer(
        network, layers=["hidden"], normalise="none", pairing="append", pair_fraction=1.0
    )
    for _ in range(2):
        network.zero_grad()
        batch = regularizer.pair(images, images, element=1)
        network(batch.inputs)
        value = regularizer.penalty()
        value.backward()
    assert network.hidden.weight.grad is not None
    found = network.hidden.weight.grad.clone()

    network.zero_grad()
    maps = network.hidden(network.before(network.first(batch.inputs)).relu())
    first, second = join(2, 1)(maps).chunk(2)
    turned = first.rot90(1, (2, 3)).unflatten(1, (-1, 4)).roll(1, 2).flatten(1, 2)
    expected = (second - turned).square().mean()
    expected.backward()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    torch.testing.assert_close(found, network.hidden.weight.grad)


class MeansNetwork(nn.Module):
    """Its hidden layer runs on one mean for each band, or for each row."""

    def __init__(self, is_cut: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.hidden = nn.Conv2d(8, 8, 1)
        self.is_cut = is_cut

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        if not self.is_cut:
            return self.last(maps * self.hidden(maps.mean(dim=3, keepdim=True)))
        bands = cut(2, 1)(maps)
        return self.last(join(2, 1)(bands * self.hidden(bands.mean(dim=(2, 3), keepdim=True))))


@pytest.mark.parametrize(("is_cut", "size"), [(True, "2x1"), (False, "8x1")])
def test_maps_that_are_not_square_have_no_counterparts_under_quarter_turns(is_cut: bool, size: str) -> None:
    """Of a band there is one mean, so joined they are two above each other, and of a turned image again."""
    network, images = MeansNetwork(is_cut).double().train(), random_images(4, 3, 8, 8)
    for group in ("C4", "C2"):
        regularizer = EquivarianceRegularizer(network, pairing="append", pair_fraction=1.0, group=group)
        for _ in range(2):
            batch = regularizer.pair(images, images, element=1)
            network(batch.inputs)
            regularizer.penalty().backward()
        skipped = regularizer.skipped
        assert set(skipped) == ({"hidden"} if group == "C4" else set())
        if skipped:
            assert skipped["hidden"].startswith(f"its maps of square images are {size}: a quarter turn would make them")
    with_shift = EquivarianceRegularizer(network, penalty="rotation+channel", pairing="append", pair_fraction=1.0)
    batch = with_shift.pair(images, images, element=1)
    network(batch.inputs)
    with_shift.penalty()
    assert "hidden" in with_shift.layer_penalties()  # by the shift of its channels alone


@pytest.mark.parametrize("layout", [Patches(2, 1), Patches(3, 3)])
def test_declared_patches_must_fit_the_batch(layout: Layout) -> None:
    network, images = PatchNetwork(cut(2, 2), join(2, 2)), random_images(1, 3, 8, 8)
    assert diagnose(network, images, layouts={"hidden": layout}).layers[1].residual is None
    assert diagnose(network, images, layouts={"hidden": Patches(2, 2)}).layers[1].residual < 1e-12  # type: ignore[operator]
    assert Maps() != layout
