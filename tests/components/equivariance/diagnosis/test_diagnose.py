"""The diagnosis of a network: exact ones are healthy, each obstacle is named, and the remedies work."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.equivariance import (
    Diagnosis,
    EquivarianceRegularizer,
    Windows,
    diagnose,
    equivariance_error,
    projected,
)
from components.equivariance.diagnosis.diagnose import LayerDiagnosis
from components.equivariance.diagnosis.incompatibilities import other_windows
from components.equivariance.layers.grid import Window
from tests.components.equivariance.exact import (
    convolution,
    group_kernel,
    lifting_kernel,
    plain_network,
    projection_kernel,
    random_images,
)
from tests.components.equivariance.exact_groups import C2, C4, D4, PlaneGroup
from tests.components.equivariance.small_networks import (
    AuxiliaryInputNetwork,
    SharedNetwork,
    SmallNetwork,
    StridedNetwork,
    SubPixelNetwork,
    TransposedAttentionNetwork,
    UnshuffledResidualNetwork,
    WindowAttentionNetwork,
    relative_error,
    seeded,
    window_partition,
    window_reverse,
)

pytestmark = pytest.mark.unit

TOLERANCE = 1e-10
HEALTHY: dict[str, tuple[Callable[[], SmallNetwork], tuple[int, int]]] = {
    "windows": (WindowAttentionNetwork, (8, 8)),
    "windows with affine norms": (lambda: WindowAttentionNetwork(16, window=2, norm_affine=True), (4, 4)),
    "transposed attention": (TransposedAttentionNetwork, (6, 7)),
    "sub-pixels inside": (SubPixelNetwork, (6, 4)),
    "sub-pixels at the end": (lambda: SubPixelNetwork("tail", functional=True), (6, 6)),
    "unshuffled": (lambda: SubPixelNetwork("head"), (6, 8)),
    "both": (lambda: SubPixelNetwork("both"), (8, 6)),
    "strided at an odd size": (StridedNetwork, (9, 7)),
    "strided with kernel 2": (lambda: StridedNetwork(kernel=2, padding=0), (6, 8)),
    "shared": (SharedNetwork, (6, 5)),
    "two inputs": (AuxiliaryInputNetwork, (6, 5)),
    "added to sub-pixels": (UnshuffledResidualNetwork, (6, 8)),
}


def _inputs(network: nn.Module, size: tuple[int, int]) -> tuple[Tensor, ...]:
    images = random_images(2, 3, *size, seed=7)
    if isinstance(network, AuxiliaryInputNetwork):
        return images, (random_images(2, 1, *size, seed=8) > 0).double()
    return (images,)


def _layer(diagnosis: Diagnosis, name: str) -> LayerDiagnosis:
    return next(layer for layer in diagnosis.layers if layer.name == name)


def _kinds(diagnosis: Diagnosis) -> set[str]:
    of_layers = {incompatibility.kind for layer in diagnosis.layers for incompatibility in layer.incompatibilities}
    return of_layers | {finding.incompatibility.kind for finding in diagnosis.findings}


# ------------------------------------------------------------------------------------------------- exact networks


@pytest.mark.parametrize("case", HEALTHY)
def test_an_exact_network_is_exact_at_every_layer_and_nothing_forbids_it(case: str) -> None:
    build, size = HEALTHY[case]
    network = build().make_exact()
    diagnosis = diagnose(network, _inputs(network, size))
    residuals = [layer.residual for layer in diagnosis.layers if layer.residual is not None]
    assert len(residuals) == len(diagnosis.layers) >= 2
    assert max(*residuals, diagnosis.output_residual, diagnosis.structure_residual) < TOLERANCE
    assert diagnosis.can_be_exact
    assert diagnosis.fatal == diagnosis.untied == ()
    assert "nothing in the structure forbids it" in diagnosis.verdict


@pytest.mark.parametrize("case", [case for case in HEALTHY if not case.startswith("windows")])
def test_the_same_network_with_other_weights_could_be_exact_and_is_not(case: str) -> None:
    build, size = HEALTHY[case]
    network = build()
    diagnosis = diagnose(network, _inputs(network, size))
    assert diagnosis.can_be_exact
    assert diagnosis.fatal == ()
    assert diagnosis.output_residual > 0.05
    assert diagnosis.untied[0].inequality > 0.3


@pytest.mark.parametrize("group", [C2, C4, D4], ids=["C2", "C4", "D4"])
def test_each_group_has_its_own_exact_networks(group: PlaneGroup) -> None:
    name = {2: "C2", 4: "C4", 8: "D4"}[group.order]
    diagnosis = diagnose(group.exact_network(), random_images(1, 3, 6, 7), name)
    assert max(layer.residual or 0 for layer in diagnosis.layers) < TOLERANCE
    assert [layer.field for layer in diagnosis.layers] == ["regular", "regular", "trivial"]
    assert (diagnosis.group, diagnosis.can_be_exact) == (name, True)


@pytest.mark.parametrize("network", [plain_network(), StridedNetwork(), SharedNetwork(), SubPixelNetwork("both")])
def test_residuals_are_those_of_the_equivariance_error(network: nn.Module) -> None:
    images = random_images(2, 3, 6, 8)
    diagnosis = diagnose(network, images)
    found = {layer.name: layer.residual for layer in diagnosis.layers} | {"output": diagnosis.output_residual}
    assert found == pytest.approx(equivariance_error(network, images), rel=1e-9)


def test_the_network_is_left_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 3, 3)).train()
    network[1].eval()
    modes = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    images, random = torch.rand(1, 3, 9, 9), torch.get_rng_state()
    diagnose(network, images)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


# -------------------------------------------------------------------------------------------------------- strides


def test_a_stride_that_does_not_align_is_fatal_and_the_size_named_really_works() -> None:
    network = StridedNetwork().make_exact()
    diagnosis = diagnose(network, random_images(1, 3, 8, 8))
    (incompatibility,) = _layer(diagnosis, "down").incompatibilities
    assert (incompatibility.kind, incompatibility.is_fatal) == ("stride", True)
    assert "kernel 2 with padding 0 or kernel 4 with padding 1" in incompatibility.hint
    assert diagnosis.can_be_exact is False
    assert diagnosis.verdict.startswith(
        "the output cannot be exactly equivariant under C4 at 8x8 because of stride (down)"
    )
    assert diagnosis.fitting_size == (7, 7)
    assert "at 7x7 it can" in diagnosis.verdict
    assert relative_error(network, 1, random_images(1, 3, 8, 8)) > 0.05
    assert relative_error(network, 1, random_images(1, 3, *diagnosis.fitting_size)) < TOLERANCE


@pytest.mark.parametrize(("kernel", "padding"), [(2, 0), (4, 1)])
def test_the_kernels_named_really_work(kernel: int, padding: int) -> None:
    network = StridedNetwork(kernel=kernel, padding=padding).make_exact()
    assert relative_error(network, 1, random_images(1, 3, 8, 8)) < TOLERANCE
    assert diagnose(network, random_images(1, 3, 8, 8)).can_be_exact


def test_each_side_of_an_oblong_image_gets_its_size() -> None:
    diagnosis = diagnose(StridedNetwork(), random_images(1, 3, 7, 10))
    assert diagnosis.fitting_size == (7, 9)


def test_several_strides_need_a_size_that_fits_all() -> None:
    layers = [
        nn.Conv2d(3, 4, 3, padding=1),
        *(nn.Conv2d(4, 4, 3, 2, 1) for _ in range(3)),
        nn.Conv2d(4, 3, 3, padding=1),
    ]
    diagnosis = diagnose(nn.Sequential(*layers).double(), random_images(1, 3, 22, 22))
    assert diagnosis.fitting_size == (25, 25)  # 25 -> 13 -> 7 -> 4
    assert {where for where, _ in diagnosis.fatal} >= {"1"}


def test_a_stride_that_the_output_does_not_depend_on_is_not_fatal() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.last = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            self.idle(images)
            return self.last(images)

    diagnosis = diagnose(Idle().double(), random_images(1, 3, 8, 8))
    assert [incompatibility.kind for incompatibility in _layer(diagnosis, "idle").incompatibilities] == ["stride"]
    assert diagnosis.can_be_exact
    assert diagnosis.fatal == ()


def test_an_output_padding_is_on_one_side() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1), nn.Conv2d(4, 3, 1)
    ).double()
    diagnosis = diagnose(network, random_images(1, 3, 6, 6))
    (incompatibility,) = _layer(diagnosis, "1").incompatibilities
    assert incompatibility.is_fatal
    assert incompatibility.hint.startswith("kernel 2 with padding 0, output padding 0 or kernel 4 with padding 1")
    better = nn.Sequential(network[0], nn.ConvTranspose2d(4, 4, 4, 2, 1), network[2]).double()
    assert diagnose(better, random_images(1, 3, 6, 6)).can_be_exact


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 2, 8), (3, 3, 10), (5, 4, 12), (2, 2, 9)])
def test_other_windows_have_the_same_output_and_align(kernel: int, stride: int, size: int) -> None:
    window = Window((kernel, kernel), (stride, stride), (kernel // 2, kernel // 2), (1, 1))
    output = F.conv2d(torch.zeros(1, 1, size, size), torch.zeros(1, 1, kernel, kernel), None, stride, kernel // 2)
    options = other_windows(window, (size, size), output.shape[-2:])
    assert options
    for option in options:
        k, p = int(option.split()[1]), int(option.split()[4])
        assert (size + 2 * p - k) % stride == 0
        assert (size + 2 * p - k) // stride + 1 == output.shape[-1]


# --------------------------------------------------------------------------------------------- between the layers


def _between(operation: Callable[[Tensor], Tensor]) -> nn.Module:
    """An exact network with something between its layers."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = convolution(lifting_kernel(2, 3)), convolution(projection_kernel(3, 2))

        def forward(self, images: Tensor) -> Tensor:
            return self.last(operation(self.first(images)))

    return Network()


@pytest.mark.parametrize(
    ("operation", "kind", "size", "fitting"),
    [
        (lambda x: F.max_pool2d(x, 2, ceil_mode=True), "pool", 9, 8),
        (nn.MaxPool2d(3, 2, 1), "pool", 8, 7),
        (nn.AvgPool2d(2), "pool", 9, 8),
        (lambda x: F.avg_pool2d(x, 2, stride=None), "pool", 7, 6),
        (lambda x: F.interpolate(x, size=(9, 9)), "resize", 6, 3),
        (lambda x: F.pad(x, (0, 1, 0, 1)), "padding", 6, None),
        (lambda x: x[..., 1:, 1:], "crop", 8, None),
        (lambda x: x[:, :, :-1].narrow(-1, 0, x.shape[-1] - 1), "crop", 8, None),
    ],
)
def test_pools_resizes_paddings_and_crops_are_named_where_they_are_not_symmetric(
    operation: Callable[[Tensor], Tensor], kind: str, size: int, fitting: int | None
) -> None:
    diagnosis = diagnose(_between(operation), random_images(1, 3, size, size))
    finding = diagnosis.findings[0]
    assert {each.incompatibility.kind for each in diagnosis.findings} == {kind}
    assert finding.incompatibility.is_fatal
    assert finding.where.endswith("after first")
    assert diagnosis.can_be_exact is False
    assert diagnosis.fitting_size == (fitting and (fitting, fitting))
    if fitting:
        healthy = diagnose(_between(operation), random_images(1, 3, fitting, fitting))
        assert healthy.can_be_exact
        assert healthy.output_residual < TOLERANCE


class Cropped(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, maps: Tensor) -> Tensor:
        return maps[:, :, self.width : -self.width, self.width : -self.width]


def _picked(maps: Tensor, *places: int) -> Tensor:
    """Rows and columns at these places."""
    index = torch.tensor(places)
    return maps.index_select(-2, index).index_select(-1, index)


@pytest.mark.parametrize(
    ("places", "kind", "reasons"),
    [
        (
            (0, 1, 2, 3, 2),
            "padding",
            ("padding (0, 0, 0, 1) is on one side only", "padding (0, 1) is on one side only"),
        ),
        (
            (1, 0, 1, 2, 3),
            "padding",
            ("padding (0, 0, 1, 0) is on one side only", "padding (1, 0) is on one side only"),
        ),
        ((0, 1, 2), "crop", ("crop (0, 0, 0, 1) is on one side only", "crop (0, 1) is on one side only")),
        (
            (0, 0, 1, 1, 2),
            "resize",
            (
                "4 rows are resized to 5 rows, more on one side",
                "4 columns are resized to 5 columns, more on one side",
            ),
        ),
        (
            (0, 0, 2, 2),
            "resize",
            (
                "4 rows are resized to 4 rows, more on one side",
                "4 columns are resized to 4 columns, more on one side",
            ),
        ),
    ],
)
def test_rows_and_columns_that_indices_pick_unevenly_are_named(
    places: tuple[int, ...], kind: str, reasons: tuple[str, str]
) -> None:
    diagnosis = diagnose(_between(lambda maps: _picked(maps, *places)), random_images(1, 3, 4, 4))
    assert [(each.where, each.incompatibility.kind) for each in diagnosis.findings] == [
        (f"{kind} after first", kind)
    ] * 2
    assert tuple(each.incompatibility.reason for each in diagnosis.findings) == reasons
    assert all(each.incompatibility.is_fatal for each in diagnosis.findings)
    assert diagnosis.can_be_exact is False


@pytest.mark.parametrize("places", [(1, 0, 1, 2, 3, 2), (1, 2), (0, 0, 1, 1, 2, 2, 3, 3)])
def test_rows_and_columns_that_indices_pick_evenly_are_no_finding(places: tuple[int, ...]) -> None:
    network = _between(lambda maps: _picked(maps, *places))
    diagnosis = diagnose(network, random_images(1, 3, 4, 4))
    assert diagnosis.findings == ()
    assert diagnosis.can_be_exact
    assert relative_error(network, 1, random_images(1, 3, 4, 4)) < TOLERANCE


@pytest.mark.parametrize(
    "operation",
    [
        nn.MaxPool2d(2),
        nn.AvgPool2d(3, 1, 1),
        nn.AdaptiveAvgPool2d(3),
        nn.Upsample(scale_factor=2),
        nn.Upsample(scale_factor=1.5, mode="bilinear"),
        nn.ReflectionPad2d(1),
        # A mean over squares, along one axis and then along the other one.
        nn.Sequential(nn.AvgPool2d((3, 1), 1, (1, 0)), nn.AvgPool2d((1, 3), 1, (0, 1))),
        nn.Sequential(nn.ZeroPad2d(2), Cropped(1)),
    ],
)
def test_what_is_symmetric_between_layers_is_no_finding(operation: nn.Module) -> None:
    diagnosis = diagnose(_between(operation), random_images(1, 3, 8, 8))
    assert diagnosis.findings == ()
    assert diagnosis.can_be_exact


def test_two_pools_that_make_no_square_are_named() -> None:
    uneven = nn.Sequential(nn.AvgPool2d((3, 1), 1, (1, 0)), nn.AvgPool2d((1, 5), 1, (0, 2)))
    diagnosis = diagnose(_between(uneven), random_images(1, 3, 8, 8))
    (finding,) = diagnosis.findings
    assert "(3, 5) is not square" in finding.incompatibility.reason
    assert finding.where == "avg_pool2d 3x5 stride 1 after first"
    twice = nn.Sequential(nn.AvgPool2d((3, 1), 1, (1, 0)), nn.AvgPool2d((3, 1), 1, (1, 0)))
    diagnosis = diagnose(_between(twice), random_images(1, 3, 8, 8))
    assert {incompatibility.kind for _, incompatibility in diagnosis.fatal} == {"pool"}
    assert len(diagnosis.findings) == 1  # both say the same


def test_a_transposed_convolution_whose_last_row_is_cropped_is_named_with_kernels_that_need_no_crop() -> None:
    class Network(nn.Module):
        def __init__(self, kernel: int, padding: int) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, padding=1)
            self.up = nn.ConvTranspose2d(4, 3, kernel, stride=2, padding=padding)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.up(self.first(images))
            return maps[..., :-1, :-1] if maps.shape[-1] % 2 else maps

    diagnosis = diagnose(Network(3, 0).double(), random_images(1, 3, 6, 6))
    ((where, incompatibility),) = diagnosis.fatal
    assert (where, incompatibility.kind) == ("crop after up", "crop")
    assert "(0, 1, 0, 1) of a transposed convolution 3x3 with stride 2 is on one side only" in incompatibility.reason
    assert incompatibility.hint.startswith("kernel 2 with padding 0, output padding 0 or kernel 4 with padding 1")
    assert (diagnosis.can_be_exact, diagnosis.fitting_size) == (False, None)
    for kernel, padding in ((2, 0), (4, 1)):
        assert diagnose(Network(kernel, padding).double(), random_images(1, 3, 6, 6)).can_be_exact


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.roll(1, -1),
        lambda x: x * torch.linspace(0, 1, x.shape[-1], dtype=x.dtype),
        lambda x: torch.cat([x[:, :, ::2, ::2], x[:, :, 1::2, ::2]], dim=1)[:, :8],
    ],
    ids=["roll", "coordinates", "sub-pixels by hand"],
)
def test_what_depends_on_place_without_being_known_is_found_and_located(operation: Callable[[Tensor], Tensor]) -> None:
    diagnosis = diagnose(_between(operation), random_images(1, 3, 8, 8))
    (finding,) = diagnosis.findings
    assert finding.incompatibility.kind == "unknown"
    assert finding.where == "between first and last"
    assert diagnosis.can_be_exact is None
    assert diagnosis.verdict.startswith("undecided")


# ------------------------------------------------------------------------------------------------ position tables


class Positions(nn.Module):
    """A learned table added to the features, as maps or as tokens."""

    def __init__(self, as_tokens: bool, side: int = 6) -> None:
        super().__init__()
        self.first, self.last = convolution(lifting_kernel(2, 3)), convolution(projection_kernel(3, 2))
        self.as_tokens = as_tokens
        with seeded(3):
            self.position = nn.Parameter(torch.randn(1, 8, side, side, dtype=torch.float64))
        if as_tokens:
            self.position = nn.Parameter(self.position.data.flatten(2).transpose(1, 2))  # (1, C, H, W) -> (1, N, C)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        if not self.as_tokens:
            return self.last(maps + self.position)
        tokens = maps.flatten(2).transpose(1, 2) + self.position  # (B, C, H, W) -> (B, N, C)
        return self.last(tokens.transpose(1, 2).unflatten(2, maps.shape[-2:]))

    def symmetrise(self) -> None:
        """The mean over the turns, by hand."""
        table = self.position.data
        maps = table.transpose(1, 2).unflatten(2, (6, 6)) if self.as_tokens else table
        maps = torch.stack([torch.rot90(maps, n, (-2, -1)) for n in range(4)]).mean(0)
        table.copy_(maps.flatten(2).transpose(1, 2) if self.as_tokens else maps)


@pytest.mark.parametrize("as_tokens", [False, True])
def test_a_position_table_is_fatal_unless_it_is_symmetric_itself(as_tokens: bool) -> None:
    network = Positions(as_tokens)
    sick = diagnose(network, random_images(1, 3, 6, 6))
    (finding,) = sick.findings
    assert (finding.where, finding.incompatibility.kind, finding.incompatibility.is_fatal) == (
        "position",
        "position table",
        True,
    )
    assert sick.can_be_exact is False
    assert "because of position table (position)" in sick.verdict
    assert sick.fitting_size is None
    network.symmetrise()
    healthy = diagnose(network, random_images(1, 3, 6, 6))
    assert "symmetric now" in healthy.findings[0].incompatibility.reason
    assert healthy.can_be_exact
    assert healthy.fatal == ()


def test_relative_position_tables_are_fatal_unless_symmetric() -> None:
    diagnosis = diagnose(WindowAttentionNetwork(), random_images(1, 3, 8, 8))
    tables = [finding.where for finding in diagnosis.findings if finding.incompatibility.is_fatal]
    assert tables == [f"blocks.{i}.attention.relative_position_bias_table" for i in (0, 1)]
    assert diagnosis.can_be_exact is False
    assert diagnose(WindowAttentionNetwork(position_bias=False), random_images(1, 3, 8, 8)).findings == ()


def test_a_table_whose_shape_tells_no_place_is_judged_by_trying() -> None:
    class ChannelsFirst(nn.Module):
        def __init__(self, table: Tensor) -> None:
            super().__init__()
            self.first, self.last = convolution(lifting_kernel(2, 3)), convolution(projection_kernel(3, 2))
            self.table = nn.Parameter(table)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.first(images)
            return self.last((maps.flatten(2) + self.table).view_as(maps))

    for table, can_be_exact in ((random_images(1, 8, 36), False), (torch.ones(1, 8, 36).double(), True)):
        diagnosis = diagnose(ChannelsFirst(table), random_images(1, 3, 6, 6))
        (finding,) = diagnosis.findings
        assert "its shape does not tell which place an entry belongs to" in finding.incompatibility.reason
        assert finding.incompatibility.is_fatal is not can_be_exact
        assert diagnosis.can_be_exact is can_be_exact


def test_a_table_and_something_unknown_are_both_reported() -> None:
    class Both(Positions):
        def forward(self, images: Tensor) -> Tensor:
            output = super().forward(images)
            return output * torch.linspace(0, 1, output.shape[-1], dtype=output.dtype)

    diagnosis = diagnose(Both(False), random_images(1, 3, 6, 6))
    assert [finding.incompatibility.kind for finding in diagnosis.findings] == ["position table", "unknown"]
    assert diagnosis.findings[1].where == "between last and the output"
    assert diagnosis.can_be_exact is False


def picked(rows: Sequence[int], columns: Sequence[int]) -> Callable[[Tensor], Tensor]:
    return lambda x: x.index_select(2, torch.tensor(rows)).index_select(-1, torch.tensor(columns))


@pytest.mark.parametrize(
    ("rows", "columns", "found"),
    [
        pytest.param([0, 1, 2, 3, 2, 1], [0, 1, 2, 3], ["padding (0, 0, 0, 2)"], id="reflected below"),
        pytest.param([0, 1, 2, 3], [0, 1, 2, 3, 3], ["padding (0, 1)"], id="copied on the right"),
        pytest.param([1, 0, 1, 2, 3], [0, 1, 2, 3, 2], ["padding (0, 0, 1, 0)", "padding (0, 1)"], id="both"),
        pytest.param([1, 0, 1, 2, 3, 2], [1, 0, 1, 2, 3, 2], [], id="reflected on both sides"),
    ],
)
def test_a_padding_by_positions_is_named_where_it_is_on_one_side(
    rows: list[int], columns: list[int], found: list[str]
) -> None:
    diagnosis = diagnose(_between(picked(rows, columns)), random_images(1, 3, 4, 4))
    assert [finding.incompatibility.reason for finding in diagnosis.findings] == [
        f"{widths} is on one side only" for widths in found
    ]
    assert all(finding.where == "padding after first" for finding in diagnosis.findings)
    assert diagnosis.can_be_exact is (not found)


def test_what_indices_pick_evenly_is_no_finding() -> None:
    for rows in ([1, 2], [0, 0, 1, 1, 2, 2, 3, 3], [0, 3], [1, 0, 1, 2, 3, 2]):
        diagnosis = diagnose(_between(picked(rows, rows)), random_images(1, 3, 4, 4))
        assert diagnosis.findings == ()
        assert diagnosis.can_be_exact


# --------------------------------------------------------------------------------------- channels, heads, windows


def test_channels_that_do_not_divide_limit_a_layer_and_are_not_fatal() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 3, 1)).double()
    diagnosis = diagnose(network, random_images(1, 3, 6, 6))
    (incompatibility,) = _layer(diagnosis, "0").incompatibilities
    assert (incompatibility.kind, incompatibility.is_fatal, incompatibility.hint) == (
        "channels",
        False,
        "4 or 8 channels",
    )
    assert _layer(diagnosis, "0").field == "trivial"
    assert _layer(diagnosis, "0").residual is not None
    assert diagnosis.can_be_exact
    assert "only with trivial fields, so symmetric kernels, in 1 of 3 layers" in diagnosis.verdict
    assert not any("0.bias" in each.name for each in diagnosis.untied)


def test_sub_pixel_layers_are_compared_after_the_shuffle() -> None:
    diagnosis = diagnose(SubPixelNetwork(), random_images(1, 3, 6, 6))
    assert _layer(diagnosis, "expand").notes == ("compared after PixelShuffle(2)",)
    assert _kinds(diagnosis) == set()


def test_layers_around_pixel_unshuffle_say_what_their_channels_are() -> None:
    """A scale of sub-pixels may differ between channels of a field only together with their places."""
    network = UnshuffledResidualNetwork().make_exact()
    network.scale.data[:4] = torch.tensor([1.0, 2.0, 3.0, 4.0])  # the four sub-pixels of one channel of a field
    diagnosis = diagnose(network, random_images(1, 3, 8, 8))
    reads = "its input comes from PixelUnshuffle, whose channels are no regular fields"
    assert {layer.name: layer.notes for layer in diagnosis.layers} == {
        "first": (),
        "body": (reads,),
        "merge": (reads,),
        "back": ("added to maps from PixelUnshuffle(2), so compared as sub-pixels, too: after PixelShuffle(2)",),
        "last": (),
    }
    assert [each.name for each in diagnosis.untied] == ["scale"]
    assert diagnosis.can_be_exact
    assert diagnosis.output_residual > 1e-3


def test_what_is_added_to_sub_pixels_in_too_few_channels_is_named() -> None:
    diagnosis = diagnose(UnshuffledResidualNetwork(channels=6), random_images(1, 3, 8, 8))
    (incompatibility,) = _layer(diagnosis, "back").incompatibilities
    assert incompatibility.reason.startswith("6 channels after PixelShuffle(2) do not divide by 4")
    assert diagnosis.can_be_exact


def test_shifted_windows_are_compared_with_the_shift_undone() -> None:
    diagnosis = diagnose(WindowAttentionNetwork().make_exact(), random_images(1, 3, 8, 8))
    assert _layer(diagnosis, "blocks.1.attention.qkv").notes == ("compared with its window shift (2, 2) undone",)
    assert _layer(diagnosis, "blocks.0.attention.qkv").notes == ()


def test_windows_of_odd_sides_cannot_be_shifted_symmetrically() -> None:
    diagnosis = diagnose(WindowAttentionNetwork(window=3).make_exact(), random_images(1, 3, 9, 9))
    assert diagnosis.can_be_exact is False
    assert {incompatibility.kind for _, incompatibility in diagnosis.fatal} == {"window shift"}
    assert {where for where, _ in diagnosis.fatal} == {"blocks.1.attention.qkv", "blocks.1.attention.proj"}


class WindowsOfMaps(nn.Module):
    """Attention in windows whose linear layer runs before the maps are cut, so its output tells of no window."""

    def __init__(self, window: int, shift: int, heads: int = 2) -> None:
        super().__init__()
        self.window, self.shift, self.heads = window, shift, heads
        self.first, self.qkv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 24), nn.Conv2d(8, 3, 3, padding=1)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images).permute(0, 2, 3, 1).roll((-self.shift, -self.shift), (1, 2))  # (B, H, W, C)
        windows = window_partition(self.qkv(maps), self.window).unflatten(2, (3, self.heads, -1))
        queries, keys, values = windows.permute(2, 0, 3, 1, 4)  # (3, B nW, heads, N, width)
        ends = torch.stack([(torch.arange(side) >= side - self.shift).double() for side in maps.shape[1:3]])
        region = (2 * ends[0][:, None] + ends[1])[None, :, :, None]
        region = window_partition(region, self.window)[..., 0]  # (nW, N)
        mask = -100 * (region[:, None, :, None] != region[:, None, None, :]).double()
        attended = ((queries @ keys.transpose(-2, -1) + mask).softmax(-1) @ values).transpose(1, 2).flatten(2)
        maps = window_reverse(attended, self.window, *maps.shape[1:3]).roll((self.shift, self.shift), (1, 2))
        return self.last(maps.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("window", "shift", "can_be_exact"), [(4, 0, True), (4, 2, True), (3, 0, True), (3, 1, False), (4, 1, False)]
)
def test_shifted_windows_are_named_where_their_layers_run_on_whole_maps(
    window: int, shift: int, can_be_exact: bool
) -> None:
    diagnosis = diagnose(WindowsOfMaps(window, shift), random_images(1, 3, 12, 12))
    assert diagnosis.can_be_exact is can_be_exact
    assert [(where, found.kind) for where, found in diagnosis.fatal] == (
        [] if can_be_exact else [("qkv", "window shift")]
    )
    assert diagnosis.depends_on_size
    if not can_be_exact:
        reason = f"windows of {window} shifted by ({shift}, {shift}) are others on a turned image"
        assert diagnosis.fatal[0][1].reason == reason


def test_heads_of_windows_of_whole_maps_are_named() -> None:
    (limit,) = _layer(diagnose(WindowsOfMaps(4, 2, heads=4), random_images(1, 3, 8, 8)), "qkv").incompatibilities
    assert (limit.kind, limit.is_fatal) == ("heads", False)


def test_attention_over_a_whole_image_has_no_windows() -> None:
    assert not diagnose(WindowsOfMaps(8, 0), random_images(1, 3, 8, 8)).depends_on_size
    assert not diagnose(TransposedAttentionNetwork(), random_images(1, 3, 8, 8)).depends_on_size


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (WindowAttentionNetwork(heads=4), "blocks.0.attention.qkv"),
        (TransposedAttentionNetwork(heads=4), "attention.qkv_dwconv"),
    ],
)
def test_narrow_heads_are_named_and_not_fatal(network: nn.Module, name: str) -> None:
    diagnosis = diagnose(network, random_images(1, 3, 8, 8))
    (incompatibility,) = _layer(diagnosis, name).incompatibilities
    assert incompatibility.kind == "heads"
    assert "heads of 2 channels" in incompatibility.reason
    assert not incompatibility.is_fatal


class Gated(nn.Module):
    """Two halves of the channels are multiplied; ``as_tokens`` with a linear layer."""

    def __init__(self, half: int, as_tokens: bool = False) -> None:
        super().__init__()
        self.half, self.as_tokens = half, as_tokens
        with seeded(0):
            self.first = nn.Conv2d(3, 8, 3, padding=1).double()
            self.wide = (nn.Linear(8, 2 * half) if as_tokens else nn.Conv2d(8, 2 * half, 1)).double()
            self.last = nn.Conv2d(half, 3, 3, padding=1).double()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        if self.as_tokens:  # (B, C, H, W) -> (B, H, W, C) and back
            first, second = self.wide(maps.permute(0, 2, 3, 1)).sigmoid().split(self.half, dim=-1)
            return self.last((first * second).permute(0, 3, 1, 2))
        first, second = self.wide(maps).chunk(2, dim=1)
        return self.last(F.gelu(first) * second)


@pytest.mark.parametrize("as_tokens", [False, True])
@pytest.mark.parametrize(("half", "kinds"), [(8, []), (6, ["split"]), (5, ["channels"])])
def test_halves_of_a_gate_that_cut_through_fields_are_named(half: int, kinds: list[str], as_tokens: bool) -> None:
    """12 channels divide by 4, and their halves do not."""
    network, images = Gated(half, as_tokens), random_images(1, 3, 6, 6)
    diagnosis = diagnose(network, images)
    found = _layer(diagnosis, "wide").incompatibilities
    assert [incompatibility.kind for incompatibility in found] == kinds
    assert diagnosis.can_be_exact
    assert ("only with trivial fields" in diagnosis.verdict) == bool(kinds)
    if kinds == ["split"]:
        assert found[0].reason.startswith("12 output channels are split at 6, inside regular fields of 4")
        assert found[0].hint == "parts of a multiple of 4 channels"
    copy = projected(network, images)
    assert relative_error(copy, 1, images) < TOLERANCE < 1e-2 < relative_error(network, 1, images)
    assert max(equivariance_error(copy, images).values()) < TOLERANCE
    regularizer = EquivarianceRegularizer(network.train(), layers=["wide"] if not kinds else "auto")
    network(regularizer.pair(images.repeat(4, 1, 1, 1), images.repeat(4, 1, 1, 1)).inputs)
    regularizer.penalty()
    assert list(regularizer.skipped) == (["wide"] if kinds else [])


def test_a_cut_behind_a_depthwise_convolution_is_one_of_the_layer_before() -> None:
    class DepthwiseGated(Gated):
        def __init__(self, half: int) -> None:
            super().__init__(half)
            self.depthwise = nn.Conv2d(2 * half, 2 * half, 3, padding=1, groups=2 * half).double()

        def forward(self, images: Tensor) -> Tensor:
            first, second = self.depthwise(self.wide(self.first(images)).relu()).chunk(2, dim=1)
            return self.last(first * second)

    network, images = DepthwiseGated(6), random_images(1, 3, 6, 6)
    diagnosis = diagnose(network, images)
    for name in ("wide", "depthwise"):
        assert [incompatibility.kind for incompatibility in _layer(diagnosis, name).incompatibilities] == ["split"]
        assert _layer(diagnosis, name).field == "trivial"
    assert relative_error(projected(network, images), 1, images) < TOLERANCE
    assert not [kind for kind in _kinds(diagnose(DepthwiseGated(8), images)) if kind == "split"]


def test_windows_that_are_not_square_are_fatal_for_quarter_turns_alone() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, (1, 3), padding=(0, 1)), nn.Conv2d(8, 3, 1)
    ).double()
    quarter, half = (diagnose(network, random_images(1, 3, 6, 6), group) for group in ("C4", "C2"))
    assert [incompatibility.kind for _, incompatibility in quarter.fatal] == ["window"]
    assert quarter.can_be_exact is False
    assert half.can_be_exact
    assert half.fatal == ()


def test_a_recurrent_layer_says_how_often_it_is_called() -> None:
    diagnosis = diagnose(SharedNetwork(), random_images(1, 3, 6, 6))
    assert [layer.name for layer in diagnosis.layers] == ["first", "body", "twin", "tied", "last"]
    assert _layer(diagnosis, "body").notes == ("called 3 times; the residual is of all calls",)


def test_layers_that_are_not_called_are_named() -> None:
    network = plain_network()
    network.spare = nn.Conv2d(3, 3, 1)
    network.forward = lambda images: network[4](network[2](network[0](images)))  # type: ignore[method-assign]
    (finding,) = diagnose(network, random_images(1, 3, 6, 6)).findings
    assert (finding.where, finding.incompatibility.kind, finding.incompatibility.is_fatal) == ("spare", "unseen", False)


# ----------------------------------------------------------------------------------------------- untied parameters


def test_untied_biases_are_named_with_how_unequal_they_are() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 3, 1)
    ).double()
    tied, untied = torch.tensor([2.0] * 4 + [5.0] * 4), torch.tensor([1.0, -1.0] * 4)
    network[0].bias.data.copy_(tied)
    network[1].bias.data.copy_(untied)
    network[2].bias.data.copy_(torch.tensor([2.0, 2.0, 2.0, 6.0]))
    found = {each.name: each.inequality for each in diagnose(network, random_images(1, 3, 6, 6)).untied}
    # mean square of deviations (1, 1, 1, 9) / 4 = 3, of values (4, 4, 4, 36) / 4 = 12
    assert found == {"1.bias": pytest.approx(1.0), "2.bias": pytest.approx(math.sqrt(3 / 12))}


@pytest.mark.parametrize(
    ("norm", "names"),
    [
        (nn.BatchNorm2d(8), ["1.weight", "1.bias", "1.running_mean", "1.running_var"]),
        (nn.GroupNorm(2, 8), ["1.weight", "1.bias"]),
        (nn.InstanceNorm2d(8, affine=True), ["1.weight", "1.bias"]),
        (nn.PReLU(8), ["1.weight"]),
    ],
)
def test_affine_parameters_and_statistics_of_norms_are_named(norm: nn.Module, names: list[str]) -> None:
    network = nn.Sequential(convolution(lifting_kernel(2, 3)), norm, convolution(projection_kernel(3, 2))).double()
    assert diagnose(network, random_images(1, 3, 6, 6)).untied == ()
    for name in names:
        value = norm.get_parameter(name[2:]) if name[2:] in dict(norm.named_parameters()) else norm.get_buffer(name[2:])
        value.data.copy_(torch.linspace(1, 2, 8))
        diagnosis = diagnose(network, random_images(1, 3, 6, 6))
        assert [each.name for each in diagnosis.untied] == [name]
        assert diagnosis.can_be_exact
        assert diagnosis.output_residual > 0.001
        value.data.fill_(1.0)


def test_hand_written_scales_of_channels_are_found_and_head_temperatures_are_not() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = convolution(lifting_kernel(2, 3)), convolution(projection_kernel(3, 2))
            self.scale = nn.Parameter(torch.linspace(1, 2, 8, dtype=torch.float64))

        def forward(self, images: Tensor) -> Tensor:
            return self.last(self.first(images) * self.scale.view(1, -1, 1, 1))

    assert [each.name for each in diagnose(Scaled(), random_images(1, 3, 6, 6)).untied] == ["scale"]
    attention = TransposedAttentionNetwork(channels=16, heads=4).make_exact()
    assert diagnose(attention, random_images(1, 3, 6, 6)).untied == ()


# ---------------------------------------------------------------------------------------- exports, classes, inputs


@pytest.mark.parametrize("network", [plain_network(), StridedNetwork(), SubPixelNetwork(), Positions(False, 8)])
def test_an_exported_network_gives_the_same_diagnosis(network: nn.Module) -> None:
    images = random_images(1, 3, 8, 8)
    exported = torch.export.export(network.eval(), (images,)).module()
    ours, theirs = diagnose(network, images), diagnose(exported, images)
    assert [(a.name, a.kind, a.field, a.incompatibilities, a.notes) for a in ours.layers] == [
        (a.name, a.kind, a.field, a.incompatibilities, a.notes) for a in theirs.layers
    ]
    assert [a.residual for a in ours.layers] == pytest.approx([a.residual for a in theirs.layers], rel=1e-9)
    assert ours.untied == theirs.untied
    assert ours.findings == theirs.findings
    assert ours.can_be_exact == theirs.can_be_exact


class Classifier(nn.Module):
    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        with seeded(0):
            self.first, self.head = convolution(lifting_kernel(2, 3)), nn.Linear(8 if pooled else 8 * 36, 5).double()

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.first(images))
        return self.head(maps.mean((-2, -1)) if self.pooled else maps.flatten(1))


def test_class_scores_can_be_invariant_if_places_are_averaged_first() -> None:
    network = Classifier(pooled=True)
    diagnosis = diagnose(network, random_images(1, 3, 6, 6))
    head = _layer(diagnosis, "head")
    assert head.residual is None
    assert [(incompatibility.kind, incompatibility.is_fatal) for incompatibility in head.incompatibilities] == [
        ("no place", False)
    ]
    assert diagnosis.output == "no place"
    assert diagnosis.output_residual > 0.01
    assert diagnosis.can_be_exact
    assert "can be exactly invariant (it has no place) under C4" in diagnosis.verdict
    network.head.weight.data.copy_(
        network.head.weight.data.view(5, 2, 4).mean(2, keepdim=True).expand(5, 2, 4).flatten(1)
    )
    assert diagnose(network, random_images(1, 3, 6, 6)).output_residual < TOLERANCE


def test_class_scores_of_places_are_not_promised_to_be_invariant() -> None:
    diagnosis = diagnose(Classifier(pooled=False), random_images(1, 3, 6, 6))
    assert diagnosis.can_be_exact is not True
    assert any(finding.where == "between first and the output" for finding in diagnosis.findings)


def test_a_last_layer_of_zeros_says_that_its_residual_says_nothing() -> None:
    network = plain_network()
    nn.init.zeros_(network[4].weight)
    nn.init.zeros_(network[4].bias)
    diagnosis = diagnose(network, random_images(1, 3, 6, 6))
    assert _layer(diagnosis, "4").notes == ("all its outputs are 0 on these images, so its residual says nothing",)


def test_inputs_without_place_stay_as_they_are() -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = convolution(lifting_kernel(2, 3)), convolution(projection_kernel(3, 2))

        def forward(self, images: Tensor, level: Tensor) -> Tensor:
            return self.last(self.first(images) * level[:, :, None, None])

    diagnosis = diagnose(Conditioned(), (random_images(2, 3, 6, 6), torch.rand(2, 1).double()))
    assert diagnosis.output_residual < TOLERANCE
    assert diagnosis.can_be_exact


def test_declared_layouts_are_used_and_ones_for_no_layer_refused() -> None:
    network, images = WindowAttentionNetwork().make_exact(), random_images(1, 3, 8, 8)
    shifted = Windows(4, shift=(-2, -2))
    declared = {"blocks.1.attention.*": shifted}
    assert _layer(diagnose(network, images, layouts=declared), "blocks.1.attention.qkv").residual == pytest.approx(0)
    with pytest.raises(ValueError, match=r"layouts: 'blocks.7\.\*' fits no"):
        diagnose(network, images, layouts={"blocks.7.*": shifted})


def test_what_cannot_be_diagnosed_is_refused() -> None:
    network, images = plain_network(), random_images(1, 3, 6, 6)
    with pytest.raises(ValueError, match=r"'C8' turns by angles that no pixel grid has; use C2, C4 or D4"):
        diagnose(network, images, "C8")
    for wrong in (images[0], images[:0], (), (images, random_images(2, 1, 6, 6))):
        with pytest.raises(ValueError, match="the first must be"):
            diagnose(network, wrong)
    with pytest.raises(ValueError, match=r"bfloat16 is too coarse to tell; diagnose it as network.float\(\)"):
        diagnose(plain_network().bfloat16(), images.bfloat16())
    with pytest.raises(ValueError, match="one that returns one tensor"):
        diagnose(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2)), torch.rand(1, 3, 6, 6))


def test_single_precision_is_exact_to_its_rounding() -> None:
    network = nn.Sequential(
        convolution(lifting_kernel(2, 3)),
        nn.ReLU(),
        convolution(group_kernel(2, 2)),
        convolution(projection_kernel(3, 2)),
    ).float()
    diagnosis = diagnose(network, torch.rand(1, 3, 8, 8))
    assert max(layer.residual or 0 for layer in diagnosis.layers) < 1e-5
    assert diagnosis.can_be_exact
