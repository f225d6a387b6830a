"""A model is known by its weights and its architecture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from components.networks import build_network
from pipeline.model_file import load_model, model_metadata, model_sha256, save_model

pytestmark = pytest.mark.unit

SETTINGS = {"name": "dncnn", "width": 4, "depth": 2, "norm": "none"}


def saved(path: Path, *, bump: float = 0.0, code: str = "a", **settings: object) -> str:
    torch.manual_seed(0)
    network = build_network(**SETTINGS)
    next(network.parameters()).data[0] += bump
    save_model(path, network, {"network": SETTINGS | settings, "task": "denoise", "hashes": {"code": code}})
    return model_sha256(path)


def test_other_code_with_the_same_weights_is_the_same_model(tmp_path: Path) -> None:
    assert saved(tmp_path / "a") == saved(tmp_path / "b", code="b")
    assert [model_metadata(tmp_path / name)["hashes"]["code"] for name in "ab"] == ["a", "b"]


def test_another_weight_or_setting_is_another_model(tmp_path: Path) -> None:
    hashes = {saved(tmp_path / "a"), saved(tmp_path / "b", bump=1e-7), saved(tmp_path / "c", norm="batch")}
    assert len(hashes) == 3


def test_a_weight_that_layers_share_is_written_under_each_of_its_names(tmp_path: Path) -> None:
    """MPRNet has one slope for all activations; published files hold it under each name."""
    settings = {"name": "mprnet", "width": 4, "unet_growth": 0, "orsnet_growth": 0, "orsnet_blocks": 1}
    network = build_network(**settings)
    slopes = [name for name, value in network.state_dict().items() if value.numel() == 1]
    network.get_parameter(slopes[0]).data.fill_(0.125)
    save_model(tmp_path / "a", network, {"network": settings, "task": "derain"})
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert set(file.keys()) == set(network.state_dict())
        assert [file.get_tensor(name).tolist() for name in slopes] == [[0.125]] * len(slopes)
    loaded, _ = load_model(tmp_path / "a")
    torch.testing.assert_close(loaded.state_dict(), network.state_dict(), rtol=0, atol=0)
    assert len({id(dict(loaded.named_parameters(remove_duplicate=False))[name]) for name in slopes}) == 1
    assert len(slopes) > 30


def test_a_file_of_a_newer_format_is_refused_by_name_and_one_without_a_format_is_read(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    with safe_open(tmp_path / "a", framework="pt") as file:
        metadata = json.loads(file.metadata()["eqreg"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    assert metadata.pop("format") == 1
    save_file(tensors, tmp_path / "old", {"eqreg": json.dumps(metadata)})
    assert load_model(tmp_path / "old")[1] == metadata
    assert model_sha256(tmp_path / "old") == model_sha256(tmp_path / "a")
    save_file(tensors, tmp_path / "new", {"eqreg": json.dumps({**metadata, "format": 2})})
    for read in (load_model, model_sha256, model_metadata):
        with pytest.raises(ValueError, match="new has format 2, and this eqreg reads formats up to 1: use the eqreg"):
            read(tmp_path / "new")


def test_another_file_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no model at all")
    with pytest.raises(ValueError, match="run 'eqreg train'"):
        model_sha256(tmp_path / "x")


def test_a_model_does_not_need_the_file_from_which_its_first_weights_came(tmp_path: Path) -> None:
    settings = {"name": "rcdnet", "maps": 2, "dual_channels": 1, "residual_blocks": 1, "stages": 3}
    network = build_network(**settings)
    begun = settings | {"kernel_file": str(tmp_path / "gone.mat")}
    save_model(tmp_path / "a", network, {"network": begun, "task": "derain"})
    loaded, metadata = load_model(tmp_path / "a")
    assert metadata["network"] == settings
    torch.testing.assert_close(dict(loaded.state_dict()), dict(network.state_dict()), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"kernel_file: .*gone\.mat: cannot be read"):
        build_network(**begun)
