"""What an error of an MLflow store asks for: a server and a database fail in ways of their own."""

from __future__ import annotations

import re

_NOBODY = "nobody answers there: check MLFLOW_TRACKING_URI (unset it to use mlflow.db here), then run the stage again"
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
"""Pattern of an error's code and text -> what to do about it."""

_NO_ADDRESS = "that is no address of a store: check MLFLOW_TRACKING_URI (unset it to use mlflow.db here)"


def remedy(uri: str, error: Exception, reason: str) -> str:
    """What to do about an error, in one line.

    Args:
        uri: of the store, without passwords.
        error: of MLflow, or of what MLflow stands on.
        reason: its text.
    """
    if uri.startswith(("http://", "https://")):
        text = f"{getattr(error, 'error_code', '')} {reason}"
        return next((advice for pattern, advice in _SERVER.items() if re.search(pattern, text)), _NOBODY)
    if "out-of-date database schema" in reason or "locate revision" in reason:
        return (
            f"another version of MLflow made its tables: if none is just changing them, copy the database, then run "
            f"'mlflow db upgrade {uri}', or install that version"
        )
    import sqlalchemy

    from pipeline.storage.databases import database_remedy

    try:
        url = sqlalchemy.make_url(uri)
        url.get_dialect()
    except sqlalchemy.exc.ArgumentError:  # no such dialect is one, too
        return _NO_ADDRESS
    return database_remedy(url, reason) or _NOBODY


def restore_command(uri: str, experiment_id: str) -> str:
    """The command that takes an experiment out of MLflow's bin."""
    return f"MLFLOW_TRACKING_URI='{uri}' mlflow experiments restore --experiment-id {experiment_id}"
