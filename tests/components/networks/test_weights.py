"""Published weights are read whole and without running code, or refused with the reason."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from components.networks import build_network
from components.networks.weights import load_weights, read_weights
from tests.components.networks.small import SMALL, random

pytestmark = pytest.mark.unit

Weights = dict[str, Tensor]


def at_the_top(weights: Weights) -> Any:
    return weights


def of_several_gpus(weights: Weights) -> Any:
    return {f"module.{name}": value for name, value in weights.items()}


FORMS: dict[str, Callable[[Weights], Any]] = {
    "top": at_the_top,
    "module": of_several_gpus,
    "params": lambda weights: {"params": weights},
    "params_ema": lambda weights: {"params": {"other": torch.zeros(1)}, "params_ema": weights},
    "state_dict": lambda weights: {"state_dict": weights, "epoch": 3, "optimizer": {"lr": 0.1}},
    "state_dict, module": lambda weights: {"epoch": 3, "state_dict": of_several_gpus(weights)},
}


@pytest.mark.parametrize("name", [*SMALL, "dncnn"])
@pytest.mark.parametrize("form", FORMS)
def test_weights_load_in_all_forms_in_which_they_are_published(name: str, form: str, tmp_path: Path) -> None:
    settings = {"depth": 4, "width": 8} if name == "dncnn" else SMALL[name]
    wanted = random(name, **settings)
    torch.save(FORMS[form](dict(wanted.published.state_dict())), tmp_path / "weights.pth")
    network = build_network(name, **settings).double()
    load_weights(network, tmp_path / "weights.pth")
    torch.testing.assert_close(dict(network.state_dict()), dict(wanted.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("file", ["a.safetensors", "a.SAFETENSORS", "a.pth", "a"])
@pytest.mark.parametrize("save", [save_file, torch.save])
def test_the_content_of_a_file_and_not_its_name_says_how_it_is_read(save: Any, file: str, tmp_path: Path) -> None:
    wanted = random("redcnn")
    save({f"module.{name}": value for name, value in wanted.state_dict().items()}, tmp_path / file)
    network = build_network("redcnn", **SMALL["redcnn"]).double()
    load_weights(network, tmp_path / file)
    torch.testing.assert_close(dict(network.state_dict()), dict(wanted.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_real_numbers_of_every_type_load_as_those_of_the_network(kind: torch.dtype, tmp_path: Path) -> None:
    network = build_network("redcnn", width=8)
    powers = {name: torch.full_like(value, 0.25).to(kind) for name, value in network.state_dict().items()}
    torch.save(powers, tmp_path / "a.pth")
    load_weights(network, tmp_path / "a.pth")
    assert all(value.dtype == torch.float32 and (value == 0.25).all() for value in network.state_dict().values())


def test_files_from_before_batches_were_counted_load(tmp_path: Path) -> None:
    wanted = random("dncnn", depth=4, width=8)
    torch.save({k: v for k, v in wanted.state_dict().items() if "num_batches" not in k}, tmp_path / "a.pth")
    load_weights(build_network("dncnn", depth=4, width=8).double(), tmp_path / "a.pth")


def test_kernels_that_the_reference_of_oscnet_keeps_in_evaluation_mode_are_left_out(tmp_path: Path) -> None:
    wanted = random("oscnet")
    kept = {"fcnn.filter": torch.rand(1, 4, 9, 9), "fcnn.bias": torch.zeros(1, 1, 1, 1)}
    torch.save({**wanted.state_dict(), **kept}, tmp_path / "a.pth")
    network = build_network("oscnet", **SMALL["oscnet"]).double()
    load_weights(network, tmp_path / "a.pth")
    torch.testing.assert_close(dict(network.state_dict()), dict(wanted.state_dict()), rtol=0, atol=0)
    torch.save({**random("dicdnet").state_dict(), **kept}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"unknown: fcnn.filter, fcnn.bias$"):
        load_weights(random("dicdnet"), tmp_path / "b.pth")


def without(name: str) -> Callable[[Weights], Any]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("conv3.bias"), "not the weights of this network with these settings; missing: conv3.bias$"),
        (lambda weights: {**weights, "head.weight": torch.ones(1)}, "unknown: head.weight$"),
        (
            lambda weights: {**weights, "conv1.weight": torch.ones(16, 1, 5, 5)},
            r"weights of other settings; conv1.weight \(16, 1, 5, 5\), here \(8, 1, 5, 5\)$",
        ),
        (lambda weights: {**weights, "conv1.bias": torch.full((8,), torch.nan)}, "not finite; conv1.bias$"),
        (lambda weights: {"params": weights, "params_ema": 3}, None),
        (lambda weights: {"weights": weights}, "weights: no tensors; the weights lie at the top or under params_ema"),
        (lambda weights: list(weights.values()), "holds list, where names and tensors are wanted"),
        (lambda weights: {}, "holds dict, where"),
        (
            lambda weights: {**weights, "conv1.bias": torch.full((8,), 1e300, dtype=torch.float64)},
            "values that are not finite; c",
        ),
        (
            lambda weights: {**weights, "conv1.bias": torch.ones(8).to_sparse()},
            "conv1.bias: sparse, quantised, complex",
        ),
        (lambda weights: {**weights, "conv1.bias": torch.ones(8, device="meta")}, "conv1.bias: sparse, quantised, "),
        (lambda weights: {**weights, "conv1.bias": torch.ones(8) * 1j}, "conv1.bias: sparse, quantised, complex or"),
        (lambda weights: {**weights, "a\nTraceback": torch.ones(1)}, r"unknown: 'a\\nTraceback'$"),
        (lambda weights: {**weights, "a" * 5000: torch.ones(1)}, r"unknown: a{80}\.\.\.$"),
    ],
)
def test_tensors_of_another_network_are_named_and_change_nothing(
    change: Callable[[Weights], Any], message: str | None, tmp_path: Path
) -> None:
    network = build_network("redcnn", width=8)
    torch.save(change(dict(random("redcnn").float().state_dict())), tmp_path / "a.pth")
    if message is None:
        load_weights(network, tmp_path / "a.pth")
        return
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights(network, tmp_path / "a.pth")
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)


def test_of_many_tensors_that_differ_the_first_are_named(tmp_path: Path) -> None:
    torch.save(build_network("redcnn", width=12).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"conv1\.weight .* and 16 more$"):
        load_weights(build_network("redcnn", width=8), tmp_path / "a.pth")


class Evil:
    """What a stranger could put into a pickle."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "an empty file", id="empty"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d", "a pointer of Git LFS", id="lfs"),
        pytest.param(b"\n<!DOCTYPE html><html>", "a page of the web: download the file itself", id="html"),
        pytest.param(b"\x89HDF\r\n\x1a\n", "HDF5, as MATLAB writes it", id="hdf5"),
        pytest.param(b"abcdefgh" * 99, "not a file of weights, or a damaged one", id="noise"),
        pytest.param(b"PK\x03\x04" + bytes(400), "not a file of weights, or a damaged one", id="cut zip"),
        pytest.param(pickle.dumps(Evil()), "a pickle of more than tensors", id="pickle"),
        pytest.param(b"garbage\n", "not a file of weights, or a damaged one", id="text"),
        pytest.param(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", "no weights, but an image", id="image"),
        pytest.param(b"\xef\xbb\xbf<!doctype html>", "no weights, but a page of the web", id="html of a Windows"),
        pytest.param(b"<!-- 404 --><HTML>", "no weights, but a page of the web", id="html after a comment"),
        pytest.param(b"\0" * 7 + b"\x10{}", "not a file of weights, or a damaged one", id="header without an end"),
    ],
)
def test_a_file_that_is_no_weights_is_refused_with_what_it_is(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_weights(Path("a.pth"))
    assert not Path("ran").exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(1, 1, 1), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="such as a whole module, which would run the code of a stranger"):
        read_weights(tmp_path / "a.pth")


def test_a_damaged_safetensors_file_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"abcdefgh" * 99)
    with pytest.raises(ValueError, match="not a file of weights, or a damaged one"):
        read_weights(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="cannot be read"):
        read_weights(tmp_path / "none.pth")
