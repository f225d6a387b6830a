"""Hints for errors of an MLflow store, which is a server or a database."""

from __future__ import annotations

import re

_NOBODY = "nobody answers there: check MLFLOW_TRACKING_URI (unset it to use mlflow.db here), then run the stage again"
_REJECTED = "it answers, and rejects the request: EQREG_DEBUG=1 shows where it was made"
_ANSWERED = ("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")
"""Codes of MLflow's errors that say that a store has answered."""
_SERVER = {
    r"Failed to establish|NameResolution|refused|timed out|disconnected|reset by peer": _NOBODY,
    r"error code 40[13]|UNAUTHENTICATED|PERMISSION_DENIED|Permission denied|[Uu]nauthorized|[Ff]orbidden": (
        "it does not let you in: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    ),
    r"error code 40[45]|ENDPOINT_NOT_FOUND|not in a valid JSON format": (
        "what answers there is no MLflow server: check MLFLOW_TRACKING_URI"
    ),
    r"error code (5\d\d|429)|too many (5\d\d|429)|TEMPORARILY_UNAVAILABLE|INTERNAL_ERROR": (
        "the server itself fails, and its log says why: mend that or wait, then run the stage again"
    ),
    r"CERTIFICATE|SSL": "its certificate is not trusted here: name its file in MLFLOW_TRACKING_SERVER_CERT_PATH",
}
"""Pattern of an error's code and text -> hint."""

S3_LIBRARIES = ("boto3", "botocore", "s3transfer")
_S3 = (
    "its artifacts are in S3: check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE), and MLFLOW_S3_ENDPOINT_URL for a "
    "server that is not AWS"
)
_NO_ADDRESS = "that is no address of a store: check MLFLOW_TRACKING_URI (unset it to use mlflow.db here)"


def hint(uri: str, error: Exception, reason: str) -> str:
    """The hint for an error, in one line.

    Args:
        uri: address of the store, without passwords.
        error: raised by MLflow or by a library that MLflow uses.
        reason: text of the error.
    """
    if type(error).__module__.split(".")[0] in S3_LIBRARIES:
        return _S3
    code = str(getattr(error, "error_code", ""))
    other = _REJECTED if code in _ANSWERED else _NOBODY
    if uri.startswith(("http://", "https://")):
        text = f"{code} {reason}"
        return next((advice for pattern, advice in _SERVER.items() if re.search(pattern, text)), other)
    if "out-of-date database schema" in reason or "locate revision" in reason:
        return (
            f"another version of MLflow made its tables: if none is just changing them, copy the database, then run "
            f"'mlflow db upgrade {uri}', or install that version"
        )
    import sqlalchemy

    from pipeline.storage.databases import database_hint

    try:
        url = sqlalchemy.make_url(uri)
        url.get_dialect()
    except sqlalchemy.exc.ArgumentError:  # also raised for an unknown dialect
        return _NO_ADDRESS
    return database_hint(url, reason) or other


def restore_command(uri: str, experiment_id: str) -> str:
    """The command that restores a deleted experiment of MLflow."""
    return f"MLFLOW_TRACKING_URI='{uri}' mlflow experiments restore --experiment-id {experiment_id}"
