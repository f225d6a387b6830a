"""The dashboard of a Ray cluster: finds its address and connects a client. Jobs are submitted through the dashboard."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from components.brief import first_line
from pipeline.cluster.session import reach
from pipeline.config.schema import load_params
from pipeline.errors import UserError
from pipeline.process_state import changed_environment

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_TIMEOUT_S = 10
_TOKEN = (
    "put the cluster's token ('ray get-auth-token' on its head) into RAY_AUTH_TOKEN, or the path of its file into "
    "RAY_AUTH_TOKEN_PATH"
)


def dashboard_url(address: str | None) -> str:
    """The URL of the dashboard.

    Args:
        address: of the dashboard; None to find it from RAY_API_SERVER_ADDRESS, RAY_ADDRESS or ``cluster.address``.

    Raises:
        UserError: there is no address, or the cluster there has no dashboard.
    """
    if address:
        return (address if "://" in address else f"http://{address}").rstrip("/")
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        if value := os.environ.get(name):
            return value.rstrip("/") if value.startswith(("http://", "https://")) else _ask_cluster(name, value)
    value = load_params().cluster.address
    if value == "local":
        raise UserError(
            "cluster.address: local: there is no running cluster to submit to; "
            "name its dashboard with --address http://HOST:8265 or in RAY_ADDRESS"
        )
    return _ask_cluster("cluster.address", value)


@contextmanager
def connected(url: str) -> Iterator[JobSubmissionClient]:
    """Connects a client to the dashboard. Errors of the client in the block are raised as ``UserError``."""
    import aiohttp
    import requests

    hint = "name it with --address http://HOST:8265; on the cluster 'ray start --head --include-dashboard=true'"
    try:
        # Ray's client would wait without end.
        answer = requests.get(f"{url}/api/version", timeout=_TIMEOUT_S)
        is_ray = answer.status_code in (401, 403) or "ray_version" in answer.json()
    except requests.RequestException as error:
        raise UserError(f"{url}: no Ray dashboard answers there ({type(error).__name__}); {hint}") from error
    if not is_ray:
        raise UserError(f"{url}: what answers there is no Ray dashboard; {hint}")
    _send_token(url)
    import ray.job_submission
    from ray.exceptions import AuthenticationError

    for module in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.ERROR)
    try:
        with changed_environment(
            {
                "RAY_API_SERVER_ADDRESS": url,  # otherwise RAY_ADDRESS would override the client's argument
                "RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "1",  # ``pack`` has selected the files
            }
        ):
            yield ray.job_submission.JobSubmissionClient(url)
    except AuthenticationError as error:
        fault = "asks for a token" if "required" in str(error) else "does not take the token"
        raise UserError(f"{url}: the cluster {fault}\n{_TOKEN}") from error
    except (RuntimeError, ConnectionError, requests.RequestException, aiohttp.ClientError) as error:
        raise UserError(
            f"{url}: the dashboard broke off ({first_line(error)})\n"
            "once it is up again, 'eqreg submit --follow JOB' shows what became of the job"
        ) from error


def _ask_cluster(name: str, address: str) -> str:
    """The URL of the dashboard of the Ray cluster at HOST:PORT, or of the cluster on this machine ("auto")."""
    hint = "name its dashboard with --address http://HOST:8265"
    _send_token(f"{name}: {address}")
    from ray.exceptions import AuthenticationError, RayError

    from pipeline.compat import GcsClient, bootstrap_address, constants

    try:
        found = bootstrap_address("auto") if address == "auto" else address
        if not found:
            raise UserError(f"{name}: {address}: no Ray cluster runs on this machine; {hint}")
        reach(found)  # Ray's client would wait for 45 s
        with _silent():
            told = GcsClient(address=found).internal_kv_get(
                constants.DASHBOARD_ADDRESS.encode(), constants.KV_NAMESPACE_DASHBOARD, timeout=_TIMEOUT_S
            )
    except AuthenticationError as error:
        raise UserError(f"{name}: {address}: the cluster does not take the token\n{_TOKEN}") from error
    except UserError:
        raise
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{name}: {address}: no Ray cluster answers there ({first_line(error)}); {hint}") from error
    dashboard = told.decode() if told else ""
    try:
        reach(dashboard)  # a cluster without a dashboard also names an address
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name}: {address}: the cluster there runs without its dashboard, which takes jobs, or {dashboard} is out "
            "of reach\nstart it with 'ray start --head --include-dashboard=true', where ray[default] is installed"
        ) from error
    return f"http://{dashboard}"


@contextmanager
def _silent() -> Iterator[None]:
    """Suppresses standard error: Ray's C++ code prints errors there that its exception also reports."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _send_token(place: str) -> None:
    """Makes Ray's clients send the token, if there is one: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token."""
    from pipeline.compat import AuthenticationTokenLoader, enable_token

    logging.getLogger("ray").setLevel(logging.ERROR)
    is_on = enable_token(warn_if_disabled=False)
    if is_on and not AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        raise UserError(f"{place}: RAY_AUTH_MODE is token, and there is none\n{_TOKEN}")
