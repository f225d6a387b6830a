"""``eqreg models``: looks at registered models, compares them, moves the alias champion, and verifies files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.tracking.models.registry import Registry
    from pipeline.tracking.models.versions import Record

models = typer.Typer(help="The models of the MLflow registry.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="as eqreg-denoise; else that of the task of params.yaml")]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="models:/NAME@ALIAS or models:/NAME/NUMBER")]
Reason = Annotated[str, typer.Option(help="why, for the history")]


@models.command("list")
def list_versions(name: Name = "") -> None:
    """List the versions of a model: aliases, score, equivariance error, cost."""
    from pipeline.commands.models.tables import print_versions
    from pipeline.tracking.models.versions import model_names, versions

    registry = _registry(name)
    print_versions(versions(registry), [other for other in model_names(registry) if other != registry.name])


@models.command()
def show(version: Version) -> None:
    """Show a version: figures with intervals, cost, lineage, aliases, and when it was champion."""
    from pipeline.commands.models.tables import print_version
    from pipeline.tracking.models.champions import history

    registry, record = _find(version)
    print_version(record, history(registry))


@models.command()
def card(version: Version) -> None:
    """Print the model card of a version, in Markdown."""
    from pipeline.errors import UserError

    _, record = _find(version)
    if not record.description:
        raise UserError(f"{record.address}: it has no description; eqreg register writes one for new versions")
    typer.echo(record.description)


@models.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="models:/NAME@ALIAS or models:/NAME/NUMBER")],
    second: Annotated[str, typer.Argument(metavar="B", help="the same of the other version")],
) -> None:
    """Compare two versions on the validation images of data/packed, image by image."""
    from pipeline.commands.models.compare import compare as run
    from pipeline.config.schema import load_params

    run(load_params(), _find(first)[1], _find(second)[1])


@models.command()
def promote(version: Version, reason: Reason) -> None:
    """Make a version champion. The bounds and the comparison of eqreg register are not asked."""
    from pipeline.commands.models.promotion import promote as run

    run(*_find(version), reason)


@models.command()
def rollback(reason: Reason, name: Name = "") -> None:
    """Make the champion before the present one champion again; a second rollback goes one further back."""
    from pipeline.commands.models.promotion import rollback as run

    run(_registry(name), reason)


@models.command()
def history(name: Name = "") -> None:
    """Say who was champion when, since when, by whom and why."""
    from pipeline.commands.models.tables import print_history
    from pipeline.tracking.models.champions import history as entries
    from pipeline.tracking.models.versions import check_exists

    registry = _registry(name)
    check_exists(registry)
    print_history(registry.name, entries(registry))


@models.command()
def verify(version: Version) -> None:
    """Download the files of a version and check their SHA-256 sums; exit code 1 if a file is not as it was."""
    from pipeline.errors import UserError
    from pipeline.tracking.models.versions import verify as check

    registry, record = _find(version)
    try:
        number = check(registry, record)
    except UserError:
        raise
    except ValueError as error:
        typer.echo(f"{record.address}: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{record.address}: {number} files are as they were registered")


def _registry(name: str) -> Registry:
    """The registry of a model, by default of the task of params.yaml."""
    from pipeline.errors import UserError
    from pipeline.paths import PARAMS
    from pipeline.tracking.models.versions import PREFIX, registry_of

    if not name:
        if not PARAMS.exists():
            raise UserError(f"give the NAME of a model, as eqreg-denoise: there is no {PARAMS} here that names a task")
        from pipeline.config.schema import load_params

        name = f"{PREFIX}{load_params().task}"
    return registry_of(name)


def _find(version: str) -> tuple[Registry, Record]:
    from pipeline.tracking.models.versions import Address, find_version, registry_of

    address = Address.parse(version)
    registry = registry_of(address.name)
    return registry, find_version(registry, address)


__all__ = ["models"]
