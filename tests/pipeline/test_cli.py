"""The command line: quick to answer, one or two lines for the user's errors, a traceback for ours."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from PIL import Image

from components.networks import build_network
from pipeline.config.schema import check_params, load_params
from pipeline.model_file import save_model
from tests.pipeline.conftest import Project

pytestmark = pytest.mark.process

EQREG = [sys.executable, "-c", "from pipeline.cli import main; main()"]
ROOT = Path(__file__).parents[2]


def _run(*arguments: str, code: str | None = None, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    """A command in the working directory, with this checkout's code."""
    environment = {name: value for name, value in os.environ.items() if name != "EQREG_DEBUG"}
    command = [sys.executable, "-c", code] if code else EQREG
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    return subprocess.run([*command, *arguments], capture_output=True, encoding=encoding, env=environment)


def test_the_version_comes_with_the_python_and_the_code_that_run(project: Project) -> None:
    finished = _run("--version")
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    python = f"Python {sys.version.split()[0]} in {sys.prefix}"
    assert finished.stdout == f"eqreg {installed}, {python}, code in {ROOT}\n"
    assert finished.returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_name_that_the_output_cannot_encode_is_escaped_and_the_work_counts(project: Project, encoding: str) -> None:
    Path("Größe 形").mkdir()
    for name in ("ä", "形", "c"):
        Path(f"Größe 形/{name}.png").write_text("image")
    project.set({"fetch.source": "Größe 形"})
    finished = _run("fetch", encoding=encoding)
    name = "Größe 形".encode(encoding, "backslashreplace").decode(encoding)
    assert f"of '{name}' in data/raw/images\n" in finished.stdout
    assert (finished.returncode, finished.stderr) == (0, "")
    project.set({"fetch.source": "Größe 形/形"})
    finished = _run("fetch", encoding=encoding)
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: fetch.source: {name}/")


def test_help_names_every_stage_within_a_second_or_so(project: Project) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        finished = _run("--help")
        seconds.append(time.perf_counter() - start)
    assert finished.returncode == 0
    for command in ("fetch", "preprocess", "tune", "train", "evaluate", "register", "restore"):
        assert f" {command} " in finished.stdout
    assert statistics.median(seconds) < 3  # promised: 1 s on a machine with nothing else to do


IMPORTED = "import atexit, sys; atexit.register(lambda: print(*sys.modules)); from pipeline.cli import main; main()"
SERVICES = {"ray", "mlflow", "optuna", "boto3", "dvc"}
"""Libraries that stages alone need."""

IMAGES = {"numpy", "PIL"}
HEAVY = {"torch", "skimage", "scipy", "sklearn", "matplotlib", "pandas", "yaml", "sqlalchemy"} | SERVICES
TRAINING = {"components.equivariance", "components.training.loop", "pipeline.training_job"}


@pytest.mark.parametrize(
    ("command", "needless"),
    [
        ("--help", HEAVY | IMAGES | {"pydantic"}),  # typer itself imports it for a command
        ("--version", HEAVY | IMAGES | {"pydantic"}),
        ("restore --help", HEAVY | IMAGES),
        ("fecth", HEAVY | IMAGES),
        ("restore in.png", HEAVY | IMAGES),
        ("restore nowhere.png out.png", HEAVY | TRAINING),
        ("restore in.png out.png --model nowhere.safetensors", HEAVY | TRAINING),
        ("restore in.png out.png --model models:/a@champion", (HEAVY | TRAINING) - {"sqlalchemy"}),
        (
            "restore in.png out.png --model model.safetensors",
            (HEAVY | TRAINING | {"pipeline.config.schema"}) - {"torch"},
        ),
        (
            "summary",
            (SERVICES | TRAINING | {"sklearn", "matplotlib", "pandas", "sqlalchemy"}) - {"components.equivariance"},
        ),  # the schema reads the names of the penalties
    ],
)
def test_a_command_imports_nothing_heavy_that_it_does_not_need(
    project: Project, command: str, needless: set[str]
) -> None:
    settings = {"name": "dncnn", "width": 4, "depth": 2, "norm": "none"}
    save_model(Path("model.safetensors"), build_network(**settings), {"network": settings, "task": "denoise"})
    Image.new("RGB", (16, 16)).save("in.png")
    _measured()
    finished = _run(*command.split(), code=IMPORTED)
    *_, modules = finished.stdout.splitlines()
    assert "typer" in modules.split()
    assert finished.returncode in (0, 2), finished.stderr
    assert set(modules.split()) & needless == set()


def _measured() -> None:
    """results/evaluate, as far as the summary reads it."""
    scores = {"psnr": 20.0, "ssim": 0.5, "psnr_y": 21.0, "ssim_y": 0.6}
    gain = {key: {"over_input": {"mean": 1.0, "low": 0.5, "high": 1.5}} for key in scores}
    test = {"scenes": 2, "input": scores, "classical": scores, "restored": scores, "gain": gain}
    Path("results/evaluate").mkdir(parents=True)
    Path("results/evaluate/metrics.json").write_text(
        json.dumps({"test": test, "classical_method": {"name": "median"}, "equivariance_error": {"output": 0.1}})
    )


@pytest.mark.parametrize("stage", ["fetch", "preprocess"])
def test_a_users_error_is_one_or_two_lines_and_exit_code_2(project: Project, stage: str) -> None:
    project.set({"fetch.source": "nowhere"})
    finished = _run(stage)
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert 1 <= len(finished.stderr.splitlines()) <= 2
    assert finished.stderr.startswith("error: ")
    assert "Traceback" not in finished.stderr


def test_a_wrong_param_is_told_before_any_work(project: Project) -> None:
    project.set({"train.patch_sise": 5})
    finished = _run("fetch")
    assert finished.returncode == 2
    assert finished.stderr == "error: params.yaml: train.patch_sise: unknown; did you mean patch_size?\n"
    assert not Path("data").exists()


def test_an_error_worded_by_a_component_is_the_users_too(project: Project) -> None:
    Path("photographs").mkdir()
    for name in ("a", "b", "c"):
        Path(f"photographs/{name}.png").write_text("no image")
    project.set({"fetch.source": "photographs"})
    assert _run("fetch").returncode == 0
    finished = _run("preprocess")
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: 3 of the images cannot be used")
    assert "a: not a readable image" in finished.stderr
    assert len(finished.stderr.splitlines()) == 2


def test_params_are_printed_as_training_would_use_them_with_their_origin(project: Project) -> None:
    printed = _run("params").stdout
    assert yaml.safe_load(printed) == load_params().resolved
    assert check_params(yaml.safe_load(printed), "printed").resolved == load_params().resolved
    assert yaml.safe_load(printed)["network"] == {"name": "unet", "width": 24, "depth": 3, "norm": "batch"}
    Path("results/tune").mkdir(parents=True)
    Path("results/tune/best.yaml").write_text("params: {equivariance.weight: 0.125}\n")
    project.set({"tune.apply": True})
    printed = _run("params").stdout
    assert printed.startswith("# equivariance.weight: from results/tune/best.yaml\n")
    assert yaml.safe_load(printed)["equivariance"]["weight"] == 0.125


RAISING = """
import pipeline.stages.fetch
def stage(params):
    {body}
pipeline.stages.fetch.fetch = stage
from pipeline.cli import main
main()
"""


@pytest.mark.parametrize("body", ["{}['missing']", "int('x')", "import json; json.loads('{')", "1 / 0"])
def test_an_error_of_ours_is_a_traceback(project: Project, body: str) -> None:
    finished = _run("fetch", code=RAISING.format(body=body))
    assert finished.returncode == 1
    assert "Traceback (most recent call last)" in finished.stderr
    assert "error: " not in finished.stderr.splitlines()[0]


def test_an_error_of_the_disk_is_the_users(project: Project) -> None:
    finished = _run("fetch", code=RAISING.format(body="raise OSError(28, 'No space left on device', 'x')"))
    assert finished.returncode == 2
    assert finished.stderr == "error: x: No space left on device; make room there\n"


def test_a_users_error_comes_with_its_traceback_where_eqreg_debug_asks_for_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.set({"fetch.source": "nowhere"})
    code = "import os; os.environ['EQREG_DEBUG'] = '1'; from pipeline.cli import main; main()"
    finished = _run("fetch", code=code)
    assert finished.returncode == 1
    assert "Traceback" in finished.stderr
    assert "UserError: fetch.source: nowhere" in finished.stderr


@pytest.mark.parametrize("arguments", [["fecth"], ["fetch", "--fast"], ["restore", "in.png"]])
def test_wrong_usage_is_exit_code_2_without_a_traceback(project: Project, arguments: list[str]) -> None:
    finished = _run(*arguments)
    assert finished.returncode == 2
    assert "Usage:" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_being_stopped_leaves_no_half_written_output_and_no_traceback(project: Project, number: signal.Signals) -> None:
    body = f"""from pipeline.paths import replaced_folder; from pathlib import Path; import os
    with replaced_folder(Path('data/raw')) as folder:
        (folder / 'half').write_text('half')
        os.kill(os.getpid(), {int(number)})
        import time; time.sleep(10)"""
    finished = _run("fetch", code=RAISING.format(body=body))
    assert finished.returncode not in (0, 2)
    assert "Traceback" not in finished.stderr
    assert list(Path("data").iterdir()) == []
