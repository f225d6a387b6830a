"""The Ray session of one stage: it starts with the stage and ends with it.

Nothing outside ``pipeline.cluster`` imports Ray.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from components.brief import first_line
from pipeline.cluster.loopback import on_loopback
from pipeline.config.sections import Cluster
from pipeline.errors import UserError, described, path_of
from pipeline.process_state import changed_environment

_CODE = Path(__file__).parents[2]
KEPT_MEMORY = {"MMAP_THRESHOLD": 1 << 29, "TRIM_THRESHOLD": 1 << 30, "TOP_PAD": 1 << 26}
"""Settings of glibc's malloc, in bytes, so that a training process keeps freed memory.

Without them, every step on a CPU returns its memory to the kernel and requests it again page by page. That costs a few
per cent of a step without the regulariser, and more with it (benchmarks/overhead.py --malloc default).
"""
# Environment variables that every worker needs.
_WORKER_ENVIRONMENT = {
    "PYTHONWARNINGS": "ignore",
    "GLOG_minloglevel": "2",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    **{f"MALLOC_{name}_": str(size) for name, size in KEPT_MEMORY.items()},
}
_DRIVER_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how often Ray checks whether a worker has ended
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # its handler ends a sweep after Ctrl-C as if it were complete
    "RAY_DISABLE_METRICS_COLLECTION": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",  # it would show the workers' arguments, which hold credentials
}
# The user's environment variables that workers on other machines also need.
_FORWARDED = re.compile(r"(GLOO|NCCL|TORCH|OMP|MKL|ONEDNN|ATEN)_\w+|EQREG_(DEBUG|FUSED)|AWS_(REGION|DEFAULT_REGION)")
_SECRET = re.compile(r"(AWS|MLFLOW_(TRACKING|REGISTRY))_\w+|PG[A-Z]+")


_SET_BY_RAY = ("PYTHONBREAKPOINT", "RAY_AUTH_MODE", "RAY_CLIENT_MODE")
"""Variables that ``ray.init`` sets."""

_open: list[tuple[str, bool]] = []
"""The open session of this process, if there is one: its address, and whether it has a dashboard."""


@contextmanager
def ray_session(cluster: Cluster, *, dashboard: bool) -> Iterator[None]:
    """Connects to a Ray cluster, or starts one on this machine ("local") that ends with the block.

    Workers run the code of this checkout. On this machine they import it from the checkout; on a cluster Ray copies it
    to each node once. A session inside another session of this process with the same address reuses that session.

    Args:
        cluster: section of the params; its address is "local", "auto" (a running cluster on this machine) or HOST:PORT.
        dashboard: whether a local Ray starts its dashboard. Sweeps whose trials have several workers need it: without
            it, a trial that is stopped early leaks its placement group, and the sweep hangs (Ray 2.60).

    Raises:
        UserError: no cluster answers at the address, or the versions differ; this process is in a session with another
            cluster; Ray cannot write its files on this machine.
    """
    address = cluster.address
    if _open:
        known, has_dashboard = _open[-1]
        if known != address or (dashboard and not has_dashboard):
            what = f"is connected to {known} already" if known != address else "has a Ray without a dashboard"
            raise UserError(f"cluster.address: {address}: this process {what}: end that session first")
        yield
        return
    runtime: dict[str, Any] | None = None
    ours = _WORKER_ENVIRONMENT | _DRIVER_ENVIRONMENT
    changes = {name: value for name, value in ours.items() if name not in os.environ}
    if address == "local":
        # Workers inherit the environment of this process. With a runtime environment, each worker would start a second
        # later, and Ray could not use the processes that it starts in advance.
        paths = dict.fromkeys([str(_CODE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        changes["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        if shlex.quote(sys.executable) != sys.executable:  # Ray passes it to a shell without quotes
            runtime = {"py_executable": shlex.quote(sys.executable)}
    else:
        forwarded = {name: value for name, value in os.environ.items() if _FORWARDED.fullmatch(name)}
        runtime = {
            "env_vars": _WORKER_ENVIRONMENT | forwarded,
            "py_modules": [str(_CODE / "components"), str(_CODE / "pipeline")],
            "excludes": ["**/__pycache__"],
        }
    with changed_environment(changes, _SET_BY_RAY), _connected(address, runtime, dashboard):
        sessions = _open  # kept, because a test may replace the global list before the session ends
        sessions.append((address, dashboard or address != "local"))
        try:
            yield
        finally:
            sessions.pop()


@contextmanager
def _connected(address: str, runtime: dict[str, Any] | None, dashboard: bool) -> Iterator[None]:
    if address not in ("local", "auto"):
        try:
            reach(address)  # Ray's client would wait for minutes
        except (OSError, ValueError) as error:
            raise _connection_error(address, error) from error
    warnings.filterwarnings("ignore", module="ray")
    import ray

    for name in ("ray", "ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    local = {"include_dashboard": dashboard, "num_cpus": os.cpu_count()} if address == "local" else {}
    if address == "local":
        check_temporary_folder()
    try:
        with on_loopback() if address == "local" else nullcontext():
            ray.init(address=address, runtime_env=runtime, log_to_driver=False, logging_level=logging.ERROR, **local)
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise _connection_error(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def check_temporary_folder() -> None:
    """Checks that Ray can make its sockets in its temporary folder.

    Raises:
        UserError: the path is too long, or is not ASCII; the message names the variable to set.
    """
    from pipeline.compat import temporary_folder

    key = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    # Ray's name for the socket; the number is that of this process.
    folder = temporary_folder()
    socket_path = f"{folder}/session_2000-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    too_long = len(os.fsencode(socket_path)) - (103 if sys.platform == "darwin" else 107)
    if too_long > 0 or not socket_path.isascii():
        reason = f"{too_long} bytes too long" if too_long > 0 else "has letters beyond ASCII"
        named = f"{key}: {os.environ[key]}" if key else folder
        raise UserError(
            f"{named}: {reason} for the sockets of Ray: set RAY_TMPDIR to a folder with a short path in ASCII, as /tmp"
        )


def secret_environment() -> dict[str, str]:
    """The environment variables with the credentials and addresses of storage and tracking.

    An address may hold a password. Workers receive these variables as arguments, which Ray does not show. Ray shows the
    runtime environment on its dashboard and in its logs.
    """
    return {name: value for name, value in os.environ.items() if _is_secret(name)}


def _is_secret(name: str) -> bool:
    return bool(_SECRET.fullmatch(name)) and not _FORWARDED.fullmatch(name)


def reach(address: str) -> None:
    """Connects to HOST:PORT and closes the connection.

    Raises:
        OSError: nothing listens there.
        ValueError: the address is not HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _connection_error(address: str, error: Exception) -> UserError:
    """The error message for a failed connection to an address, in one or two lines."""
    if "ersion mismatch" in str(error):
        return UserError(
            f"cluster.address: {address}: {' '.join(str(error).split())[:300]}\n"
            "use the same versions of Ray and Python here and on the cluster (constraints.txt)"
        )
    if address == "local":
        reason = described(error) if isinstance(error, OSError) else first_line(error)
        return UserError(f"cluster.address: local: Ray does not start on this machine ({reason}){_place_hint(error)}")
    return UserError(
        f"cluster.address: {address}: no Ray cluster answers there ({first_line(error)}); "
        "start one with 'ray start --head', or use cluster.address: local"
    )


def _place_hint(error: Exception) -> str:
    """A hint which variable to set, if an error is about Ray's own files; otherwise empty."""
    from pipeline.compat import temporary_folder

    path = path_of(error) if isinstance(error, OSError) else None
    is_rays = path is not None and path.is_relative_to(temporary_folder())
    return "\nset RAY_TMPDIR to a folder that can be written and has room, with a short path" if is_rays else ""
