"""Ray, started for one stage and ended with it. Nothing outside ``pipeline.cluster`` imports Ray."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError

# What workers must have in their environment. PYTHONPATH: they run this very code, of whichever checkout it is.
_WORKER_ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")))),
    "PYTHONWARNINGS": "ignore",
    "GLOG_minloglevel": "2",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # glibc: keep freed memory. Else every step on a CPU hands it to the kernel and gets it back page by page, which
    # costs a plain step some per cent and the regulariser more (benchmarks/overhead.py --malloc default).
    "MALLOC_MMAP_THRESHOLD_": str(1 << 29),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(1 << 26),
}


@contextmanager
def ray_session(address: str, *, dashboard: bool) -> Iterator[None]:
    """Connects to a Ray cluster, or starts one on this machine ("local") that ends with the block.

    Args:
        address: ``cluster.address``: "local", "auto" (a running cluster on this machine) or HOST:PORT.
        dashboard: start it with a local Ray. Sweeps need it: without, a trial that is stopped early leaks its
            placement group and the sweep hangs (Ray 2.60).

    Raises:
        UserError: no cluster answers at the address.
    """
    os.environ["PYTHONPATH"] = _WORKER_ENVIRONMENT["PYTHONPATH"]
    for name, value in {
        **_WORKER_ENVIRONMENT,
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # report() returns at this pace
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # its handler ends a sweep on Ctrl-C as if it had been completed
        "RAY_DISABLE_METRICS_COLLECTION": "1",
    }.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module="ray")
    import ray

    for name in ("ray", "ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    local = {"include_dashboard": dashboard, "num_cpus": os.cpu_count()} if address == "local" else {}
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": _WORKER_ENVIRONMENT},
            log_to_driver=False,
            logging_level=logging.ERROR,
            **local,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if address == "local":
            raise UserError(f"cluster.address: local: Ray does not start on this machine ({reason})") from error
        raise UserError(
            f"cluster.address: {address}: no Ray cluster answers there ({reason}); "
            "start one with 'ray start --head', or use cluster.address: local"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
