"""Stages as Ray jobs on a running cluster: sent, followed, stopped. Talks to the cluster's dashboard alone, by HTTP."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cluster.dashboard import connected, dashboard_url, first_line
from pipeline.cluster.upload import pack
from pipeline.errors import UserError
from pipeline.lineage import Lineage, code_state
from pipeline.params import load_params

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STAGES = ("fetch", "preprocess", "tune", "train", "evaluate", "register", "ablate", "repro")
FOLDER = "~/eqreg"
"""Where stages run on the cluster's head, unless another folder is named."""

_STOP_S = 30
"""How long a stage may take to end its own processes before Ray kills them; Ray's own 3 s are few."""


def submit(stage: str, address: str | None = None, folder: str = FOLDER) -> int:
    """Sends a stage to a cluster and follows its log until it ends.

    The project's files travel as they are here; data and results lie in ``folder`` on the cluster's head, from one
    job to the next. Ctrl-C leaves the job running.

    Args:
        stage: one of ``STAGES``; "repro" is ``dvc repro``.
        address: of the dashboard, http://HOST:8265; else RAY_ADDRESS, else ``cluster.address``.
        folder: a path on the head; on several nodes without ``cluster.storage`` one that all of them see.

    Returns:
        The exit code of the stage; 130 after Ctrl-C.

    Raises:
        UserError: no such stage; no dashboard answers; it does not take the token; the files are too large.
    """
    if stage not in STAGES:
        raise UserError(f"submit: {stage}: no such stage; there are {', '.join(STAGES)}")
    load_params()
    url = dashboard_url(address)
    commit, difference = code_state()
    dirty = Lineage(commit, difference, data="", params="").tags()["eqreg.git_dirty"]
    job = f"eqreg-{stage}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    with tempfile.TemporaryDirectory() as upload, connected(url) as client:
        pack(Path(upload))
        client.submit_job(
            entrypoint=f"python -m pipeline.cluster.stage_folder {shlex.quote(folder)} {stage}",
            submission_id=job,
            runtime_env={"working_dir": upload, "env_vars": _environment(commit, difference)},
            metadata={"stage": stage, "commit": commit, "dirty": dirty},
        )
    print(f"{job}: sent to {url}", flush=True)
    return _follow(job, url)


def follow(job: str, address: str | None = None) -> int:
    """Prints the log of a job from its beginning until it ends; gives its exit code, or 130 after Ctrl-C.

    Raises:
        UserError: no dashboard answers; it does not take the token; it has no such job.
    """
    return _follow(job, dashboard_url(address))


def stop(job: str, address: str | None = None) -> None:
    """Ends a job as Ctrl-C ends a stage, and waits for its end.

    Raises:
        UserError: no dashboard answers; it does not take the token; it has no such job.
    """
    url = dashboard_url(address)
    with connected(url) as client:
        _details(client, job, url)
        client.stop_job(job)
        while not client.get_job_status(job).is_terminal():
            time.sleep(0.5)
        print(f"{job}: {client.get_job_status(job).lower()}")


def _environment(commit: str, difference: str) -> dict[str, str]:
    """What a job must know of here. Ray shows it on the dashboard: no credentials, those are the cluster's own."""
    environment = {
        "EQREG_CODE": f"{commit}+{difference}" if difference else commit,
        "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S),
    }
    store = os.environ.get("MLFLOW_TRACKING_URI", "")
    if store.startswith(("http://", "https://")) and "@" not in store:
        environment["MLFLOW_TRACKING_URI"] = store
    return environment


def _details(client: JobSubmissionClient, job: str, url: str) -> Any:
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "404" in str(error):
            raise UserError(f"{job}: {url} has no such job; 'ray job list' shows those that it has") from error
        raise


def _follow(job: str, url: str) -> int:
    try:
        with connected(url) as client:
            _details(client, job, url)
            asyncio.run(_print_log(client, job))
            while not (details := _details(client, job, url)).status.is_terminal():
                time.sleep(0.2)
    except KeyboardInterrupt:
        print(f"\n{job} goes on; see it with 'eqreg submit --follow {job}', end it with 'eqreg submit --stop {job}'")
        return 130
    if details.driver_exit_code is None and details.status != "SUCCEEDED":
        print(f"{job}: {details.status.lower()}: {first_line(details.message)}", file=sys.stderr)
    elif details.status == "STOPPED":
        print(f"{job}: stopped", file=sys.stderr)
    code = details.driver_exit_code or 1
    return 0 if details.status == "SUCCEEDED" else code if code > 0 else 128 - code


async def _print_log(client: JobSubmissionClient, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)
