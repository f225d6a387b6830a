"""Submits, follows and stops stages as Ray jobs on a running cluster, through HTTP requests to its dashboard."""

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

from components.brief import first_line
from pipeline.cluster.jobs.dashboard import connected, dashboard_url
from pipeline.cluster.jobs.upload import pack
from pipeline.config.schema import load_params
from pipeline.errors import UserError
from pipeline.provenance.lineage import Lineage, code_state

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STAGES = ("fetch", "preprocess", "tune", "train", "evaluate", "register", "ablate", "repro")
FOLDER = "~/eqreg"
"""Default folder in which stages run on the cluster's head."""

_STOP_S = 30
"""Seconds that a stage has to end its own processes before Ray kills them; Ray's default of 3 s is too short."""


def submit(stage: str, address: str | None = None, folder: str = FOLDER) -> int:
    """Submits a stage to a cluster, and prints its log until it ends.

    The project's files are uploaded in their current state. Data and results stay in ``folder`` on the cluster's head
    from one job to the next. Ctrl-C does not stop the job.

    Args:
        stage: one of ``STAGES``; "repro" is ``dvc repro``.
        address: of the dashboard, http://HOST:8265; None for RAY_ADDRESS or, if that is not set, ``cluster.address``.
        folder: a path on the head. On several nodes without ``cluster.storage``, all nodes must see it.

    Returns:
        The exit code of the stage; 130 after Ctrl-C.

    Raises:
        UserError: the stage does not exist; no dashboard answers, or it rejects the token; the files are too large.
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
            entrypoint=f"python -m pipeline.cluster.jobs.entry_point {shlex.quote(folder)} {stage}",
            submission_id=job,
            runtime_env={"working_dir": upload, "env_vars": _environment(commit, difference)},
            metadata={"stage": stage, "commit": commit, "dirty": dirty},
        )
    print(f"{job}: sent to {url}", flush=True)
    return _follow(job, url)


def follow(job: str, address: str | None = None) -> int:
    """Prints the log of a job from the beginning until the job ends.

    Returns:
        The exit code of the job; 130 after Ctrl-C.

    Raises:
        UserError: no dashboard answers, it rejects the token, or it has no such job.
    """
    return _follow(job, dashboard_url(address))


def stop(job: str, address: str | None = None) -> None:
    """Stops a job in the way in which Ctrl-C stops a stage, and waits until it ends.

    Raises:
        UserError: no dashboard answers, it rejects the token, or it has no such job.
    """
    url = dashboard_url(address)
    with connected(url) as client:
        _details(client, job, url)
        client.stop_job(job)
        while not client.get_job_status(job).is_terminal():
            time.sleep(0.5)
        print(f"{job}: {client.get_job_status(job).lower()}")


def _environment(commit: str, difference: str) -> dict[str, str]:
    """The environment variables that a job receives from this machine.

    Ray shows them on the dashboard, so they hold no credentials. The cluster has its own credentials.
    """
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
