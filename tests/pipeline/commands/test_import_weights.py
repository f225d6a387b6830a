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
from tests.components.networks.small import SMALL, random
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
        (
            ("prenet", "w.pth", "a.safetensors", "derain", ["width=wide"]),
            "network prenet: width: 'wide': use a whole number",
        ),
        (("prenet", "w.pth", "a.safetensors", "derain", ["width={"]), "--set width={: the value is no YAML"),
        (("prenet", "w.pth", "a.safetensors", "derain", []), "w.pth: weights of other settings; conv0.0.weight"),
        (("prenet", "w.pth", "a.safetensors", "derain", ["scale=2"]), "prenet scale 2: use 1"),
        (
            ("acdnet", "w.pth", "a.safetensors", "derain", []),
            "NETWORK acdnet: does not fit --task derain (acdnet needs li and metal_mask, where there is image)",
        ),
        (("redcnn", "w.pth", "a.safetensors", "denoise", []), "w.pth: not the weights of this network with these"),
        (("resnet", "w.pth", "a.safetensors", "denoise", []), "NETWORK resnet: does not fit --task denoise"),
        (("dncnn", "w.pth", "a.safetensors", "classify", []), "NETWORK dncnn: does not fit --task classify"),
        (
            ("dncnn", "w.pth", "a.safetensors", "inpaint", []),
            "--task inpaint: stacks image, mask, which has 4 channels for an image of 3, and network dncnn takes 3:",
        ),
        (
            ("prenet", "w.pth", "w.safetensors", "derain", ["width=0"]),
            "network prenet: width: 0: use a whole number of",
        ),
        (
            ("prenet", "w.pth", "a.safetensors", "derain", ["adds_input=0"]),
            "network prenet: adds_input: 0: use true or",
        ),
        (("prenet", "w.pth", "a.safetensors", "derain", ["inputs=image"]), "network prenet: inputs: unknown"),
        (("prenet", "w.pth", "a.safetensors", "derain", ["name=unet"]), "--set name: NETWORK says it"),
        (
            ("prenet", "w.pth", "a.safetensors", "derain", ["out_channels=-1"]),
            "network prenet: out_channels: -1: use a whole number of at least 1",
        ),
        (
            ("dncnn", "w.pth", "a.safetensors", "denoise", ["in_channels=three"]),
            "network dncnn: in_channels: 'three': use a whole number of at least 1",
        ),
        (
            ("dncnn", "w.pth", "a.safetensors", "denoise", ["scale=2.0"]),
            "network dncnn: scale: 2.0: use a whole number",
        ),
        (
            ("resnet", "w.pth", "a.safetensors", "classify", ["classes=9999999999"]),
            "network resnet: classes: 9999999999: use a whole number of at most",
        ),
        (
            ("prenet", "w.pth", "a.safetensors", "derain", ["width=2020-13-45"]),
            "--set width=2020-13-45: the value is no",
        ),
        (("prenet", "w.pth", "/proc/a.safetensors", "derain", ["width=8"]), "--out /proc/a.safetensors: cannot be wri"),
        (
            ("dncnn", "w.pth", "a.safetensors", "denoise", ["scale=2"]),
            "--task denoise: keeps the size of images, and network dncnn enlarges them: use --set scale=1",
        ),
        (
            ("dncnn", "w.pth", "a.safetensors", "super_resolution", []),
            "--task super_resolution: enlarges images, and network dncnn of scale 1 does not: use --set scale=2",
        ),
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


def test_a_file_of_weights_is_not_overwritten_by_the_model_made_of_it(project: Project) -> None:
    published(Path("w.safetensors"))
    content = Path("w.safetensors").read_bytes()
    Path("link.safetensors").symlink_to("w.safetensors")
    for out in ("w.safetensors", "./link.safetensors"):
        with pytest.raises(UserError, match="would overwrite the weights; name another file"):
            import_weights("prenet", Path("w.safetensors"), Path(out), "derain", ["width=8"])
    assert Path("w.safetensors").read_bytes() == content


def test_others_may_read_the_model_file(project: Project) -> None:
    published(Path("w.pth"))
    import_weights("prenet", Path("w.pth"), Path("a.safetensors"), "derain", ["width=8", "stages=3"])
    assert Path("a.safetensors").stat().st_mode & 0o777 == 0o644


def test_settings_that_no_memory_holds_are_refused_in_a_line(project: Project) -> None:
    """Oracle: the address space of this process holds no layer of 1,048,576 x 1,048,576 kernels, 40 TB."""
    Path("w.pth").write_bytes(b"")
    with pytest.raises(UserError, match="network prenet: cannot be built with these settings: out of memory"):
        import_weights("prenet", Path("w.pth"), Path("a.safetensors"), "derain", ["width=1048576"])


@pytest.mark.parametrize(
    ("name", "task", "settings", "command"),
    [
        ("ffdnet", "denoise", {}, "eqreg restore IMAGE OUT --model a.safetensors --noise-level 25"),
        ("prenet", "derain", {}, "eqreg restore IMAGE OUT --model a.safetensors"),
        ("resnet", "classify", {"width": 8, "depth": 1}, "eqreg classify IMAGE --model a.safetensors"),
        (
            "dncnn",
            "inpaint",
            {"width": 8, "depth": 3, "in_channels": 4},
            "eqreg restore IMAGE OUT --model a.safetensors --mask MASK.png",
        ),
    ],
)
def test_the_last_line_is_a_command_that_the_model_can_be_tried_with(
    project: Project, capsys: pytest.CaptureFixture[str], name: str, task: str, settings: dict[str, int], command: str
) -> None:
    network = build_network(name, **{**SMALL.get(name, {}), **settings})
    torch.save(network.state_dict(), "w.pth")
    chosen = [f"{key}={value}" for key, value in {**SMALL.get(name, {}), **settings}.items()]
    import_weights(name, Path("w.pth"), Path("a.safetensors"), task, chosen)
    assert capsys.readouterr().out.splitlines()[-1] == f"try it: {command}"


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
