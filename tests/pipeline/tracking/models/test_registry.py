"""MLflow's real registry: versions by hash, aliases, and models that do not load."""

from __future__ import annotations

import pickle
import re
import resource
import shutil
import zipfile
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from torch import Tensor, nn

from components.inference.integrity import write_files
from components.networks import build_network
from pipeline.errors import UserError
from pipeline.model_file import save_model
from pipeline.tracking.models.loading import load_registered, network_code, registered_names
from pipeline.tracking.models.registry import CHAMPION, Registry, Version
from pipeline.tracking.store import Store
from tests.pages import python_blocks
from tests.pipeline.conftest import Project

pytestmark = pytest.mark.process

SETTINGS: dict[str, Any] = {"name": "dncnn", "width": 4, "depth": 2, "norm": "none"}
LINEAGE = {"eqreg.lineage": "0123456789ab"}


def _network(seed: int = 0) -> nn.Module:
    network = build_network(**SETTINGS)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return network


def _add(registry: Registry, sha256: str, seed: int = 0) -> Version:
    run_id = registry.store.parent_run(LINEAGE)
    return registry.add(run_id, _network(seed), sha256, {"eqreg.reason": "why", **LINEAGE})


@pytest.fixture
def registry(store: Store) -> Registry:
    """A registry without models."""
    return Registry(store)


def test_an_empty_registry_has_no_champion_and_finds_nothing(registry: Registry) -> None:
    assert registry.champion() is None
    assert registry.find("aa") is None


def test_a_version_is_found_by_the_hash_of_its_model_and_carries_its_tags(registry: Registry) -> None:
    first, second = _add(registry, "aa"), _add(registry, "bb", 1)
    assert (first.number, second.number) == ("1", "2")
    assert registry.find("aa") == first
    assert registry.find("bb") == second
    assert registry.find("cc") is None
    tags = registry.store.client.get_model_version("eqreg-denoise", "1").tags
    assert len(tags.pop("eqreg.files_sha256")) == 64
    assert tags == {"eqreg.reason": "why", "eqreg.model_sha256": "aa", **LINEAGE}
    registry.tag("1", "eqreg.reason", "another")
    assert registry.store.client.get_model_version("eqreg-denoise", "1").tags["eqreg.reason"] == "another"


def test_the_champion_is_the_version_that_the_alias_points_to(registry: Registry) -> None:
    _add(registry, "aa")
    assert registry.champion() is None  # a model, and no alias yet
    registry.point(CHAMPION, "1")
    assert registry.champion() == Version("1", ("champion",))
    _add(registry, "bb", 1)
    registry.point(CHAMPION, "2")
    assert registry.champion() == Version("2", ("champion",))
    assert registry.find("aa") == Version("1", ())
    assert registry.find("bb") == Version("2", ("champion",))


@pytest.mark.parametrize("rejected", [2, 3])
def test_an_alias_that_another_client_creates_at_the_same_time_is_moved_at_the_next_attempt(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, rejected: int
) -> None:
    """What a server with two workers answered to the second of two clients that both found no alias."""
    _add(registry, "aa")
    client = registry.store.client
    answers = [MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed", BAD_REQUEST)] * rejected
    set_alias = client.set_registered_model_alias

    def answer(*arguments: str) -> None:
        if answers:
            raise answers.pop()
        set_alias(*arguments)

    monkeypatch.setattr(client, "set_registered_model_alias", answer)
    if rejected == 3:
        with pytest.raises(UserError, match="UNIQUE constraint failed"):
            registry.point(CHAMPION, "1")
        assert registry.champion() is None
    else:
        registry.point(CHAMPION, "1")
        assert registry.champion() == Version("1", ("champion",))


def test_a_version_loads_as_the_network_that_was_added_for_images_of_any_size(registry: Registry) -> None:
    version = _add(registry, "aa", 5)
    loaded, network = registry.load(version), _network(5)
    assert loaded is not None
    for shape in ((1, 3, 16, 16), (3, 3, 33, 50), (2, 3, 1, 7)):
        images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(loaded(images), network(images), atol=1e-6)


def test_a_version_whose_files_are_gone_does_not_load_and_is_not_found(registry: Registry, project: Project) -> None:
    version = _add(registry, "aa")
    registry.point(CHAMPION, version.number)
    assert registry.has_files(version)
    shutil.rmtree(project.folder / "mlartifacts")
    assert registry.load(version) is None
    assert registry.find("aa") is None
    assert not registry.has_files(version)
    assert registry.champion() == Version("1", ("champion",))  # the alias is still there


def test_a_version_whose_files_are_damaged_does_not_load(registry: Registry, project: Project) -> None:
    version = _add(registry, "aa")
    damaged = list((project.folder / "mlartifacts").rglob("*.pt2"))
    assert damaged
    for file in damaged:
        file.write_bytes(file.read_bytes()[:100])
    assert registry.load(version) is None  # its sum differs
    for file in damaged:
        _list_files_again(registry, version, file.parents[1])
    assert registry.load(version) is None  # it does not load


UNCHANGED = "the registry was not changed: run 'eqreg register' again later, or delete the alias champion to replace it"


def _elsewhere(registry: Registry, source: str) -> Version:
    """A version whose files are said to be at an address."""
    client = registry.store.client
    client.create_registered_model(registry.name)
    made = client.create_model_version(registry.name, source, tags={"eqreg.model_sha256": "aa"})
    return Version(str(made.version), ())


@pytest.mark.parametrize(
    "source", ["s3://bucket/model", "http://127.0.0.1:{port}/api/2.0/mlflow-artifacts/artifacts/model"]
)
def test_files_that_cannot_be_reached_are_not_taken_for_gone(
    registry: Registry, aws: pytest.MonkeyPatch, closed_port: int, source: str
) -> None:
    aws.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    aws.setenv("AWS_MAX_ATTEMPTS", "1")
    aws.setenv("AWS_ACCESS_KEY_ID", "key")
    aws.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    aws.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    version = _elsewhere(registry, source.format(port=closed_port))
    for ask in (lambda: registry.has_files(version), lambda: registry.load(version), lambda: registry.find("aa")):
        with pytest.raises(UserError) as caught:
            ask()
        first, second = str(caught.value).splitlines()
        assert first.startswith("eqreg-denoise version 1 cannot be reached (")
        assert str(closed_port) in first
        assert second == UNCHANGED


def test_a_store_that_does_not_answer_is_no_answer_about_files(registry: Registry, project: Project) -> None:
    version = _add(registry, "aa")
    (project.folder / "mlflow.db").write_bytes(b"something else" * 1000)
    for ask in (registry.has_files, registry.load):
        with pytest.raises(UserError, match=r"the MLflow store sqlite:///.* does not answer as it should"):
            ask(version)


def test_files_of_another_machine_are_not_taken_for_gone(project: Project, postgres: str) -> None:
    """Two machines that share a database each have folders that the other does not see."""
    registry = Registry(Store("denoise", postgres))
    version = _elsewhere(registry, "/home/colleague/model")
    for ask in (registry.has_files, registry.load):
        with pytest.raises(UserError) as caught:
            ask(version)
        first, second = str(caught.value).splitlines()
        assert first == (
            "eqreg-denoise version 1: /home/colleague/model is not on this machine; it may be on the one that "
            "registered it"
        )
        assert second == UNCHANGED
    (project.folder / "model").mkdir()
    (project.folder / "model/MLmodel").write_text("none")
    made = registry.store.client.create_model_version(registry.name, str(project.folder / "model"))
    assert registry.has_files(Version(str(made.version), ()))


def test_a_version_that_was_deleted_meanwhile_is_gone(registry: Registry) -> None:
    version = _add(registry, "aa")
    registry.store.client.delete_model_version(registry.name, version.number)
    assert not registry.has_files(version)
    assert registry.load(version) is None


def test_a_program_of_another_torch_that_does_not_load_is_not_taken_for_damaged(
    registry: Registry, project: Project
) -> None:
    version = _add(registry, "aa")
    (archive,) = (project.folder / "mlartifacts").rglob("*.pt2")
    archive.write_bytes(archive.read_bytes()[:100])
    (record,) = (project.folder / "mlartifacts").rglob("MLmodel")
    record.write_text(record.read_text().replace(f"pytorch_version: {torch.__version__}", "pytorch_version: 99.1"))
    with pytest.raises(UserError) as caught:
        registry.load(version)
    here = torch.__version__.split("+")[0]
    assert str(caught.value) == (
        f"eqreg-denoise version 1 does not load with torch {here}, and torch 99.1 wrote it: install that one\n"
        f"{UNCHANGED}"
    )


def test_what_this_machine_lacks_is_no_fault_of_a_version(registry: Registry) -> None:
    version = _add(registry, "aa")
    assert registry.load(version) is not None
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(UserError) as caught:
            registry.load(version)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert str(caught.value).startswith("eqreg-denoise version 1 cannot be read here (")
    assert "Too many open files" in str(caught.value)
    assert str(caught.value).endswith(f"\n{UNCHANGED}")


def test_a_model_is_loaded_by_alias_or_number(registry: Registry) -> None:
    _add(registry, "aa", 3)
    registry.point(CHAMPION, "1")
    images = torch.rand(1, 3, 9, 12)
    for uri in ("models:/eqreg-denoise@champion", "models:/eqreg-denoise/1"):
        assert torch.allclose(load_registered(uri, registry.store.uri, "cpu")(images), _network(3)(images), atol=1e-6)


def _add_with_its_file(registry: Registry, folder: Path) -> tuple[Version, Path]:
    """A version with its model file, and the record of MLflow about it."""
    network = build_network(**SETTINGS)
    save_model(folder / "model.safetensors", network, {"network": SETTINGS, "task": "denoise"})
    run_id = registry.store.parent_run(LINEAGE)
    version = registry.add(run_id, network, "aa", {}, folder / "model.safetensors")
    (record,) = (folder / "mlartifacts").rglob("MLmodel")
    return version, record


def test_a_version_with_its_file_is_the_networks_own_class_and_computes_what_its_program_does(
    registry: Registry, project: Project
) -> None:
    version, _ = _add_with_its_file(registry, project.folder)
    uri, images = f"models:/eqreg-denoise/{version.number}", torch.rand(2, 3, 33, 50)
    rebuilt, program = load_registered(uri, registry.store.uri, "cpu"), registry.load(version)
    assert type(rebuilt) is type(build_network(**SETTINGS))
    assert not rebuilt.training
    assert program is not None
    assert type(program) is not type(rebuilt)
    torch.testing.assert_close(rebuilt(images), program(images))
    on_meta = load_registered(uri, registry.store.uri, "meta")
    assert {tensor.device.type for tensor in on_meta.state_dict().values()} == {"meta"}


def _list_files_again(registry: Registry, version: Version, folder: Path) -> None:
    """As if the files had been registered as they are now."""
    registry.tag(version.number, "eqreg.files_sha256", write_files(folder))


@pytest.mark.parametrize("change", ["other code", "no file", "file of an unknown network"])
def test_a_version_whose_file_does_not_fit_this_code_is_loaded_as_its_program(
    registry: Registry, project: Project, change: str
) -> None:
    version, record = _add_with_its_file(registry, project.folder)
    (file,) = record.parent.rglob("*.safetensors")
    if change == "other code":
        code = network_code(build_network(**SETTINGS))
        assert code in record.read_text()
        record.write_text(record.read_text().replace(code, "0123456789ab"))
    elif change == "no file":
        file.unlink()
    else:
        save_model(file, build_network(**SETTINGS), {"network": {"name": "of the past"}, "task": "denoise"})
    _list_files_again(registry, version, record.parent)
    loaded = load_registered(f"models:/eqreg-denoise/{version.number}", registry.store.uri, "cpu")
    assert type(loaded) is not type(build_network(**SETTINGS))
    assert loaded(torch.rand(1, 3, 9, 12)).shape == (1, 3, 9, 12)


class Positions(nn.Module):
    """Adds each pixel's column, from an operation that names the device of the export, as networks once had them."""

    in_channels, out_channels = 1, 1

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.slope * torch.arange(inputs.shape[-1], device=inputs.device)


@pytest.mark.parametrize("kind", ["unet", "positions"])
def test_a_model_runs_on_the_device_that_it_is_loaded_onto(registry: Registry, kind: str) -> None:
    """On "meta", which every machine has, and whose tensors meet no others."""
    network = (
        Positions()
        if kind == "positions"
        else build_network("unet", in_channels=1, out_channels=1, width=4, depth=3, norm="batch")
    )
    version = registry.add(registry.store.parent_run(LINEAGE), network, "aa", {})
    loaded = load_registered(f"models:/eqreg-denoise/{version.number}", registry.store.uri, "meta")
    assert {tensor.device.type for tensor in (*loaded.parameters(), *loaded.buffers())} == {"meta"}
    output = loaded(torch.empty(3, 1, 33, 50, device="meta"))
    assert (output.device.type, output.shape) == ("meta", (3, 1, 33, 50))
    images = torch.rand(3, 1, 33, 50)
    on_cpu = load_registered(f"models:/eqreg-denoise/{version.number}", registry.store.uri, torch.device("cpu"))
    torch.testing.assert_close(on_cpu(images), network.eval()(images))


def test_a_model_with_pickles_is_refused_on_every_device(registry: Registry, project: Project) -> None:
    version = _add(registry, "aa")
    (archive,) = (project.folder / "mlartifacts").rglob("*.pt2")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("model/data/weights/more", pickle.dumps(Path))
    _list_files_again(registry, version, archive.parents[1])
    assert registry.load(version) is None
    for device in ("cpu", "meta"):
        with pytest.raises(UserError, match="pickle is disallowed"):
            load_registered("models:/eqreg-denoise/1", registry.store.uri, device)


def _lines_of(page: str, part: str) -> str:
    """The block of Python in a page that has a part."""
    (block,) = (block for block in python_blocks(page) if part in block.text)
    return block.text


def _registered(registry: Registry) -> None:
    network = build_network("unet", width=4, depth=3, norm="batch")
    registry.point(CHAMPION, registry.add(registry.store.parent_run(LINEAGE), network, "aa", {}).number)
    mlflow.set_tracking_uri(registry.store.uri)


def test_the_pages_load_a_model_onto_a_gpu_without_this_project(registry: Registry) -> None:
    """Their very lines, with "meta" for the GPU."""
    lines = _lines_of("docs/how-to/deploy.md", "move_to_device_pass")
    assert re.findall(r"^(?:from|import) .*", lines, re.MULTILINE) == [
        "import mlflow, torch",
        "from torch.export.passes import move_to_device_pass",
    ]
    assert lines.count('"cuda"') == 2
    _registered(registry)
    names: dict[str, Any] = {}
    exec(lines.replace('"cuda"', '"meta"'), names)
    assert (names["restored"].device.type, names["restored"].shape) == ("meta", (1, 3, 480, 640))


@pytest.mark.parametrize("page", ["docs/how-to/deploy.md"])
def test_the_pages_load_a_model_without_this_project(registry: Registry, page: str) -> None:
    """Their very lines, with the address of this test's store."""
    lines = _lines_of(page, "mlflow.pytorch.load_model")
    assert re.findall(r"^(?:from|import) .*", lines, re.MULTILINE) == ["import mlflow, torch"]
    _registered(registry)
    names: dict[str, Any] = {}
    exec(lines.replace("sqlite:////path/to/mlflow.db", registry.store.uri), names)
    assert names["restored"].shape == (1, 3, 480, 640)
    assert 0 < names["restored"].std() < 1


@pytest.mark.parametrize(
    "uri", ["models:/nonsense@champion", "models:/eqreg-denoise@nonsense", "models:/eqreg-denoise/77", "models:/a"]
)
def test_a_model_that_does_not_exist_is_refused_in_one_line_with_those_that_do(registry: Registry, uri: str) -> None:
    _add(registry, "aa")
    with pytest.raises(UserError) as caught:
        load_registered(uri, registry.store.uri, "cpu")
    message = str(caught.value)
    assert message.startswith(f"--model {uri}: no such model in sqlite:///")
    assert message.endswith("registered: eqreg-denoise")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("uri", ["models:/eqreg-denoise/99999999999999999999", "models:/eqreg-denoise/1/other"])
def test_an_address_of_nothing_is_refused_with_the_models_that_exist(registry: Registry, uri: str) -> None:
    _add(registry, "aa")
    with pytest.raises(UserError, match=f"--model {uri}: no such model in .*; registered: eqreg-denoise$"):
        load_registered(uri, registry.store.uri, "cpu")


def test_an_address_without_a_name_is_refused_with_one_that_has(registry: Registry) -> None:
    _add(registry, "aa")
    with pytest.raises(UserError, match="--model models:/: use models:/NAME@ALIAS or models:/NAME/VERSION"):
        load_registered("models:/", registry.store.uri, "cpu")


class Echo(mlflow.pyfunc.PythonModel):
    """A model of another tool."""

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads the hints
        return model_input


def test_a_model_of_another_tool_is_not_said_to_be_missing(registry: Registry, project: Project) -> None:
    _add(registry, "aa")
    mlflow.pyfunc.save_model(project.folder / "echo", python_model=Echo())
    registry.store.client.create_model_version("eqreg-denoise", (project.folder / "echo").as_uri())
    with pytest.raises(UserError) as caught:
        load_registered("models:/eqreg-denoise/2", registry.store.uri, "cpu")
    assert str(caught.value) == (
        '--model models:/eqreg-denoise/2: cannot be loaded as a network (Model does not have the "pytorch" flavor)'
    )


def test_an_exported_program_that_this_torch_cannot_read_names_the_torch_that_wrote_it(
    registry: Registry, project: Project
) -> None:
    _add(registry, "aa")
    (archive,) = (project.folder / "mlartifacts").rglob("*.pt2")
    archive.write_bytes(archive.read_bytes()[:100])
    record = archive.parents[1] / "MLmodel"
    record.write_text(record.read_text().replace(f"pytorch_version: {torch.__version__}", "pytorch_version: 99.1"))
    registry.tag("1", "eqreg.files_sha256", write_files(record.parent))
    here = torch.__version__.split("+")[0]
    with pytest.raises(
        UserError, match=rf"cannot be loaded as a network .*; torch 99\.1 wrote it, here is torch {here}"
    ):
        load_registered("models:/eqreg-denoise/1", registry.store.uri, "cpu")


def test_a_version_whose_files_are_gone_is_not_said_to_be_missing(registry: Registry, project: Project) -> None:
    _add(registry, "aa")
    shutil.rmtree(project.folder / "mlartifacts")
    with pytest.raises(UserError, match="/1: its files are gone or on another machine, or its logged"):
        load_registered("models:/eqreg-denoise/1", registry.store.uri, "cpu")


def test_all_models_are_found_and_a_message_names_the_first_twenty(registry: Registry) -> None:
    """MLflow gives the names in pages of 100."""
    names = [f"model-{n:03d}" for n in range(103)]
    for name in names:
        registry.store.client.create_registered_model(name)
    assert registered_names(registry.store.client) == names
    with pytest.raises(UserError, match=r"registered: model-000, .*, model-019 and 83 more$"):
        load_registered("models:/eqreg-denoise/1", registry.store.uri, "cpu")


def test_asking_a_store_that_is_not_there_does_not_make_one(project: Project) -> None:
    path = project.folder / "mlflow.db"
    with pytest.raises(UserError, match=r"--model models:/a@champion: there is no sqlite:///.*; run 'eqreg register'"):
        load_registered("models:/a@champion", f"sqlite:///{path}", "cpu")
    assert not Path(path).exists()


@pytest.mark.parametrize("name", ["model.pt2", "MLmodel", "tiles.py"])
def test_an_altered_byte_of_a_version_is_noticed_before_anything_is_loaded(
    registry: Registry, project: Project, name: str
) -> None:
    version = _add(registry, "aa")
    (file,) = (project.folder / "mlartifacts").rglob(name)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} was altered after registration: its SHA-256 differs; use another"):
        load_registered(f"models:/eqreg-denoise/{version.number}", registry.store.uri, "cpu")
    assert registry.load(version) is None
