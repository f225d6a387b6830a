"""``eqreg models`` as a user calls it, in a project with two registered versions."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from PIL import Image

from pipeline.cli import _is_for_the_user, app
from pipeline.console import console
from pipeline.stages.register import register
from pipeline.tracking.models.registry import Registry
from pipeline.tracking.store import Store
from tests.messages import note
from tests.pipeline.conftest import Project
from tests.pipeline.small_results import FIGURES, MULTIPLY_ADDS, write_results, write_validation

pytestmark = pytest.mark.process

GAIN = {"mean": 10.0, "low": 8.5, "high": 11.25}
FULL = {
    "test": {**FIGURES["test"], "scenes": 3, "gain": {"psnr": {"over_input": GAIN, "over_classical": GAIN}}},
    "equivariance_error": {"output": 0.0625},
}
Run = Callable[..., str]


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A project with version 1, 10 grey levels off the truth, and version 2, which is 5 off and the champion.

    Tests change the database, of which each gets a copy; the files of the versions are shared.
    """
    folder = tmp_path_factory.mktemp("registered")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            patch.delenv(name, raising=False)
        shutil.copyfile(empty_database, folder / "mlflow.db")
        write_validation([0, 1, 2])
        params = Project(folder).params()
        for levels in (10, 5):
            write_results(levels, FULL)
            register(params)
    return folder


@pytest.fixture
def run(registered: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs ``eqreg models`` in the project, gives what it printed, and insists on its exit code."""
    monkeypatch.chdir(registered)
    monkeypatch.setattr(console, "width", 120)  # it asks for COLUMNS when it is made, which may be long ago
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(registered.parent))
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    copied = registered / f"{secrets.token_hex(8)}.db"  # MLflow keeps connections to the databases of other tests
    shutil.copyfile(registered / "mlflow.db", copied)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copied}")

    def command(*words: str, code: int = 0) -> str:
        number, message = 0, ""
        try:
            app(["models", *words], prog_name="eqreg")
        except SystemExit as ended:
            number = int(ended.code or 0)
        except ValueError as error:
            number, message = 2 if _is_for_the_user(error) else 1, f"error: {error}"
        printed = capsys.readouterr()
        assert number == code, (printed, message)
        if code:
            message = message or printed.err.strip()
            note(f"exit code {code}: {message}")
            assert 1 <= len(message.splitlines()) <= 2
            return message
        return printed.out

    yield command
    for file in registered.glob(f"{copied.name}*"):
        file.unlink()


def _registry() -> Registry:
    return Registry(Store("denoise"))


def test_list_shows_the_versions_with_aliases_score_and_cost(run: Run) -> None:
    printed = run("list")
    lines = [line.split() for line in printed.splitlines()]
    (second,) = (line for line in lines if line[:2] == ["2", "champion"])
    assert second[-3:] == ["30.00", "0.0625", str(MULTIPLY_ADDS)]
    assert any(line[:1] == ["1"] for line in lines)
    assert run("list", "eqreg-denoise") == printed


def test_on_a_console_of_80_columns_no_title_is_broken_and_no_name_cut_off(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 80)
    words = run("list").split()
    assert {"version", "aliases", "registered,", "UTC", "PSNR,", "equivariance", "error", "multiply-adds"} <= set(words)
    printed = run("compare", "models:/eqreg-denoise/2", "models:/eqreg-denoise/1")
    assert "…" not in printed
    rows = [line.split() for line in printed.splitlines() if line.strip().startswith("eqreg-denoise/")]
    assert [row[0] for row in rows] == ["eqreg-denoise/2", "eqreg-denoise/1"]
    assert {"PSNR,", "equivariance", "parameters", "multiply-adds"} <= set(printed.split())


def test_show_has_figures_cost_lineage_and_when_it_was_champion(run: Run) -> None:
    printed = run("show", "models:/eqreg-denoise@champion")
    assert printed.startswith("models:/eqreg-denoise/2  champion\n")
    assert "+10.00 [8.50, 11.25]" in printed
    assert re.search(r"^champion +since .* UTC until now$", printed, re.MULTILINE)
    assert re.search(r"^data +data$", printed, re.MULTILINE)
    assert re.search(r"^multiply-adds a pixel +216$", printed, re.MULTILINE)
    first = run("show", "models:/eqreg-denoise/1")
    assert first.startswith("models:/eqreg-denoise/1  no alias\n")
    assert re.search(r"^champion +since .* UTC until .* UTC$", first, re.MULTILINE)


def test_compare_gives_the_paired_difference_on_validation(run: Run) -> None:
    printed = run("compare", "models:/eqreg-denoise/2", "models:/eqreg-denoise/1")
    (line,) = (line for line in printed.splitlines() if " minus " in line)
    assert line.startswith("models:/eqreg-denoise/2 minus models:/eqreg-denoise/1: ")
    better = 20 * np.log10(10 / 5)
    assert f"{better:+.3f} (PSNR, dB) on validation [{better:+.3f}, {better:+.3f}]" in line
    assert "3 images of 3 scenes" in printed


def test_missing_validation_images_are_no_fault_of_a_version(run: Run, registered: Path) -> None:
    packed = registered / "data/packed"
    packed.rename(registered / "elsewhere")
    try:
        message = run("compare", "models:/eqreg-denoise/2", "models:/eqreg-denoise/1", code=2)
    finally:
        (registered / "elsewhere").rename(packed)
    assert message == "error: data/packed/val: no packed images here; run 'eqreg preprocess' first"


def test_promote_and_rollback_move_the_alias_and_history_says_who_when_and_why(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    assert run("promote", "models:/eqreg-denoise/1", "--reason", "[/] ours") == (
        "eqreg-denoise: version 1 is champion; version 2 was before\n"
    )
    assert "nothing to do" in run("promote", "models:/eqreg-denoise@champion", "--reason", "again")
    monkeypatch.setenv("LOGNAME", "bob")
    assert run("rollback", "--reason", "stripes") == "eqreg-denoise: version 2 is champion; version 1 was before\n"
    champion = _registry().champion()
    assert champion is not None
    assert champion.number == "2"
    rows = [line.split() for line in run("history").splitlines() if line.strip().startswith("version")]
    shown = [(row[1], *row[row.index("(now)") + 3 if "(now)" in row else 4 :][:2]) for row in rows]
    assert [(number, command) for number, _, command in shown] == [
        ("1", "register"),
        ("2", "register"),
        ("1", "promote"),
        ("2", "rollback"),
    ]
    assert [by for _, by, _ in shown[2:]] == ["ada", "bob"]
    assert "(now)" in rows[-1]
    assert rows[2][-2:] == ["[/]", "ours"]
    assert run("rollback", "--reason", "more stripes").startswith("eqreg-denoise: version 1 is champion")
    assert "no champion before version 1 is recorded" in run("rollback", "--reason", "yet more", code=2)


def test_promote_wants_a_reason(run: Run) -> None:
    assert run("promote", "models:/eqreg-denoise/1", "--reason", " ", code=2) == (
        "error: --reason: say why, for the history"
    )


def test_a_rollback_to_a_version_that_is_gone_says_so_and_changes_nothing(run: Run) -> None:
    registry = _registry()
    registry.store.client.delete_model_version("eqreg-denoise", "1")
    message = run("rollback", "--reason", "stripes", code=2)
    assert message.startswith("error: the champion before was version 1: models:/eqreg-denoise/1: ")
    assert "has no version 1; it has: 2" in message
    champion = registry.champion()
    assert champion is not None
    assert champion.number == "2"


def _files(registered: Path, version: str) -> Path:
    """The folder of a version."""
    found = _registry().store.client.get_model_version_download_uri("eqreg-denoise", version)
    return Path(found.removeprefix("file://"))


def test_verify_notices_one_altered_byte_in_any_file_and_names_the_file(run: Run, registered: Path) -> None:
    assert re.fullmatch(
        r"models:/eqreg-denoise/1: \d+ files are as they were registered\n", run("verify", "models:/eqreg-denoise/1")
    )
    folder = _files(registered, "1")
    for file in (folder / "extra_files/model.safetensors", *folder.glob("code/**/restorer.py"), folder / "MLmodel"):
        content = file.read_bytes()
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        try:
            name = file.relative_to(folder).as_posix()
            message = run("verify", "models:/eqreg-denoise/1", code=1)
            assert message == f"models:/eqreg-denoise/1: {name} was altered after registration: its SHA-256 differs"
            assert f"{name} was altered" in run("promote", "models:/eqreg-denoise/1", "--reason", "?", code=2)
        finally:
            file.write_bytes(content)
    run("verify", "models:/eqreg-denoise/1")


def test_verify_notices_a_missing_and_an_additional_file(run: Run, registered: Path) -> None:
    folder = _files(registered, "1")
    file = folder / "extra_files/model.safetensors"
    (folder / "more.py").write_text("")
    try:
        assert "more.py was added" in run("verify", "models:/eqreg-denoise/1", code=1)
        (folder / "more.py").unlink()
        content = file.read_bytes()
        file.unlink()
        assert "extra_files/model.safetensors is missing" in run("verify", "models:/eqreg-denoise/1", code=1)
        file.write_bytes(content)
    finally:
        (folder / "more.py").unlink(missing_ok=True)


@pytest.mark.parametrize("lost", ["files", "logged model"])
def test_a_version_whose_files_are_gone_is_reported_in_a_line(run: Run, registered: Path, lost: str) -> None:
    folder = _files(registered, "1")
    if lost == "files":
        folder.rename(folder.with_name("elsewhere"))
    else:
        client = _registry().store.client
        client.delete_logged_model(client.get_model_version("eqreg-denoise", "1").source.rpartition("/")[2])
    try:
        for words in (["verify"], ["promote", "--reason", "?"]):
            message = run(*words, "models:/eqreg-denoise/1", code=2)
            assert message.startswith(
                "error: models:/eqreg-denoise/1: its files are gone, or its logged model was deleted"
            )
        assert run("show", "models:/eqreg-denoise/1")
    finally:
        if lost == "files":
            folder.with_name("elsewhere").rename(folder)


def test_the_lines_of_the_card_restore_a_photograph(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = run("card", "models:/eqreg-denoise/2")
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(lines.splitlines()) == 5
    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(0).integers(30, 200, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(image).save("PHOTO.png")
    exec(lines.replace("ADDRESS", os.environ["MLFLOW_TRACKING_URI"]), {})
    difference = image.astype(int) - np.asarray(Image.open("CLEAN.png")).astype(int)
    assert abs(difference).max() == 5  # what the network of version 2 does
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["show", "eqreg-denoise"], "use models:/NAME@ALIAS or models:/NAME/VERSION"),
        (["show", "models:/eqreg-denoise/0"], "use models:/NAME@ALIAS or models:/NAME/VERSION"),
        (["show", "models:/eqreg-denoise/9"], "eqreg-denoise has no version 9; it has: 2, 1"),
        (["card", "models:/eqreg-denoise@best"], "eqreg-denoise has no alias best; it has: champion"),
        (["list", "eqreg-derain"], "eqreg-derain: no such model in sqlite:///"),
        (["history", "eqreg-derain"], "registered: eqreg-denoise"),
        (["rollback", "eqreg-derain", "--reason", "?"], "eqreg-derain: no such model in sqlite:///"),
        (["show", f"models:/eqreg-denoise/{10**20}"], f"eqreg-denoise has no version {10**20}; it has: 2, 1"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(run: Run, words: list[str], reason: str) -> None:
    assert reason in run(*words, code=2)


def test_a_task_that_is_not_that_of_params_is_not_compared(run: Run) -> None:
    client = _registry().store.client
    client.create_registered_model("eqreg-derain")
    client.create_model_version("eqreg-derain", "/nowhere")
    message = run("compare", "models:/eqreg-derain/1", "models:/eqreg-denoise/1", code=2)
    assert message.startswith("error: models:/eqreg-derain/1: params.yaml has task denoise; set task: derain")
    assert "other models: eqreg-derain" in run("list")


def test_a_registry_that_is_down_or_is_not_there_is_reported_in_two_lines(
    run: Run, monkeypatch: pytest.MonkeyPatch, closed_port: int, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
    for words in (["list"], ["verify", "models:/eqreg-denoise/1"], ["rollback", "--reason", "?"]):
        assert "does not answer as it should" in run(*words, code=2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    assert "there is no sqlite:///" in run("history", code=2)
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("name", ["it's", "100 %", "[red]", 'a "b"'])
def test_a_model_of_any_name_is_listed_shown_and_promoted(run: Run, name: str) -> None:
    client: Any = _registry().store.client
    client.create_registered_model(name)
    assert "no version is registered" in run("list", name)
    client.create_model_version(name, client.get_model_version("eqreg-denoise", "1").source)
    assert f"one of them: models:/{name}/NUMBER" in run("list", name)
    assert run("show", f"models:/{name}/1").startswith(f"models:/{name}/1  no alias\n")
    assert run("promote", f"models:/{name}/1", "--reason", "?").startswith(f"{name}: version 1 is champion")
    assert "version 1 (now)" in run("history", name)


def test_tags_that_somebody_else_has_set_are_shown_as_not_known(run: Run) -> None:
    registry = _registry()
    for key, value in {"facts": "[]", "equivariance_error": "small", "multiply_adds_per_pixel": "many"}.items():
        registry.tag("2", f"eqreg.{key}", value)
    assert re.search(r"^ 2 +champion +\S+ \S+ +- +- +- *$", run("list"), re.MULTILINE)
    assert "registered without a model card" in run("show", "models:/eqreg-denoise/2")


def test_without_params_the_name_must_be_given(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "give the NAME of a model" in run("list", code=2)
    assert "champion" in run("list", "eqreg-denoise")


def test_a_version_of_an_earlier_release_is_shown_without_what_it_lacks(run: Run) -> None:
    client: Any = _registry().store.client
    client.create_model_version("eqreg-denoise", "/nowhere", tags={"eqreg.reason": "long ago"})
    printed = run("show", "models:/eqreg-denoise/3")
    assert "registered without a model card" in printed
    assert "long ago" in printed
    assert "no description" in run("card", "models:/eqreg-denoise/3", code=2)
    assert re.search(r"^ 3 +\S+ \S+ +- +- +- *$", run("list"), re.MULTILINE)
