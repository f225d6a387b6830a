"""The command ``eqreg``: each stage, and restoring images. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.models.app import models
from pipeline.errors import UserError, described

app = typer.Typer(
    help="Train image-restoration networks with rotation-equivariant regularisation. Stages read params.yaml.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

cluster = typer.Typer(help="The Ray cluster of cluster.address.", no_args_is_help=True)
app.add_typer(cluster, name="cluster")
app.add_typer(models, name="models")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            installed = version("eqreg")
        except PackageNotFoundError:
            installed = "(not installed)"
        python = f"Python {sys.version.split()[0]} in {sys.prefix}"
        typer.echo(f"eqreg {installed}, {python}, code in {Path(__file__).resolve().parents[1]}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="say which version, Python and code this is"
        ),
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command()
def fetch(
    check: Annotated[bool, typer.Option("--check", help="only say whether the source has changed since")] = False,
) -> None:
    """Stage 1: bring the files of fetch.source to data/raw, with their SHA-256 sums."""
    from pipeline.config.schema import load_params
    from pipeline.stages.fetch import check as compare
    from pipeline.stages.fetch import fetch as stage

    if check:
        compare(load_params())
        return
    with _timed("fetch"):
        stage(load_params())


@app.command()
def preprocess() -> None:
    """Stage 2: check, split by scene, degrade and pack the images into data/packed."""
    from pipeline.config.schema import load_params
    from pipeline.stages.preprocess import preprocess as stage

    with _timed("preprocess"):
        stage(load_params())


@app.command()
def tune() -> None:
    """Stage 3: search lambda and the layer weights; writes results/tune."""
    from pipeline.config.schema import load_params
    from pipeline.stages.tune import tune as stage

    with _timed("tune"):
        stage(load_params())


@app.command()
def train() -> None:
    """Stage 4: train the network; writes results/train. Goes on where a killed run stopped."""
    from pipeline.stages.train import train as stage

    with _timed("train"):
        stage()


@app.command()
def evaluate() -> None:
    """Stage 5: measure the network on the test images; writes results/evaluate."""
    from pipeline.config.schema import load_params
    from pipeline.stages.evaluate import evaluate as stage

    with _timed("evaluate"):
        stage(load_params())


@app.command()
def register() -> None:
    """Stage 6: put the model into the registry; it becomes champion if it beats the champion on validation."""
    from pipeline.config.schema import load_params
    from pipeline.stages.register import register as stage

    with _timed("register"):
        stage(load_params())


@app.command()
def ablate() -> None:
    """Compare the control arms: each arm's weight chosen on validation, then fresh seeds; writes results/ablate."""
    from pipeline.commands.ablate import ablate as run
    from pipeline.config.schema import load_params

    with _timed("ablate"):
        run(load_params())


@app.command()
def submit(
    stage: Annotated[
        str, typer.Argument(metavar="STAGE", help="a stage, ablate, or repro for all that is out of date")
    ] = "",
    address: Annotated[
        str | None, typer.Option(help="of the dashboard, http://HOST:8265; else RAY_ADDRESS, else cluster.address")
    ] = None,
    workdir: Annotated[str, typer.Option(help="folder of the cluster's head, where data and results stay")] = "~/eqreg",
    follow: Annotated[str, typer.Option(metavar="JOB", help="only follow a job that was sent before")] = "",
    stop: Annotated[str, typer.Option(metavar="JOB", help="only stop a job")] = "",
) -> None:
    """Send a stage to a running Ray cluster as a job, and follow its log."""
    from pipeline.cluster.jobs import submit as jobs

    if sum(map(bool, (stage, follow, stop))) != 1:
        raise UserError(f"submit: give one of a STAGE ({', '.join(jobs.STAGES)}), --follow JOB and --stop JOB")
    if stop:
        jobs.stop(stop, address)
        return
    code = jobs.follow(follow, address) if follow else jobs.submit(stage, address, workdir)
    raise typer.Exit(code)


@cluster.command("check")
def check_cluster() -> None:
    """Say whether the cluster of cluster.address is fit for use: nodes, versions, storage, tracking, bandwidth."""
    from pipeline.cluster.doctor.check import check
    from pipeline.config.schema import load_params

    check(load_params())


@app.command()
def restore(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="images, DICOM files, folders, patterns such as 'in/**/*.jpg', or s3://BUCKET/PREFIX",
        ),
    ],
    target: Annotated[str, typer.Argument(metavar="OUTPUT", help="the file, folder or s3://BUCKET/PREFIX to write")],
    model: Annotated[
        str, typer.Option(help="models:/NAME@champion, models:/NAME/VERSION, or a model.safetensors")
    ] = "models:/eqreg-denoise@champion",
    tile: Annotated[int, typer.Option(help="side of a tile in pixels; bounds the memory")] = 512,
    overlap: Annotated[int, typer.Option(help="pixels that neighbouring tiles share")] = 64,
    self_ensemble: Annotated[
        int, typer.Option(metavar="1|4|8", help="average over the 4 rotations, or over these and their mirror images")
    ] = 1,
    mask: Annotated[
        Path | None,
        typer.Option(help="white where pixels are missing (inpaint), or where metal is (CT); a folder for a folder"),
    ] = None,
    metal_threshold: Annotated[
        float, typer.Option(metavar="HU", help="for CT without a mask: what is above it is metal")
    ] = 2500.0,
    noise_level: Annotated[
        float | None,
        typer.Option(
            metavar="SIGMA", help="of 255, for models that take it; by default the middle of the range of training"
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="png, tiff, jpg, webp, bmp or same; by default the suffix of OUTPUT decides, and a folder gets png",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="of torch, such as cpu or cuda:1; auto: a GPU where there is one")
    ] = "auto",
    report: Annotated[Path | None, typer.Option(help="a CSV file with a line for each image")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Ray actors that restore; 0: this process alone")] = 0,
    address: Annotated[str, typer.Option(help="the workers' Ray cluster: local, auto or HOST:PORT")] = "local",
) -> None:
    """Restore images, CT slices, folders or buckets of them with a registered model."""
    from pipeline.commands.restore import restore as run

    failed = run(
        sources, target, model, tile, overlap, self_ensemble, mask,
        form=form, device=device, report=report, workers=workers, address=address, metal_threshold=metal_threshold,
        noise_level=noise_level,
    )  # fmt: skip
    if failed:
        raise typer.Exit(1)


@app.command()
def classify(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="images, folders, patterns such as 'in/**/*.jpg', or s3://BUCKET/PREFIX"
        ),
    ],
    model: Annotated[
        str, typer.Option(help="models:/NAME@champion, models:/NAME/VERSION, or a model.safetensors")
    ] = "models:/eqreg-classify@champion",
    out: Annotated[Path, typer.Option(help="the CSV file to write")] = Path("predictions.csv"),
    top: Annotated[int, typer.Option(min=1, help="classes of each image")] = 5,
    device: Annotated[
        str, typer.Option(help="of torch, such as cpu or cuda:1; auto: a GPU where there is one")
    ] = "auto",
) -> None:
    """Write the likeliest classes of images to a CSV file, with a model that recognises images."""
    from pipeline.commands.classify import classify as run

    if run(sources, model, out, top, device):
        raise typer.Exit(1)


@app.command()
def probe(
    data: Annotated[str, typer.Argument(metavar="DATA", help="a folder of images, or builtin")],
    scene_pattern: Annotated[
        str, typer.Option(help="names with the same first group show the same scene, as preprocess.scene_pattern")
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="of the patches and of the null")] = 0,
) -> None:
    """Measure how much a data set changes when it is turned, and what that suggests for lambda."""
    from pipeline.commands.probe import probe as run

    _, num_left_out = run(data, scene_pattern, seed)
    if num_left_out:
        raise typer.Exit(1)


@app.command()
def doctor(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="params, the name of a network, models:/NAME@ALIAS, a model.safetensors or a checkpoint folder",
        ),
    ],
    size: Annotated[int, typer.Option(help="side of the square test images in pixels")] = 64,
    group: Annotated[str, typer.Option(help="C2, C4 or D4")] = "C4",
) -> None:
    """Say how equivariant a network is, layer by layer, what prevents it, and whether its output can be."""
    from pipeline.commands.doctor import doctor as run

    run(network, size, group)


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="a model.safetensors, models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="onnx; pt2 (torch.export); aoti (compiled by AOTInductor); chainner (weights that chaiNNer reads)",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="the file to write, NAME.onnx, NAME.pt2 or NAME.safetensors; it is replaced")
    ],
    device: Annotated[str, typer.Option(help="of pt2 and aoti: the device that the file is for")] = "cpu",
) -> None:
    """Write a model as a file that others run, compared with the model at five sizes before it gets its name."""
    from pipeline.commands.export import export as run

    run(model, kind, out, device)


@app.command(name="import")
def import_(
    network: Annotated[
        str, typer.Argument(metavar="NETWORK", help="name of the network, as in docs/reference/networks")
    ],
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS", help="a .safetensors file, or a .pth file with tensors alone; no code is run"
        ),
    ],
    out: Annotated[Path, typer.Option(help="the model file to write, NAME.safetensors; it is replaced")],
    task: Annotated[str, typer.Option(help="what the weights were trained for, such as derain")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SETTING=VALUE", help="a setting of the network, or in_channels, out_channels, scale"
        ),
    ] = None,
) -> None:
    """Make a model file from published weights, for restore, doctor and export."""
    from pipeline.commands.import_weights import import_weights as run

    run(network, weights, out, task, settings or [])


@app.command()
def params() -> None:
    """Print the params that train would use, with the origin of those that are not of params.yaml."""
    from pipeline.config.resolve import resolve

    typer.echo(resolve().as_yaml(), nl=False)


@app.command()
def ui(port: Annotated[int, typer.Option(help="on this machine's loopback address")] = 5000) -> None:
    """Show the runs: starts MLflow's pages for the default store, or says where a server has them."""
    from pipeline.tracking.store import make_tables, quiet_mlflow, tracking_uri

    quiet_mlflow()
    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        typer.echo(f"the runs are on the MLflow server of MLFLOW_TRACKING_URI: open {uri}")
        return
    make_tables(uri)
    command = ["mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", uri]
    os.execv(sys.executable, [sys.executable, "-m", *command])


@app.command()
def summary() -> None:
    """Print what the last run measured, and where to look next."""
    from pipeline.commands.summary import summary as show
    from pipeline.config.schema import load_params

    show(load_params())


def main() -> None:
    """Runs a command. A user's error is one or two lines and exit code 2; a traceback is a bug."""
    signal.signal(signal.SIGTERM, _stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that it cannot encode is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except (ValueError, OSError) as error:
        if os.environ.get("EQREG_DEBUG") or not _is_for_the_user(error):
            raise
        print(f"error: {described(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        if threading.active_count() > 1:  # one that still waits for a Ray that is gone would crash the interpreter
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(2)
        sys.exit(2)


@contextmanager
def _timed(stage: str) -> Iterator[None]:
    """Says how long a stage took, if it succeeded."""
    start = time.monotonic()
    yield
    print(f"{stage}: {time.monotonic() - start:.0f} s")


def _is_for_the_user(error: BaseException) -> bool:
    """Whether the error was raised by our own code, which words it for the user, or is about the disk."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    packages = Path(__file__).parents[1]
    file = Path(trace.tb_frame.f_code.co_filename) if trace else Path()
    is_ours = file.is_relative_to(packages / "components") or file.is_relative_to(packages / "pipeline")
    return isinstance(error, OSError) or is_ours


def _stop(number: int, frame: object) -> None:
    """SIGTERM ends a command as Ctrl-C does: Ray's processes with it."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
