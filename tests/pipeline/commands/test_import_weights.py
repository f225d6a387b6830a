"""``eqreg import``: published weights become a model file that the other commands use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from components.networks import build_network
from pipeline.cli import app
from pipeline.commands.import_weights import import_weights
from pipeline.errors import UserError
from pipeline.model_file import load_model
from tests.components.networks.small import random
from tests.pipeline.conftest import Project

pytestmark = pytest.mark.process


def published(path: Path, name: str = "prenet", **settings: object) -> None:
    torch.save({"state_dict": random(name, **settings).float().published.state_dict()}, path)  # type: ignore[operator]


def test_imported_weights_restore_an_image_as_the_published_module_does(project: Project) -> None:
    published(Path("weights.pth"), stages=2)
    import_weights("prenet", Path("weights.pth"), Path("rain.safetensors"), "derain", ["width=8", "stages=2"])
    network, metadata = load_model(Path("rain.safetensors"))
    assert metadata["task"] == "derain"
    assert metadata["network"]["inputs"] == ["image"]
    image = torch.rand(1, 3, 20, 17)
    expected = random("prenet", stages=2).float().published(image)[0]
    torch.testing.assert_close(network(image), expected)


def test_a_network_of_several_inputs_gets_those_of_its_task(project: Project) -> None:
    sizes = ["maps=4", "dual_channels=3", "atoms=5", "residual_blocks=1", "stages=2"]
    published(Path("weights.pth"), "acdnet")
    network = import_weights("acdnet", Path("weights.pth"), Path("ct.safetensors"), "ct_mar", sizes)
    loaded, metadata = load_model(Path("ct.safetensors"))
    assert metadata["network"]["inputs"] == ["li", "image", "metal_mask"]
    stack = torch.rand(1, 3, 12, 12)
    assert torch.equal(loaded(stack), network(stack))
    other = build_network(**{**metadata["network"], "inputs": ["image", "li", "metal_mask"]}).eval()
    other.load_state_dict(loaded.state_dict())
    assert torch.equal(loaded(stack), other(stack[:, [1, 0, 2]]))


def test_a_setting_may_be_a_list(project: Project) -> None:
    published(Path("weights.pth"), "nafnet")
    settings = ["width=8", "encoder_blocks=[1, 1]", "middle_blocks=1", "decoder_blocks=[1, 1]"]
    network = import_weights("nafnet", Path("weights.pth"), Path("naf.safetensors"), "denoise", settings)
    loaded, metadata = load_model(Path("naf.safetensors"))
    assert metadata["network"]["encoder_blocks"] == [1, 1]
    image = torch.rand(1, 3, 8, 12)
    assert torch.equal(loaded(image), network(image))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prent", "w.pth", "a.safetensors", "derain", []), "NETWORK prent: unknown; did you mean prenet?"),
        (("prenet", "w.pth", "a.safetensors", "rain", []), "--task rain: unknown; did you mean derain?"),
        (("prenet", "w.pth", "a.pth", "derain", []), "--out a.pth: a model file is called NAME.safetensors"),
        (("prenet", "w.pth", "no/a.safetensors", "derain", []), "--out no/a.safetensors: there is no folder no"),
        (("prenet", "none.pth", "a.safetensors", "derain", []), "none.pth: cannot be read"),
        (("prenet", "w.pth", "a.safetensors", "derain", ["width"]), "--set width: write SETTING=VALUE"),
        (("prenet", "w.pth", "a.safetensors", "derain", ["widht=8"]), "network prenet: widht: unknown; did you mean"),
        (("prenet", "w.pth", "a.safetensors", "derain", ["width=wide"]), "network prenet: width: 'wide': use a whole"),
        (("prenet", "w.pth", "a.safetensors", "derain", ["width={"]), "--set width={: the value is no YAML"),
        (("prenet", "w.pth", "a.safetensors", "derain", []), "w.pth: weights of other settings; conv0.0.weight"),
        (("prenet", "w.pth", "a.safetensors", "derain", ["scale=2"]), "prenet scale 2: use 1"),
        (
            ("acdnet", "w.pth", "a.safetensors", "derain", []),
            "acdnet needs li and metal_mask, and the stack holds image",
        ),
        (("redcnn", "w.pth", "a.safetensors", "denoise", []), "w.pth: not the weights of this network; missing: conv1"),
    ],
)
def test_what_cannot_be_imported_is_refused_in_a_line_and_leaves_no_file(
    project: Project, arguments: tuple[str, str, str, str, list[str]], message: str
) -> None:
    published(Path("w.pth"))
    name, weights, out, task, settings = arguments
    with pytest.raises(UserError) as refused:
        import_weights(name, Path(weights), Path(out), task, settings)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
    assert not list(Path().glob("*.safetensors*"))


def test_the_command_imports_and_restore_takes_what_it_made(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    published(Path("weights.pth"), stages=2)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save("in.png")
    options = ["--out", "rain.safetensors", "--task", "derain", "--set", "width=8", "--set", "stages=2"]
    app(["import", "prenet", "weights.pth", *options], standalone_mode=False)
    assert "rain.safetensors: prenet with the weights of weights.pth" in capsys.readouterr().out
    app(["restore", "in.png", "out.png", "--model", "rain.safetensors"], standalone_mode=False)
    assert Image.open("out.png").size == (30, 20)
