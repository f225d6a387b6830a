"""Ray, started for one stage and ended with it. Nothing outside ``pipeline.cluster`` imports Ray."""

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

from pipeline.cluster.loopback import on_loopback
from pipeline.errors import UserError, described, path_of
from pipeline.params import Cluster

_CODE = Path(__file__).parents[2]
KEPT_MEMORY = {"MMAP_THRESHOLD": 1 << 29, "TRIM_THRESHOLD": 1 << 30, "TOP_PAD": 1 << 26}
"""glibc's settings, in bytes, with which a training process keeps freed memory.

Without them every step on a CPU hands it to the kernel and gets it back page by page, which costs a plain step some
per cent and the regulariser more (benchmarks/overhead.py --malloc default).
"""
# What workers must have in their environment.
_WORKER_ENVIRONMENT = {
    "PYTHONWARNINGS": "ignore",
    "GLOG_minloglevel": "2",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    **{f"MALLOC_{name}_": str(size) for name, size in KEPT_MEMORY.items()},
}
_DRIVER_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how fast the end of a worker is seen
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # its handler ends a sweep on Ctrl-C as if it had been completed
    "RAY_DISABLE_METRICS_COLLECTION": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",  # it would show the arguments of workers, with credentials among them
}
# The user's settings that workers on other machines must have, too.
_FORWARDED = re.compile(r"(GLOO|NCCL|TORCH|OMP|MKL|ONEDNN|ATEN)_\w+|EQREG_(DEBUG|FUSED)|AWS_(REGION|DEFAULT_REGION)")
_SECRET = re.compile(r"(AWS|MLFLOW_(TRACKING|REGISTRY))_\w+|PG[A-Z]+")


_open: list[tuple[str, bool]] = []
"""The session of this process, if there is one: its address, and whether it has a dashboard."""


@contextmanager
def ray_session(cluster: Cluster, *, dashboard: bool) -> Iterator[None]:
    """Connects to a Ray cluster, or starts one on this machine ("local") that ends with the block.

    Workers run the code of this checkout: on this machine from where it lies, on a cluster from a copy that Ray
    carries to each node once. Inside another session of this process with the same address, that one is used.

    Args:
        cluster: of the params; its address is "local", "auto" (a running cluster on this machine) or HOST:PORT.
        dashboard: start it with a local Ray. Sweeps whose trials have several workers need it: without, a trial that
            is stopped early leaks its placement group and the sweep hangs (Ray 2.60).

    Raises:
        UserError: no cluster answers at the address, or one of other versions; this process is in a session with
            another cluster; Ray finds no place here for its files.
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
    if address == "local":
        # Workers inherit the environment of this process: with one that Ray makes for them, each starts a second
        # later, and none of those that Ray has ready can be used.
        paths = dict.fromkeys([str(_CODE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        if shlex.quote(sys.executable) != sys.executable:  # Ray gives it to a shell as it is, where workers have one
            runtime = {"py_executable": shlex.quote(sys.executable)}
    else:
        forwarded = {name: value for name, value in os.environ.items() if _FORWARDED.fullmatch(name)}
        runtime = {
            "env_vars": _WORKER_ENVIRONMENT | forwarded,
            "py_modules": [str(_CODE / "components"), str(_CODE / "pipeline")],
            "excludes": ["**/__pycache__"],
        }
    for name, value in (_WORKER_ENVIRONMENT | _DRIVER_ENVIRONMENT).items():
        os.environ.setdefault(name, value)
    if address not in ("local", "auto"):
        try:
            reach(address)  # Ray's own client waits for minutes
        except (OSError, ValueError) as error:
            raise _refusal(address, error) from error
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
        raise _refusal(address, error) from error
    sessions = _open  # kept, because a test may replace the global list before the session ends
    sessions.append((address, dashboard or address != "local"))
    try:
        yield
    finally:
        sessions.pop()
        ray.shutdown()


def check_temporary_folder() -> None:
    """Refuses a place of Ray's files in which its sockets cannot lie: too long a path, or one that is not ASCII.

    Raises:
        UserError: what to set instead.
    """
    from ray._common.utils import get_default_ray_temp_dir

    key = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    # As Ray names it; the number is that of this process.
    folder = get_default_ray_temp_dir()
    socket_path = f"{folder}/session_2000-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    too_long = len(os.fsencode(socket_path)) - (103 if sys.platform == "darwin" else 107)
    if too_long > 0 or not socket_path.isascii():
        reason = f"{too_long} bytes too long" if too_long > 0 else "has letters beyond ASCII"
        raise UserError(
            f"{key}: {os.environ[key]}: {reason} for the sockets of Ray: set RAY_TMPDIR to a folder with a short path "
            "in ASCII, as /tmp"
        )


def secret_environment() -> dict[str, str]:
    """Credentials and addresses of this process for storage and tracking; an address may hold a password.

    Workers get them as arguments, which Ray shows nobody; its runtime environment is on the dashboard and in its logs.
    """
    return {name: value for name, value in os.environ.items() if _is_secret(name)}


def _is_secret(name: str) -> bool:
    return bool(_SECRET.fullmatch(name)) and not _FORWARDED.fullmatch(name)


def reach(address: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT, ValueError where it is none."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _refusal(address: str, error: Exception) -> UserError:
    """What Ray says of an address, in one or two lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "ersion mismatch" in str(error):
        return UserError(
            f"cluster.address: {address}: {' '.join(lines)[:300]}\n"
            "use the same versions of Ray and Python here and on the cluster (constraints.txt)"
        )
    if address == "local":
        reason = described(error) if isinstance(error, OSError) else lines[0]
        return UserError(f"cluster.address: local: Ray does not start on this machine ({reason}){_place_hint(error)}")
    return UserError(
        f"cluster.address: {address}: no Ray cluster answers there ({lines[0]}); "
        "start one with 'ray start --head', or use cluster.address: local"
    )


def _place_hint(error: Exception) -> str:
    """What to set where an error is about Ray's own files."""
    from ray._common.utils import get_default_ray_temp_dir

    path = path_of(error) if isinstance(error, OSError) else None
    is_rays = path is not None and path.is_relative_to(get_default_ray_temp_dir())
    return "\nset RAY_TMPDIR to a folder that can be written and has room, with a short path" if is_rays else ""
