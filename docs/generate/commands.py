"""The page of the commands: ``eqreg`` with its options, exit codes, environment variables, and the targets of make."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from docs.generate.markdown import code, page, table, text
from pipeline.cli import app

EXIT_CODES = {
    "0": "success",
    "1": "`eqreg restore` left images out, or `eqreg models verify` found a file that is not as it was registered: it "
    "says which. With a traceback: a bug of eqreg. With `EQREG_DEBUG=1` a user's error ends so, too",
    "2": "an error that you can fix, in one or two lines on stderr that begin with `error:`; or wrong usage",
    "130": "Ctrl-C or SIGTERM. Nothing half-written is left; the same command goes on where it stopped",
    "other": "of `eqreg submit`: the exit code of the stage",
}

VARIABLES = {
    "EQREG_PYTHON": "path of the Python that runs the stages of dvc.yaml",
    "EQREG_DEBUG": "set: errors end with their traceback",
    "EQREG_FUSED": "`0`: the regulariser does not use its C code",
    "EQREG_CODE": "COMMIT or COMMIT+DIFFERENCE of code that came without its repository; `eqreg submit` sets it",
    "EQREG_COMMITTED": "folder with the committed files that are compared with; `eqreg submit` sets it",
    "MLFLOW_TRACKING_URI": "where runs and models go; else `mlflow.db` in the main checkout",
    "MLFLOW_REGISTRY_URI": "where models go; else as the runs",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "`false`: the load of the machine is not logged; MLflow's own variable",
    "RAY_ADDRESS": "of `eqreg submit`: the cluster, if `--address` does not say it",
    "RAY_AUTH_TOKEN": "the token of Ray",
    "RAY_AUTH_TOKEN_PATH": "the file that holds it; else `~/.ray/auth_token`",
    "RAY_TMPDIR": "where Ray keeps its sockets, a short path in ASCII; else `TMPDIR`",
    "AWS_PROFILE": "and the others of boto3: credentials for S3",
    "AWS_ENDPOINT_URL": "S3 servers other than Amazon's",
    "PGPASSWORD": "password of `tune.study_storage`; else `~/.pgpass`",
    "XDG_CACHE_HOME": "where the compiled C code is kept; else `~/.cache`",
    "CC": "the compiler of the C code; else `cc`, `gcc` or `clang`",
}


_KINDS = {int: "a whole number", str: "text", Path: "a path"}


def commands_page(root: Path) -> str:
    """Returns the page; ``root`` is the folder of the Makefile."""
    blocks = [
        "`make run` leaves `eqreg` and `dvc` in `.venv/bin`; `. .venv/bin/activate` puts them on the PATH. Run them in "
        "the folder that holds params.yaml. `--help` behind any command prints what stands here.",
    ]
    for name, command in _commands(typer.main.get_command(app), "eqreg"):
        blocks += [f"## {name}", *_described(name, command)]
    blocks += [
        "## Exit codes",
        table(("Code", "Meaning"), ((code(number), text(meaning)) for number, meaning in EXIT_CODES.items())),
        "## Environment variables",
        table(("Variable", "Meaning"), ((code(name), text(meaning)) for name, meaning in VARIABLES.items())),
        "## make",
        "They need Python 3.11, 3.12 or 3.13, git and make. `PYTHON=NAME` behind a target names the Python.",
        table(("Command", "Does"), ((code(f"make {target}"), text(does)) for target, does in targets(root))),
    ]
    return page("Commands", *blocks)


def targets(root: Path) -> list[tuple[str, str]]:
    """Returns (target, what it does) of the targets that ``make help`` lists."""
    return re.findall(r"^([a-z-]+):.*?## (.+)$", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    for word, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, f"{name} {word}")


def _described(name: str, command: Any) -> Iterator[str]:
    """Yields the help of a command as plain data; the help that is printed depends on the terminal."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    words = [*(["[OPTIONS]"] if options else []), *(_optional(each) for each in arguments)]
    words += ["COMMAND"] if getattr(command, "commands", None) else []
    yield text(command.help or "")
    yield "\n".join(["```text", " ".join([name, *words]), "```"])
    rows = [(code(each.metavar or each.name.upper()), "", "", text(each.help or "")) for each in arguments]
    rows += [(code(", ".join(each.opts)), _value(each), _default(each), text(each.help or "")) for each in options]
    if rows:
        yield table(("Argument or option", "Value", "Default", "Meaning"), rows)


def _optional(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def _value(option: Any) -> str:
    if option.is_flag:
        return ""
    kind = option.metavar or _KINDS[option.type_descriptor.annotation]
    return text(kind if option.min is None else f"{kind} of at least {option.min}")


def _default(option: Any) -> str:
    return "" if option.is_flag or option.default in (None, "") else code(str(option.default))
