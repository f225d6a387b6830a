"""The passes of fused.c agree with torch's operations, and nothing depends on there being a C compiler."""

from __future__ import annotations

import copy
import multiprocessing
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from components.equivariance import EquivarianceRegularizer
from components.equivariance.autograd import fused
from components.equivariance.autograd.comparison import ComparisonRule, LayerComparison, PairScale, compute_values
from components.equivariance.groups import FieldType, group_named
from components.equivariance.layers.layouts import Maps
from components.equivariance.penalties import Size

pytestmark = pytest.mark.process

ELEMENTS = [("C2", 1), *[("C4", element) for element in (1, 2, 3)], *[("D4", element) for element in range(1, 8)]]

needs_compiler = pytest.mark.skipif(not fused.is_available(), reason="fused.c needs a C compiler, found none")


@pytest.fixture
def _found_anew() -> Iterator[None]:
    """The compiler is looked for in this test anew, and after it."""
    fused._library.cache_clear()
    yield
    fused._library.cache_clear()


def _maps(pairs: int, channels: int, height: int, width: int, memory_format: torch.memory_format) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randn(2 * pairs + 1, channels, height, width, generator=generator).to(memory_format=memory_format)


def _observed(
    maps: Tensor,
    group: str,
    element: int,
    field: FieldType,
    size: Size,
    total: Tensor,
    limit: float | None,
    by_torch: bool,
) -> tuple[LayerComparison, Tensor | None, Tensor]:
    """A compared observation, what it measured, and a gradient it has added its share to."""
    pairs = len(maps) // 2
    rule = ComparisonRule(group=group_named(group), element=element, num_pairs=pairs, size=size, scale_gradient=False)
    comparison = LayerComparison(rule, 0.0, len(maps), maps)
    with pytest.MonkeyPatch.context() as patch:
        if by_torch:
            patch.setattr(fused, "turn_of", lambda *arguments: None)
        comparison.compare(Maps(), field)
    assert (comparison._turn is None) is by_torch
    settled = compute_values([comparison])[0]
    coefficients, own = settled[1:].chunk(2)
    limits = None if limit is None else torch.linspace(0, limit, pairs, dtype=torch.float32)
    comparison.share = PairScale(coefficients * 0.7, own * 0.7, limits)
    total = total.clone()
    return comparison, comparison.add_share(total, measures=True), total


@needs_compiler
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("field", ["regular", "trivial"])
@pytest.mark.parametrize(("group", "element"), ELEMENTS)
def test_it_is_what_torchs_operations_give(
    group: str, element: int, field: FieldType, memory_format: torch.memory_format
) -> None:
    # an odd side; more than one part of a sum; not square where that can be; a lone pixel
    sides = [(7, 7), (40, 40), (1, 1)] + ([(5, 8)] if group == "C2" else [])
    for height, width in sides:
        maps = _maps(3, 16 if field == "regular" else 5, height, width, memory_format)
        total = torch.randn_like(maps)
        for size in ("relative", "none", "paper"):
            for limit in (None, 0.1):
                ours, measured, added = _observed(maps, group, element, field, size, total, limit, by_torch=False)
                theirs, expected, reference = _observed(maps, group, element, field, size, total, limit, by_torch=True)
                torch.testing.assert_close(compute_values([ours]), compute_values([theirs]))
                torch.testing.assert_close(measured, expected)
                torch.testing.assert_close(added, reference)
                assert torch.equal(added[6:], total[6:])  # no single is touched


@needs_compiler
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_several_threads_do_the_same(memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = _maps(5, 16, 80, 80, memory_format)  # large enough to be shared out
    total = torch.randn_like(maps)
    found = []
    for threads in (1, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=threads: number)
        comparison, measured, added = _observed(maps, "C4", 3, "regular", "relative", total, 0.1, by_torch=False)
        assert measured is not None
        found.append((compute_values([comparison]), measured, added))
    assert all(torch.equal(one, four) for one, four in zip(*found, strict=True))


@needs_compiler
@pytest.mark.parametrize("size", ["relative", "none", "paper"])
def test_maps_of_zeros_have_no_gradient(size: Size) -> None:
    maps = torch.zeros(5, 8, 6, 6)
    total = torch.ones_like(maps)
    comparison, measured, added = _observed(maps, "C4", 1, "regular", size, total, 0.1, by_torch=False)
    assert comparison.value == 0
    assert torch.equal(comparison.share.own, torch.zeros(2))
    assert torch.equal(added, total)
    assert measured is not None
    assert torch.allclose(measured, torch.tensor([24.0, 24.0]))  # sqrt(2 * 8 * 6 * 6)


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value: float) -> None:
    maps = torch.ones(4, 8, 6, 6)
    maps[2, 3, 1, 4] = value
    comparison, _, added = _observed(maps, "C4", 1, "regular", "relative", torch.ones(4, 8, 6, 6), 0.1, by_torch=False)
    assert not torch.isfinite(comparison.value)
    assert not torch.isfinite(added[2, 3, 1, 4])


@needs_compiler
@pytest.mark.parametrize("setting", ["dtype", "device"])
def test_what_torch_makes_by_default_is_not_what_it_writes_into(setting: str) -> None:
    maps, total = _maps(2, 8, 9, 9, torch.contiguous_format), torch.ones(5, 8, 9, 9)
    arguments = (maps, "C4", 1, "regular", "relative", total, 0.1, False)
    expected = _observed(*arguments)
    fused._turn.cache_clear()
    dtype = torch.get_default_dtype()
    try:
        if setting == "dtype":
            torch.set_default_dtype(torch.float16)
            found = _observed(*arguments)
        else:
            with torch.device("meta"):
                group = group_named("C4")
                rule = ComparisonRule(group=group, element=1, num_pairs=2, size="relative", scale_gradient=False)
                comparison = LayerComparison(rule, 0.0, 5, maps)
                comparison.compare(Maps(), "regular")
                assert torch.equal(compute_values([comparison]), compute_values([expected[0]]))
            return
    finally:
        torch.set_default_dtype(dtype)
    assert torch.equal(compute_values([found[0]]), compute_values([expected[0]]))
    torch.testing.assert_close(found[2], expected[2])


@needs_compiler
def test_a_gradient_laid_out_otherwise_is_torchs_matter() -> None:
    maps = _maps(2, 8, 6, 6, torch.contiguous_format)
    total = torch.randn_like(maps)
    _, _, expected = _observed(maps, "C4", 1, "regular", "relative", total, 0.1, by_torch=True)
    for other in (total.to(memory_format=torch.channels_last), total.mT.contiguous().mT, total.double()):
        _, _, added = _observed(maps, "C4", 1, "regular", "relative", other, 0.1, by_torch=False)
        torch.testing.assert_close(added.float(), expected)


@needs_compiler
@pytest.mark.parametrize(
    "maps",
    [
        torch.zeros(4, 8, 6, 6, dtype=torch.float64),
        torch.zeros(4, 8, 6, 6, dtype=torch.bfloat16),
        torch.zeros(4, 8, 6, 12)[..., ::2],
        torch.zeros(4, 8, 6, 6, device="meta"),
        torch.nn.Parameter(torch.zeros(4, 8, 6, 6)),
        torch._neg_view(torch.zeros(4, 8, 6, 6)),
        torch._efficientzerotensor((4, 8, 6, 6)),
    ],
    ids=["float64", "bfloat16", "strided", "meta", "subclass", "negative", "zero"],
)
def test_other_maps_are_torchs_matter(maps: Tensor) -> None:
    assert fused.turn_of(maps, group_named("C4"), 1, "regular") is None


@needs_compiler
def test_other_groups_are_torchs_matter() -> None:
    maps = torch.zeros(4, 16, 6, 6)
    assert fused.turn_of(maps, group_named("C8"), 1, "regular") is None
    assert fused.turn_of(torch.zeros(4, 16, 6, 8), group_named("C4"), 1, "regular") is None
    assert fused.turn_of(torch.zeros(4, 6, 6, 6), group_named("C4"), 1, "regular") is None


@pytest.mark.usefixtures("_found_anew")
def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQREG_FUSED", "0")
    assert fused.turn_of(torch.zeros(4, 8, 6, 6), group_named("C4"), 1, "regular") is None


@pytest.mark.usefixtures("_found_anew")
@pytest.mark.parametrize("compiler", ["#!/bin/sh\necho disk full >&2\nexit 1\n", "#!/bin/sh\nexit 0\n", None])
def test_without_a_working_compiler_torch_does_it(
    compiler: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("EQREG_FUSED", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if compiler is not None:
        path = tmp_path / "cc"
        path.write_text(compiler)
        path.chmod(0o755)
    assert fused.turn_of(torch.zeros(4, 8, 6, 6), group_named("C4"), 1, "regular") is None
    assert ("are not compiled" in caplog.text) is (compiler is not None)
    assert ("disk full" in caplog.text) is (compiler is not None and "disk full" in compiler)


def _counted(folder: Path, seconds: int = 0) -> tuple[Path, Path]:
    """A compiler that takes its time, and the file to which it adds a line each time it is called."""
    compiler, calls = folder / "cc", folder / "calls"
    real = shutil.which("cc") or shutil.which("gcc")
    compiler.write_text(f'#!/bin/sh\necho >> {calls}\nsleep {seconds}\nexec {real} "$@"\n')
    compiler.chmod(0o755)
    return compiler, calls


@needs_compiler
def test_of_processes_that_need_it_at_once_one_compiles_and_the_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, calls = _counted(tmp_path, seconds=1)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        for ready in [processes.submit(time.sleep, 1) for _ in range(2)]:
            ready.result()
        found = [processes.submit(fused.is_available) for _ in range(2)]
        assert [each.result() for each in found] == [True, True]
    assert len(calls.read_text().splitlines()) == 2  # compile, link


@needs_compiler
@pytest.mark.usefixtures("_found_anew")
def test_a_user_without_a_home_compiles_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as of a container's user
    monkeypatch.chdir(tmp_path)
    assert fused.is_available()
    assert list(tmp_path.iterdir()) == []


@needs_compiler
@pytest.mark.usefixtures("_found_anew")
@pytest.mark.parametrize("change", ["none", "damaged", "of others", "cut", "unwritable"])
def test_it_is_compiled_once_and_what_is_kept_is_checked(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, calls = _counted(tmp_path)
    cache = tmp_path / "cache"
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    if change == "unwritable":
        cache.write_text("no folder")
    assert fused.is_available()
    assert len(calls.read_text().splitlines()) == 2  # compile, link
    if change != "unwritable":
        (kept,) = (cache / "eqreg").glob("*.so")
        assert {file.name for file in (cache / "eqreg").iterdir()} == {kept.name, "fused.lock"}
        data = bytearray(kept.read_bytes())
        if change == "damaged":
            data[len(data) // 2] ^= 1
        kept.write_bytes(data[: len(data) // 2] if change == "cut" else data)
        if change == "of others":
            kept.chmod(0o666)
    fused._library.cache_clear()
    assert fused.is_available()
    assert len(calls.read_text().splitlines()) == (2 if change == "none" else 4)


def _gradients(
    network: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format, options: dict[str, Any]
) -> list[Tensor]:
    """Of three steps of task and penalty, all alike but for the precision."""
    network = copy.deepcopy(network).to(dtype=dtype, memory_format=memory_format)  # type: ignore[call-overload]
    regularizer = EquivarianceRegularizer(network, **options)
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = images.to(dtype=dtype, memory_format=memory_format)
    found = []
    for _ in range(3):
        network.zero_grad()
        batch = regularizer.pair(inputs, inputs.flip(1), generator=generator)
        loss = (network(batch.inputs) - batch.targets).square().mean()
        (loss + 0.5 * regularizer.penalty()).backward()
        found.append(torch.cat([p.grad.flatten().double() for p in network.parameters() if p.grad is not None]))
    return found


@needs_compiler
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "options",
    [{}, {"max_gradient_ratio": 0.1}, {"group": "D4", "pairing": "append"}, {"sample_layers": 2}, {"penalty": "paper"}],
    ids=["plain", "capped", "D4", "sampled", "paper"],
)
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_gradients_of_a_network_are_those_of_double_precision(
    options: dict[str, Any], memory_format: torch.memory_format, is_checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 torch's operations do the work, which other tests hold against plain autograd."""
    torch.manual_seed(0)
    network = Branching(is_checkpointed)
    num_calls = []
    add = fused.add
    monkeypatch.setattr(fused, "add", lambda *arguments: num_calls.append(1) or add(*arguments))
    expected = _gradients(network, torch.float64, memory_format, options)
    assert not num_calls
    found = _gradients(network, torch.float32, memory_format, options)
    assert num_calls
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


class Branching(nn.Module):
    """A skip connection, so that one gradient reaches two layers; ReLUs in place."""

    def __init__(self, is_checkpointed: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1, stride=1)
        self.third = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 3, 3, padding=1)
        self.is_checkpointed = is_checkpointed

    def body(self, hidden: Tensor) -> Tensor:
        return hidden + self.third(torch.relu_(self.second(hidden)))

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images)
        body = checkpoint(self.body, hidden, use_reentrant=True) if self.is_checkpointed else self.body(hidden)
        assert isinstance(body, Tensor)
        return images - self.last(torch.relu_(body))
