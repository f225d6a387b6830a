"""Who is champion: decided on validation, by more than the margin, or not at all."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config.schema import Params
from pipeline.errors import UserError
from pipeline.provenance.lineage import Lineage
from pipeline.stages.register import Decision, decide, register
from pipeline.tracking.models.champions import history
from pipeline.tracking.models.registry import Registry, Version
from pipeline.tracking.store import MODEL_TAG, Store
from tests.pipeline.conftest import Project
from tests.pipeline.small_results import MULTIPLY_ADDS, NETWORK, write_results, write_validation

pytestmark = pytest.mark.process

CHAMPION = Version("7", ("champion",))


class _Off(nn.Module):
    """Off the truth by so many grey levels, one number for each scene: a PSNR of ``20 log10(255 / levels)``.

    A scene's number is its brightness in tenths.
    """

    def __init__(self, *levels: float) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, images: Tensor) -> Tensor:
        scene = round(float(images.mean()) * 10) - 1
        return images + self.levels[scene % len(self.levels)] / 255


class _Failing(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("of another world")


class _Holding:
    """Stands in for a registry whose champion is a given network, or one that does not load."""

    def __init__(self, network: nn.Module | None) -> None:
        self.network = network

    def load(self, version: Version) -> nn.Module | None:
        assert version == CHAMPION
        return self.network


@pytest.fixture
def params(project: Project) -> Params:
    """With three validation scenes on disk and a margin of 0.5 dB."""
    write_validation([0, 1, 2])
    return project.params(register__margin=0.5)


def _decide(params: Params, network: nn.Module, champion: nn.Module | None) -> Decision:
    return decide(params, network, _Holding(champion), CHAMPION)  # type: ignore[arg-type]


def test_the_first_model_is_champion(params: Params) -> None:
    decision = decide(params, _Off(50), _Holding(None), None)  # type: ignore[arg-type]
    assert decision == Decision("champion", "there was no champion")


def test_a_champion_that_does_not_load_is_replaced(params: Params) -> None:
    assert _decide(params, _Off(50), None) == Decision("champion", "champion version 7 does not load")


@pytest.mark.parametrize(
    ("champion", "reason"), [(_Failing(), "of another world"), (_Off(float("nan")), "values that are not finite")]
)
def test_a_champion_that_does_not_run_is_replaced(params: Params, champion: nn.Module, reason: str) -> None:
    decision = _decide(params, _Off(50), champion)
    assert decision.alias == "champion"
    assert decision.reason.startswith("champion version 7 does not run")
    assert reason in decision.reason


class _TooLarge(nn.Module):
    """Needs more memory than any machine has."""

    def forward(self, images: Tensor) -> Tensor:
        return images + torch.empty(1 << 60)


class _Reading(nn.Module):
    """Reads a file that is not there."""

    def forward(self, images: Tensor) -> Tensor:
        return images + len(Path("/nowhere").read_bytes())


@pytest.mark.parametrize(
    ("champion", "reason"), [(_TooLarge(), "out of memory"), (_Reading(), "No such file or directory: '/nowhere'")]
)
def test_a_champion_that_this_machine_cannot_run_keeps_its_alias(
    params: Params, champion: nn.Module, reason: str
) -> None:
    with pytest.raises(UserError) as caught:
        _decide(params, _Off(5), champion)
    first, second = str(caught.value).splitlines()
    assert first.startswith("champion version 7 cannot be measured here (")
    assert reason in first
    assert second.startswith("the registry was not changed: ")


def test_a_network_that_does_not_run_itself_never_becomes_champion(params: Params) -> None:
    with pytest.raises(RuntimeError, match="of another world"):
        _decide(params, _Failing(), _Failing())
    with pytest.raises(ValueError, match="not finite for i0"):
        _decide(params, _Off(float("nan")), _Off(5))


def test_without_validation_images_nothing_is_decided(params: Params) -> None:
    shutil.rmtree("data/packed/val")
    with pytest.raises(ValueError, match="run 'eqreg preprocess'"):
        _decide(params, _Off(5), _Off(10))


@pytest.mark.parametrize(
    ("own", "champions", "alias"),
    [
        ([5], [10], "champion"),  # 6 dB better everywhere
        ([10], [5], "challenger"),  # 6 dB worse
        ([10], [10], "challenger"),  # equal
        ([18], [19], "challenger"),  # 0.47 dB better everywhere, the margin is 0.5
        ([17], [18], "challenger"),  # 0.496 dB
        ([16], [17], "champion"),  # 0.527 dB
        ([2, 11, 11], [10, 10, 10], "challenger"),  # 14 dB, -0.8, -0.8: more than the margin in the mean alone
        ([2, 9, 9], [10, 10, 10], "champion"),  # 14 dB, 0.9, 0.9
    ],
)
def test_a_champion_falls_only_if_beaten_by_more_than_the_margin_with_the_interval_above_0(
    params: Params, own: list[float], champions: list[float], alias: str
) -> None:
    decision = _decide(params, _Off(*own), _Off(*champions))
    assert decision.alias == alias, decision.reason
    pairs = [(own[scene % len(own)], champions[scene % len(champions)]) for scene in range(3)]
    difference = np.mean([20 * np.log10(champion / mine) for mine, champion in pairs])
    assert decision.reason.startswith(f"{difference:+.3f} (PSNR, dB) on validation [")
    assert decision.reason.endswith("to version 7, margin 0.5")


def test_the_margin_is_that_of_params(project: Project) -> None:
    write_validation([0, 1, 2])
    assert _decide(project.params(register__margin=0.4), _Off(18), _Off(19)).alias == "champion"
    assert _decide(project.params(register__margin=7), _Off(5), _Off(10)).alias == "challenger"


def test_one_scene_gives_no_interval_and_no_new_champion(params: Params) -> None:
    write_validation([1, 1, 1])
    decision = _decide(params, _Off(5), _Off(10))
    assert decision == Decision(
        "challenger", "+6.021 (PSNR, dB) on validation to version 7, no interval with one scene"
    )


# The whole stage, with a real registry.


def test_the_stage_registers_once_and_fills_an_emptied_registry_anew(
    params: Params, store: Store, project: Project, empty_database: Path
) -> None:
    sha256 = write_results(10)
    trained = Lineage("abc", "", "data", "params").tags()
    store.set_tag(store.parent_run(trained), MODEL_TAG, sha256)
    register(params)
    registry = Registry(store)
    assert registry.find(sha256) == Version("1", ("champion",))
    tags = store.client.get_model_version("eqreg-denoise", "1").tags
    assert tags["eqreg.reason"] == "there was no champion"
    assert tags["eqreg.test.restored.psnr"] == "30.0000"
    assert {key: tags[key] for key in trained} == trained  # of the commit that trained it
    decision = json.loads(Path(".eqreg/register/decision.json").read_text())
    assert decision == {
        "name": "eqreg-denoise",
        "version": "1",
        "alias": "champion",
        "reason": "there was no champion",
    }
    run_id = store.client.get_model_version("eqreg-denoise", "1").run_id
    assert [entry.step for entry in store.client.get_metric_history(run_id, "train/task_loss")] == [25, 50]
    assert store.client.get_run(run_id).data.metrics["test/restored/psnr"] == 30
    register(params)
    assert len(store.client.search_model_versions("name='eqreg-denoise'")) == 1
    # Somebody deletes mlflow.db and all that belongs to it.
    shutil.rmtree(project.folder / "mlartifacts")
    (project.folder / "mlflow.db").unlink()
    other = project.folder / "other.db"
    shutil.copyfile(empty_database, other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
        patch.delenv("MLFLOW_REGISTRY_URI", raising=False)
        register(params)
        refilled = Store("denoise")
        assert Registry(refilled).find(sha256) == Version("1", ("champion",))
        # Nothing here says any more which commit trained it.
        assert refilled.client.get_model_version("eqreg-denoise", "1").tags["eqreg.git_commit"] == "unknown"


def test_a_worse_model_becomes_challenger_and_a_better_one_champion(params: Params, store: Store) -> None:
    registry = Registry(store)
    first = write_results(10)
    first_model = Path("results/train/model.safetensors").read_bytes()
    register(params)
    worse = write_results(20)
    register(params)
    assert registry.find(first) == Version("1", ("champion",))
    assert registry.find(worse) == Version("2", ("challenger",))
    better = write_results(5)
    register(params)
    assert registry.find(better) == Version("3", ("champion",))
    assert registry.find(first) == Version("1", ())
    version = store.client.get_model_version("eqreg-denoise", "3")
    assert version.description.startswith("# eqreg-denoise, version 3\n")
    assert len(store.client.get_registered_model(registry.name).description.splitlines()) == 1
    assert version.tags["eqreg.multiply_adds_per_pixel"] == str(MULTIPLY_ADDS)
    moves = [entry.move for entry in history(registry) if entry.move]
    assert [(move.version, move.before, move.command) for move in moves] == [
        ("1", None, "register"),
        ("3", "1", "register"),
    ]
    assert moves[1].reason == version.tags["eqreg.reason"]
    # Back to the first: nothing is decided anew, but the summary must speak of it and of no other.
    Path("results/train/model.safetensors").write_bytes(first_model)
    register(params)
    decision = json.loads(Path(".eqreg/register/decision.json").read_text())
    assert decision == {"name": "eqreg-denoise", "version": "1", "alias": "", "reason": "there was no champion"}
    reasons = [store.client.get_model_version("eqreg-denoise", number).tags["eqreg.reason"] for number in "23"]
    assert [reason.split(" (")[0] for reason in reasons] == ["-6.021", "+6.021"]


def test_a_known_model_takes_the_alias_of_a_champion_whose_files_are_gone(params: Params, store: Store) -> None:
    from mlflow.artifacts import download_artifacts

    write_results(10)
    register(params)
    sha256 = write_results(20)
    register(params)
    shutil.rmtree(download_artifacts(store.client.get_model_version_download_uri("eqreg-denoise", "1")))
    register(params)
    assert Registry(store).champion() == Version("2", ("champion",))
    assert Registry(store).find(sha256) == Version("2", ("challenger", "champion"))
    assert len(store.client.search_model_versions("name='eqreg-denoise'")) == 2


def test_a_champion_that_cannot_be_reached_keeps_its_alias(
    params: Params, store: Store, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client, server = store.client, f"http://127.0.0.1:{closed_port}/api/2.0/mlflow-artifacts/artifacts"
    client.create_registered_model("eqreg-denoise")
    client.create_model_version("eqreg-denoise", f"{server}/model")
    client.set_registered_model_alias("eqreg-denoise", "champion", "1")
    write_results(10)
    with pytest.raises(UserError, match=r"eqreg-denoise version 1 cannot be reached \(API request to http"):
        register(params)
    assert Registry(store).champion() == Version("1", ("champion",))
    assert len(client.search_model_versions("name='eqreg-denoise'")) == 1
    assert not Path(".eqreg/register").exists()


def test_without_results_the_stage_to_run_is_named(params: Params) -> None:
    with pytest.raises(ValueError, match="run 'eqreg train'"):
        register(params)
    write_results(10)
    Path("results/evaluate/metrics.json").unlink()
    with pytest.raises(ValueError, match="run 'eqreg evaluate'"):
        register(params)


# Bounds beside the score.


class _Tilted(_Off):
    """Brighter at the right: far from equivariant under quarter turns."""

    def forward(self, images: Tensor) -> Tensor:
        return images + torch.linspace(-0.5, 0.5, images.shape[-1])


@pytest.mark.parametrize(("largest", "alias"), [(0.01, "challenger"), (2.0, "champion"), (None, "champion")])
@pytest.mark.parametrize("champion", [None, _Off(20), _Failing()])
def test_a_network_beyond_the_largest_equivariance_error_is_challenger_whoever_is_champion(
    project: Project, largest: float | None, alias: str, champion: nn.Module | None
) -> None:
    write_validation([0, 1, 2])
    params = project.params(register__margin=0, register__largest_equivariance_error=largest)
    holding: Any = _Holding(champion)
    decision = decide(params, _Tilted(5), holding, None if champion is None else CHAMPION)
    if isinstance(champion, _Off) and alias == "champion":  # then the score decides, which is bad
        assert decision.reason.startswith("-")
        return
    assert decision.alias == alias
    assert ("register.largest_equivariance_error is 0.01" in decision.reason) == (alias == "challenger")
    assert decide(params, _Off(5), holding, None if champion is None else CHAMPION).alias == "champion"  # 0 exactly


@pytest.mark.parametrize(("most", "alias"), [(MULTIPLY_ADDS - 1, "challenger"), (MULTIPLY_ADDS, "champion")])
def test_a_network_that_costs_more_multiply_adds_a_pixel_than_allowed_is_challenger(
    params: Params, most: int, alias: str
) -> None:
    from components.networks import build_network

    bounded = params.patched({"register.largest_multiply_adds_per_pixel": float(most)})
    decision = decide(bounded, build_network(**NETWORK).eval(), _Holding(None), None)  # type: ignore[arg-type]
    assert decision.alias == alias
    if alias == "challenger":
        assert (
            decision.reason == f"{most + 1} multiply-adds a pixel, register.largest_multiply_adds_per_pixel is {most}"
        )


def test_a_first_version_beyond_a_bound_leaves_no_champion_until_the_bound_is_changed(
    params: Params, store: Store, project: Project
) -> None:
    write_results(10)
    register(project.params(register__largest_multiply_adds_per_pixel=10))
    registry = Registry(store)
    assert registry.champion() is None
    assert store.client.get_registered_model("eqreg-denoise").aliases == {"challenger": 1}
    assert history(registry) == []
    register(project.params(register__largest_multiply_adds_per_pixel=None))
    assert registry.champion() == Version("1", ("champion",))
    assert len(store.client.search_model_versions("name='eqreg-denoise'")) == 1


# What others do with the registry.


def test_a_version_whose_logged_model_was_deleted_is_registered_again(params: Params, store: Store) -> None:
    """Its files are still there, but ``models:/`` does not lead to them any more."""
    sha256 = write_results(10)
    register(params)
    registry = Registry(store)
    store.client.delete_logged_model(store.client.get_model_version("eqreg-denoise", "1").source.rpartition("/")[2])
    assert not registry.has_files(Version("1", ()))
    assert registry.find(sha256) is None
    register(params)
    assert registry.find(sha256) == Version("2", ("champion",))
    decision = json.loads(Path(".eqreg/register/decision.json").read_text())
    assert decision["reason"] == "champion version 1 does not load"


def test_a_decision_is_made_again_if_somebody_moves_the_alias_meanwhile(
    params: Params, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_results(10)
    register(params)
    write_results(6)
    asked: list[tuple[str | None, str]] = []

    def decide_slowly(params: Params, network: nn.Module, registry: Registry, champion: Version | None) -> Decision:
        decision = decide(params, network, registry, champion)
        asked.append((champion.number if champion else None, decision.reason[:6]))
        if len(asked) == 1:
            store.client.delete_registered_model_alias(registry.name, "champion")
        return decision

    monkeypatch.setattr(importlib.import_module("pipeline.stages.register"), "decide", decide_slowly)
    register(params)
    assert asked == [("1", "+4.437"), (None, "there ")]
    assert Registry(store).champion() == Version("2", ("champion",))
    tags = store.client.get_model_version("eqreg-denoise", "2").tags
    assert tags["eqreg.reason"] == "there was no champion"
