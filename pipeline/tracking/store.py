"""MLflow's runs: one parent a lineage, trials nested under it. Nothing outside ``pipeline.tracking`` imports MLflow."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, described
from pipeline.lineage import main_checkout
from pipeline.sqlite import sqlite_address, sqlite_file
from pipeline.tracking.failures import remedy, restore_command

if TYPE_CHECKING:
    import sqlalchemy
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT_TAG = "mlflow.parentRunId"
TRAINING_TAG = "eqreg.training"
MODEL_TAG = "eqreg.model_sha256"
"""Of a training's run and of a model version: what both are found by."""
_MOST_TRAININGS = 1000  # of one lineage that are looked at


def tracking_uri(root: Path | None = None) -> str:
    """``MLFLOW_TRACKING_URI``, or ``mlflow.db`` (SQLite) at the root of the main checkout, as an absolute path."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    return chosen or sqlite_address(main_checkout(root or Path.cwd()) / "mlflow.db")


def quiet_mlflow() -> None:
    """Settings that must stand before MLflow is imported: no telemetry, no pickles, no chatter, quick failure."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="mlflow")


class Store:
    """The runs of one task in one MLflow experiment, ``eqreg-TASK``.

    Raises:
        UserError: from every method, where the server does not answer.
    """

    def __init__(self, task: str, uri: str | None = None) -> None:
        self.task = task
        self.uri = uri or tracking_uri()

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client, connected, with all tables in the database."""
        quiet_mlflow()
        import mlflow

        registry = os.environ.get("MLFLOW_REGISTRY_URI", self.uri)
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(registry)
        for uri in dict.fromkeys((registry, self.uri)):
            make_tables(uri)
        with answering(self.uri):
            return mlflow.MlflowClient(self.uri)

    @cached_property
    def experiment_id(self) -> str:
        """The experiment of the task, made if need be; with the default store its artifacts lie in ``mlartifacts``."""
        name, client = f"eqreg-{self.task}", self.client
        from mlflow.exceptions import MlflowException

        with answering(self.uri):
            experiment = client.get_experiment_by_name(name)
            if experiment and experiment.lifecycle_stage == "deleted":
                shown = without_password(self.uri)
                raise UserError(
                    f"the MLflow store {shown}: experiment {name} is in the bin\n"
                    f"restore it: {restore_command(shown, str(experiment.experiment_id))}"
                )
            if experiment:
                return str(experiment.experiment_id)
            location = None
            if file := sqlite_file(self.uri):
                location = (file.resolve().parent / "mlartifacts").as_uri()
            try:
                return str(client.create_experiment(name, artifact_location=location))
            except MlflowException:
                made = client.get_experiment_by_name(name)  # by another process, meanwhile
                if made is None:
                    raise
                return str(made.experiment_id)

    def find(self, tags: Mapping[str, str]) -> Run | None:
        """The newest run that has all these tags."""
        return next(iter(self._search(tags, 1)), None)

    def _search(self, tags: Mapping[str, str], most: int) -> list[Run]:
        conditions = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        with answering(self.uri):
            return list(self.client.search_runs([self.experiment_id], conditions, max_results=most))

    def parent_run(self, lineage: Mapping[str, str]) -> str:
        """The id of the run that holds everything of one lineage (``Lineage.tags()``), found again or begun.

        One lineage may be trained twice with different params, as a sweep in between can choose others: with
        ``TRAINING_TAG`` in ``lineage`` it is the run of that training, without it the newest.
        """
        tags = {"eqreg.kind": "pipeline", "eqreg.lineage": lineage["eqreg.lineage"]}
        training = lineage.get(TRAINING_TAG)
        found = self._search(tags, _MOST_TRAININGS)
        for run in found:
            if training is None or run.data.tags.get(TRAINING_TAG) == training:
                return str(run.info.run_id)
        for run in found:
            if training is not None and TRAINING_TAG not in run.data.tags:  # begun by a sweep, not trained yet
                self.set_tag(run.info.run_id, TRAINING_TAG, training)
                return str(run.info.run_id)
        return self.begin(f"{self.task}-{lineage['eqreg.lineage']}", {**lineage, **tags}, {})

    def run_of_model(self, sha256: str, training: str) -> str | None:
        """The id of the newest run that trained this model; None if no run says so.

        Args:
            sha256: of ``pipeline.model_hash``.
            training: ``TrainingIdentity.id``, of which a run is preferred: two trainings may end with the same weights.
        """
        of_model = {"eqreg.kind": "pipeline", MODEL_TAG: sha256}
        found = self.find(of_model | {TRAINING_TAG: training}) or self.find(of_model)
        return None if found is None else str(found.info.run_id)

    def log_params(self, run_id: str, values: Mapping[str, Any], resolved: str) -> None:
        """Logs what a run was made with, once: nested values under dotted keys, and the same as ``params.yaml``."""
        from mlflow.entities import Param

        with answering(self.uri):
            if self.client.get_run(run_id).data.params:
                return
            # The params come last: where they are, the text is too.
            self.client.log_text(run_id, resolved, "params.yaml")
            params = [Param(key, str(value)[:6000]) for key, value in flatten(values).items()]
            self.client.log_batch(run_id, params=params)

    def begin(self, name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
        """Begins a run and logs its params; gives its id."""
        from mlflow.entities import Param

        with answering(self.uri):
            run = self.client.create_run(self.experiment_id, run_name=name, tags=dict(tags))
            values = [Param(key, str(value)[:6000]) for key, value in params.items()]
            self.client.log_batch(run.info.run_id, params=values)
        return str(run.info.run_id)

    def log(self, run_id: str, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one value to the history of each metric."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with answering(self.uri):
            self.client.log_batch(run_id, [Metric(key, value, now, step) for key, value in metrics.items()])

    def last_step(self, run_id: str, metric: str) -> int:
        """The last step at which the metric was logged, so that a resumed run does not log it twice; -1 for none."""
        with answering(self.uri):
            return max((entry.step for entry in self.client.get_metric_history(run_id, metric)), default=-1)

    def log_files(self, run_id: str, folder: Path, artifact_path: str) -> None:
        """Keeps all files of a folder as artifacts."""
        with answering(self.uri):
            self.client.log_artifacts(run_id, str(folder), artifact_path)

    def tags(self, run_id: str) -> dict[str, str]:
        """All tags of a run."""
        with answering(self.uri):
            return dict(self.client.get_run(run_id).data.tags)

    def tag(self, run_id: str, key: str) -> str | None:
        """The value of a run's tag; None where it has none."""
        return self.tags(run_id).get(key)

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        """Sets a run's tag."""
        with answering(self.uri):
            self.client.set_tag(run_id, key, value)

    def end(self, run_id: str, status: str = "FINISHED") -> None:
        """Marks the run as FINISHED, FAILED or KILLED."""
        with answering(self.uri):
            self.client.set_terminated(run_id, status)

    @contextmanager
    def ended_if_broken_off(self, run_ids: Iterable[str]) -> Iterator[None]:
        """Marks runs as FAILED, or KILLED by Ctrl-C, if the block is left by an error; else none of them would end."""
        try:
            yield
        except BaseException as error:
            with suppress(Exception):  # the error on its way may be that the store does not answer
                for run_id in run_ids:
                    self.end(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
            raise


def make_tables(uri: str) -> None:
    """Makes the tables of a fresh database: one process does it, the others wait, and no half of them is ever seen.

    Raises:
        UserError: the database cannot be made or opened.
    """
    if not re.match(r"(sqlite|postgresql|mysql|mssql)\b", uri):  # a server makes its own
        return
    quiet_mlflow()
    import sqlalchemy
    from mlflow import MlflowClient

    from pipeline.storage.databases import alone, sqlite_file

    with answering(uri):
        url = sqlalchemy.make_url(uri)
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")  # which is installed
        with alone(url, "tables.lock"):
            file = sqlite_file(url)
            if file and not file.exists():
                _make_file(url, file)
            # MLflow itself tries for minutes to open what cannot be opened.
            with sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).connect() as connection:
                sqlalchemy.inspect(connection).get_table_names()
            MlflowClient(uri)


def _make_file(url: sqlalchemy.URL, file: Path) -> None:
    """A new SQLite database with MLflow's tables, whole or not at all."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)  # of a process that was killed
    address = url.set(database=f"{(url.database or '').removesuffix(file.name)}{new.name}")
    store = SqlAlchemyStore(address.render_as_string(hide_password=False), DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
    store.engine.dispose()
    try:
        os.link(new, file)
    except FileExistsError:  # of a process that does not wait, as mlflow ui
        pass
    except OSError:  # a file system without links
        new.replace(file)
    new.unlink(missing_ok=True)


class answering:  # noqa: N801 - used as a with statement, like contextlib.suppress
    """Turns the many errors of an MLflow server that does not answer, or refuses, into one line."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, UserError):
            return
        module = type(error).__module__.split(".")[0]
        if module in ("mlflow", "requests", "urllib3", "sqlalchemy", "sqlite3") or isinstance(error, OSError):
            if isinstance(error, OSError) and error.filename:
                shown = without_password(self.uri)
                raise UserError(f"{described(error)}\nit belongs to what the MLflow store {shown} keeps") from error
            text = re.split(r"\[SQL: |\(Background on this error", str(error))[0]
            reason, shown = without_password(" ".join(text.split())), without_password(self.uri)
            raise UserError(
                f"the MLflow store {shown} does not answer as it should: {reason[:200]}\n{remedy(shown, error, reason)}"
            ) from error


def without_password(text: str) -> str:
    """A text with the user and password of every address in it left out, and the passwords of its query."""
    text = re.sub(r"(\w://)[^/\s@]*(?:@[^/\s@]*)*@", r"\1", text)
    return re.sub(r"(?i)([?&](?:password|passwd|token)=)[^&\s]*", r"\1...", text)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> dotted keys; a mapping with a key that MLflow does not take (``down.*``) stays whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value and all(re.fullmatch(r"[\w./ :-]+", name) for name in value):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
