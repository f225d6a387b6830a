"""A new member of a registry is one file and one line: each test adds one to a copy of the project and uses it.

No other file of the copy is touched. What a test adds to params.yaml is what a user would add.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.pipeline.workspace import ROOT

pytestmark = pytest.mark.process


class Copy:
    """A copy of the code and of the packed photographs, to which a test adds."""

    def __init__(self, folder: Path, packed: Path) -> None:
        self.folder = folder
        for name in ("components", "pipeline", "tune_spaces"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(packed / "params.yaml", folder / "params.yaml")
        shutil.copytree(packed / "data", folder / "data", copy_function=os.link)

    def add(self, path: str, content: str) -> None:
        """Writes a new file."""
        assert not (self.folder / path).exists()
        (self.folder / path).write_text(dedent(content))

    def register(self, registry: str, line: str) -> None:
        """Adds one line to a registry."""
        path, head = self.folder / "components/members.py", f"{registry}: Registry = {{\n"
        assert head in path.read_text()
        path.write_text(path.read_text().replace(head, f"{head}    {line}\n"))

    def run(self, *parts: str) -> str:
        """Runs a script, given in parts; returns what it printed."""
        return self._process("-c", "\n".join(dedent(part) for part in parts))

    def command(self, *arguments: str) -> str:
        """Runs ``eqreg`` with these arguments; returns what it printed."""
        return self._process("-m", "pipeline.cli", *arguments)

    def _process(self, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def copy(tmp_path: Path, packed: Path) -> Copy:
    """A copy for one test."""
    return Copy(tmp_path / "copy", packed)


NETWORK = '''
    """A network of one test: a convolution at half the resolution."""

    from dataclasses import dataclass

    from torch import Tensor, nn
    from torch.nn import functional as F

    from components.networks.blocks import NetworkSettings
    from components.networks.form import RestorationNetwork
    from components.registry import check_between


    class Halved(RestorationNetwork):
        """``output = inputs + up(convolutions(down(inputs)))``."""

        scales = (1,)

        @dataclass(frozen=True, kw_only=True)
        class Settings(NetworkSettings):
            """Settings of the network."""

            features: int = 8
            """Channels between the convolutions."""

            def __post_init__(self) -> None:
                check_between(self, features=(4, 64))

            @property
            def smallest_side(self) -> int:
                return 20

            @property
            def channels(self) -> dict[str, int]:
                return {"features": self.features}

            def can_turn(self, side: int) -> bool:
                return side % 2 == 0

        def __init__(self, settings: Settings, *, in_channels: int = 3, out_channels: int = 3, scale: int = 1) -> None:
            super().__init__()
            self.in_channels, self.out_channels, self.scale = in_channels, out_channels, scale
            self.first = nn.Conv2d(in_channels, settings.features, 3, padding=1)
            self.last = nn.Conv2d(settings.features, out_channels, 3, padding=1)

        def forward(self, inputs: Tensor) -> Tensor:
            maps = F.relu(self.first(F.avg_pool2d(inputs, 2, ceil_mode=True)))
            size = (inputs.shape[-2], inputs.shape[-1])
            return inputs[:, : self.out_channels] + F.interpolate(self.last(maps), size=size, mode="bilinear")
'''

TRAIN = """
    import sys
    from pathlib import Path

    import torch

    from pipeline.config.schema import load_params
    from pipeline.errors import UserError
    from pipeline.model_file import save_model
    from pipeline.training_job import TrainingJob


    def refusal(changes):
        try:
            load_params().patched(changes)
        except UserError as error:
            return str(error)


    def train(changes):
        params = load_params().patched({"train.steps": 2, "train.validate_every": 2, **changes})
        job = TrainingJob(params, Path("data/packed").resolve())
        job.check([1])
        history = {}
        state = job.run(history.__setitem__, lambda state, metrics: None)
        assert set(history) == {2}, history
        assert all(value == value for value in history[2].values()), history
        metadata = {"network": job.network_settings(), "task": params.task}
        save_model(Path("model.safetensors"), state.averaged.module, metadata)
        return params, history[2], state
"""


def test_a_network_with_settings_of_its_own(copy: Copy) -> None:
    copy.add("components/networks/halved.py", NETWORK)
    copy.register("NETWORKS", '"halved": "components.networks.halved:Halved",')
    copy.add(
        "tune_spaces/features.yaml",
        """
        search: grid
        equivariance.weight: {distribution: choice, values: [0.05]}
        network.features: {distribution: choice, values: [8, 12]}
        """,
    )
    copy.run(
        TRAIN,
        """
        network = {"network": {"name": "halved"}}
        assert refusal({"network": {"name": "halved", "width": 8}}) == (
            "params: network.width: unknown; known here: features")
        assert refusal({"network": {"name": "halved", "features": 3}}) == (
            "params: network.features: 3: use a whole number of at least 4")
        assert refusal({"network": {"name": "halved", "features": "8"}}) == (
            "params: network.features: '8': use a whole number")
        assert "network.features: 10 channels do not divide by 4" in refusal(
            {"network": {"name": "halved", "features": 10}})
        assert "network halved cannot turn inputs of 25 pixels exactly" in refusal({**network, "train.patch_size": 25})
        assert "needs 20 pixels or more" in refusal({**network, "train.patch_size": 16})
        assert "use auto, halved, acdnet, " in refusal({"network.name": "x"})

        params, metrics, _ = train({**network, "equivariance.sample_layers": None})
        assert {"penalty/first", "penalty/last"} <= metrics.keys(), metrics
        assert not {"components.networks.convolutional.resnet", "components.networks.unets.unet"} & sys.modules.keys()

        from pipeline.provenance.code_hash import deciding_files
        from pipeline.provenance.training_fingerprint import DECIDING
        from pipeline.search_space.space import load_space

        files = deciding_files(*DECIDING, *params.modules)
        assert "components/networks/halved.py" in files and "components/networks/unets/unet.py" not in files
        space = load_space("features", params)
        assert [space.given(point)["network.features"] for point in space.grid()] == [8, 12]

        import numpy as np
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 255, (37, 41, 3), dtype=np.uint8)
        Image.fromarray(pixels).save("in.png")
        """,
    )
    copy.command("restore", "in.png", "out.png", "--model", "model.safetensors")
    assert (copy.folder / "out.png").stat().st_size > 1000
    told = copy.command("doctor", "model.safetensors")
    assert "first" in told
    assert "last" in told


def test_a_task_with_a_degradation_a_metric_and_a_baseline_of_its_own(copy: Copy) -> None:
    copy.add(
        "components/tasks/dequantise.py",
        '''
        """A task of one test: images with few grey levels."""

        from dataclasses import dataclass

        import numpy as np

        from components.registry import check_between
        from components.tasks.base import DegradationSettings, Metric, Task


        @dataclass(frozen=True, kw_only=True)
        class Levels(DegradationSettings):
            """Settings of the degradation."""

            levels: int

            def __post_init__(self):
                check_between(self, levels=(2, 256))


        class Dequantise(Task):
            """Images with few grey levels."""

            name = "dequantise"
            degradations = (Levels,)
            metrics = (Metric("error", "largest error"),)
            network = {"name": "dncnn", "width": 4, "depth": 3, "norm": "none"}
            loss = "l1"
            baseline = "components.tasks.dequantise:unchanged"
            takes_grey = False

            def degradation(self, auxiliary=None, *, is_training=False):
                return lambda clean, generator: np.round(clean * (self.settings.levels - 1)).astype(np.float32) / (
                    self.settings.levels - 1)

            def compute_score(self, outputs, inputs, references):
                return -(outputs - references).abs().amax(dim=(1, 2, 3)).double()

            def compute_metrics(self, outputs, inputs, references):
                return {"error": -self.compute_score(outputs, inputs, references)}


        def unchanged(task, train, pairs, num_classes, num_workers):
            return (lambda inputs: inputs), [], {"name": "unchanged"}
        ''',
    )
    line = '"dequantise": "components.tasks.dequantise:Dequantise",'
    copy.register("TASKS", line)
    text = (copy.folder / "params.yaml").read_text()
    section = "  dequantise: {degradation: {levels: 8}, out_of_distribution: {coarse: {levels: 4}}, rotations: true}\n"
    (copy.folder / "params.yaml").write_text(text.replace("\ntasks:\n", f"\ntasks:\n{section}", 1))
    copy.run(
        TRAIN,
        """
        from pipeline.stages.evaluate import _evaluate
        from pipeline.measurement import evaluation_packs
        from pipeline.stages.preprocess import preprocess

        task = {"task": "dequantise", "network": {"name": "auto"}}
        assert refusal({**task, "tasks.dequantise.degradation.levels": 1}) == (
            "params: tasks.dequantise.degradation: levels: 1: use a whole number of at least 2")
        assert refusal({**task, "tasks.dequantise.degradation.sigma": 1}) == (
            "params: tasks.dequantise.degradation.sigma: unknown; known here: levels")
        assert "takes colour images" in refusal({**task, "preprocess.colour": "grey"})
        preprocess(load_params().patched(task))
        params, metrics, state = train(task)
        assert -1 <= metrics["val_score"] < 0
        assert params.network_name == "dncnn" and params.network_settings.width == 4
        test, others = evaluation_packs(Path("data/packed"))
        assert list(others) == ["coarse"]
        _evaluate(params, state.averaged.module.eval(), params.build_task(), test, others)
        import json
        found = json.loads(Path("results/evaluate/metrics.json").read_text())
        assert found["classical_method"] == {"name": "unchanged"}
        assert 0.06 < found["test"]["input"]["error"] <= 1 / 14 + 1e-6
        """,
    )


def test_a_loss_a_schedule_and_an_optimiser(copy: Copy) -> None:
    copy.add(
        "components/training/mine.py",
        '''
        """A loss, a schedule and an optimiser of one test."""

        from dataclasses import dataclass

        import torch

        from components.training.losses import Loss
        from components.training.optimizers import Optimizer
        from components.training.schedules import Schedule


        @dataclass(frozen=True, kw_only=True)
        class Power(Loss):
            exponent: float = 3.0

            def __call__(self, outputs, targets):
                return (outputs - targets).abs().pow(self.exponent).mean()


        @dataclass(frozen=True, kw_only=True)
        class Falling(Schedule):
            slope: float = 1.0

            def __call__(self, progress):
                return 1 - self.slope * progress


        @dataclass(frozen=True, kw_only=True)
        class Signs(Optimizer):
            def build(self, parameters, learning_rate, decay):
                return torch.optim.Rprop(parameters, lr=learning_rate)
        ''',
    )
    for registry, line in (
        ("LOSSES", '"power": "components.training.mine:Power",'),
        ("SCHEDULES", '"falling": "components.training.mine:Falling",'),
        ("OPTIMIZERS", '"signs": "components.training.mine:Signs",'),
    ):
        copy.register(registry, line)
    copy.run(
        TRAIN,
        """
        chosen = {"train.loss": {"name": "power", "exponent": 2.0}, "train.schedule": "falling",
                  "train.optimizer": "signs", "train.report_every": 1, "train.warmup_steps": 0}
        assert refusal({"train.loss": {"name": "power", "exponant": 2}}) == (
            "params: train.loss.exponant: unknown; did you mean exponent?")
        assert refusal({"train.schedule": {"name": "falling", "slope": True}}) == (
            "params: train.schedule.slope: True: use a number")
        params = load_params().patched({"train.steps": 2, "train.validate_every": 2, **chosen})
        assert params.resolved["train"]["schedule"] == {"name": "falling", "slope": 1.0}
        job = TrainingJob(params, Path("data/packed").resolve())
        history = {}
        state = job.run(history.__setitem__, lambda state, metrics: None)
        rate = params.train.learning_rate
        assert [history[step]["learning_rate"] for step in (1, 2)] == [rate, rate / 2], history
        assert type(state.optimizer).__name__ == "Rprop"
        of_mse = TrainingJob(params.patched({"train.loss": "mse"}), job.packed)
        again = {}
        of_mse.run(again.__setitem__, lambda state, metrics: None)
        assert abs(again[1]["task_loss"] - history[1]["task_loss"]) < 1e-6
        assert params.hash != of_mse.params.hash
        """,
    )


def test_a_penalty_with_its_needs_and_its_gradient(copy: Copy) -> None:
    copy.add(
        "components/equivariance/absolute.py",
        '''
        """A penalty of one test: absolute differences."""

        from .penalties import field_residual


        def absolute(originals, transformed, element, field, group):
            return field_residual(originals, transformed, element, field, group).abs().mean()
        ''',
    )
    path = copy.folder / "components/equivariance/config.py"
    head = "PENALTIES: dict[str, Penalty] = {\n"
    line = '    "absolute": Penalty(measure=absolute, needs_exact_group=True),\n'
    assert head in path.read_text()
    text = path.read_text().replace(head, head + line)
    path.write_text(text.replace("from .groups import", "from .absolute import absolute\nfrom .groups import", 1))
    copy.run(
        TRAIN,
        """
        chosen = {"equivariance.penalty": "absolute", "equivariance.sample_layers": None, "train.warmup_steps": 0,
                  "equivariance.warmup_steps": 0}
        assert "needs pairs" in refusal({**chosen, "equivariance.pairing": "none"})
        assert "C8 cannot turn kernels exactly" in refusal({**chosen, "equivariance.group": "C8", "network.width": 8})
        assert "has no effect under penalty 'absolute'" in refusal({**chosen, "equivariance.sample_fields": 0.5})
        assert "'absolut': use absolute, rotation" in refusal({"equivariance.penalty": "absolut"})
        params, metrics, state = train(chosen)
        assert metrics["penalty"] > 0 and metrics["gradient_ratio"] > 0, metrics
        _, _, control = train({**chosen, "equivariance.weight": 0})
        pairs = zip(state.network.parameters(), control.network.parameters())
        assert any(not torch.equal(own, other) for own, other in pairs)
        from pipeline.provenance.code_hash import deciding_files
        from pipeline.provenance.training_fingerprint import DECIDING
        assert "components/equivariance/absolute.py" in deciding_files(*DECIDING, *params.modules)
        """,
    )
