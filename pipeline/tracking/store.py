"""The runs in MLflow: one parent run for each lineage, with the runs of trials nested under it.

Nothing outside ``pipeline.tracking`` imports MLflow.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, described
from pipeline.process_state import interrupts_ignored
from pipeline.provenance.lineage import main_checkout
from pipeline.storage.databases import alone, sqlite_address, sqlite_file
from pipeline.tracking.failures import S3_LIBRARIES, hint, restore_command

if TYPE_CHECKING:
    import sqlalchemy
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from components.tasks import Metric

PARENT_TAG = "mlflow.parentRunId"
TRAINING_TAG = "eqreg.training"
MODEL_TAG = "eqreg.model_sha256"
"""Tag of a training's run and of a model version; both are found by it."""
_LIBRARIES = ("mlflow", "requests", "urllib3", "sqlalchemy", "sqlite3", *S3_LIBRARIES)
"""Libraries whose errors are about the store."""
_MOST_TRAININGS = 1000  # largest number of runs of one lineage that are read


def tracking_uri(root: Path | None = None) -> str:
    """The address of the store.

    It is ``MLFLOW_TRACKING_URI`` or, if that is not set, the absolute path of ``mlflow.db`` (SQLite) at the root of the
    main checkout.
    """
    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    return chosen or sqlite_address(main_checkout(root or Path.cwd()) / "mlflow.db")


def quiet_mlflow() -> None:
    """Sets what MLflow must find before its import: no telemetry, no pickles, no log messages, short timeouts."""
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
        UserError: the server does not answer; raised by every method.
    """

    def __init__(self, task: str, uri: str | None = None) -> None:
        self.task = task
        self.uri = uri or tracking_uri()

    @cached_property
    def score(self) -> Metric:
        """The metric by which validation of the task chooses."""
        from components.tasks import task_class

        return task_class(self.task).metrics[0]

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client; the tables of a database are made first."""
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
        """The id of the task's experiment, which is created if it is missing.

        With an SQLite store, its artifacts are in the folder ``mlartifacts`` beside the database.
        """
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
                made = client.get_experiment_by_name(name)  # another process has created it meanwhile
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
        """The id of the parent run of one lineage (``Lineage.tags()``), which is created if it is missing.

        One lineage can have several trainings with different params, because a sweep in between can choose others. With
        ``TRAINING_TAG`` in ``lineage`` it is the run of that training; without it, the newest run.
        """
        found = self._parent(lineage)
        if found is None:
            tags = {"eqreg.kind": "pipeline", "eqreg.lineage": lineage["eqreg.lineage"]}
            return self.begin(f"{self.task}-{lineage['eqreg.lineage']}", {**lineage, **tags}, {})
        if TRAINING_TAG in lineage and TRAINING_TAG not in found.data.tags:
            self.set_tag(found.info.run_id, TRAINING_TAG, lineage[TRAINING_TAG])
        return str(found.info.run_id)

    def _parent(self, lineage: Mapping[str, str]) -> Run | None:
        """The parent run of one lineage; with a training, also one that a sweep created and that is not trained yet."""
        training = lineage.get(TRAINING_TAG)
        tags = {"eqreg.kind": "pipeline", "eqreg.lineage": lineage["eqreg.lineage"]}
        found = self._search(tags, _MOST_TRAININGS)
        trained = (run for run in found if training is None or run.data.tags.get(TRAINING_TAG) == training)
        untrained = (run for run in found if TRAINING_TAG not in run.data.tags)
        return next(trained, next(untrained, None))

    def run_of_model(self, sha256: str, training: str) -> str | None:
        """The id of the newest run that trained this model; None if no run says so.

        Args:
            sha256: from ``pipeline.model_file.model_sha256``.
            training: ``TrainingFingerprint.id``. A run of this training is preferred, because two trainings can end
                with the same weights.
        """
        of_model = {"eqreg.kind": "pipeline", MODEL_TAG: sha256}
        found = self.find(of_model | {TRAINING_TAG: training}) or self.find(of_model)
        return None if found is None else str(found.info.run_id)

    def log_params(self, run_id: str, values: Mapping[str, Any], resolved: str) -> None:
        """Logs the params of a run, unless they are logged already.

        Args:
            run_id: the run.
            values: nested params; they are logged under dotted keys.
            resolved: text of the same params, which is logged as the artifact ``params.yaml``.
        """
        from mlflow.entities import Param

        with answering(self.uri):
            if self.client.get_run(run_id).data.params:
                return
            # The params are logged last: if a run has params, it also has the text.
            self.client.log_text(run_id, resolved, "params.yaml")
            params = [Param(key, str(value)[:6000]) for key, value in flatten(values).items()]
            self.client.log_batch(run_id, params=params)

    def begin(self, name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
        """Creates a run, logs its params, and returns its id. The run also has MLflow's own tags.

        Args:
            name: name of the run.
            tags: its tags.
            params: its params.
        """
        from mlflow.entities import Param

        with answering(self.uri):
            run = self.client.create_run(
                self.experiment_id, run_name=name, tags={**_standard_tags(), **_commit(tags), **tags}
            )
            values = [Param(key, str(value)[:6000]) for key, value in params.items()]
            self.client.log_batch(run.info.run_id, params=values)
        return str(run.info.run_id)

    def log(self, run_id: str, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one value to the history of each metric.

        Args:
            run_id: the run.
            step: of the values.
            metrics: name -> value.
        """
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with answering(self.uri):
            self.client.log_batch(run_id, [Metric(key, value, now, step) for key, value in metrics.items()])

    def last_step(self, run_id: str, metric: str) -> int:
        """The last step at which the metric was logged; -1 if it was not. A resumed run logs only later steps."""
        with answering(self.uri):
            return max((entry.step for entry in self.client.get_metric_history(run_id, metric)), default=-1)

    def log_files(self, run_id: str, folder: Path, artifact_path: str) -> None:
        """Logs all files of a folder as artifacts.

        Args:
            run_id: the run.
            folder: the folder.
            artifact_path: folder among the run's artifacts.
        """
        with answering(self.uri):
            self.client.log_artifacts(run_id, str(folder), artifact_path)

    def log_file(self, run_id: str, file: Path, artifact_path: str) -> None:
        """Logs one file as an artifact.

        Args:
            run_id: the run.
            file: the file.
            artifact_path: folder among the run's artifacts.
        """
        with answering(self.uri):
            self.client.log_artifact(run_id, str(file), artifact_path)

    def log_table(self, run_id: str, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Logs a table, which MLflow's pages show with its images. A table that is there already is not changed.

        Args:
            run_id: the run.
            rows: rows with the same columns; a value that is a path is an image file.
            name: of the artifact, with the suffix ``.json``.
        """
        import mlflow

        def cell(value: Any) -> Any:
            return mlflow.Image(str(value)) if isinstance(value, Path) else value

        with answering(self.uri):
            if name in {artifact.path for artifact in self.client.list_artifacts(run_id)}:
                return  # MLflow would append the rows
            self.client.log_table(run_id, {key: [cell(row[key]) for row in rows] for key in rows[0]}, name)

    def tags(self, run_id: str) -> dict[str, str]:
        """All tags of a run."""
        with answering(self.uri):
            return dict(self.client.get_run(run_id).data.tags)

    def tag(self, run_id: str, key: str) -> str | None:
        """The value of a run's tag; None if the run does not have the tag."""
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
    def running(self, lineage: Mapping[str, str]) -> Iterator[str]:
        """Gives the id of the parent run of a lineage (``parent_run``) to the block.

        After an error in the block, it marks the run as FAILED; after Ctrl-C, as KILLED. Without this, the run would
        never end in MLflow.
        """
        run_id = ""
        try:
            run_id = self.parent_run(lineage)
            yield run_id
        except BaseException as error:
            # A second Ctrl-C must not interrupt this, and an error here must not replace the error of the block.
            with interrupts_ignored(), suppress(Exception):
                if isinstance(error, Exception):
                    if run_id:
                        self.end(run_id, "FAILED")
                # The run is searched: an interrupt can come between the creation of a run and the record of its id.
                elif (found := self._parent(lineage)) and found.info.status == "RUNNING":
                    self.end(str(found.info.run_id), "KILLED")
            raise


@cache
def _standard_tags() -> dict[str, str]:
    """The tags that MLflow's pages show as user and source; its client sets none by itself.

    MLflow would take the commit from the folder of the program. The one of the lineage is the project's.
    """
    from mlflow.tracking.context.git_context import GitRunContext
    from mlflow.tracking.context.registry import resolve_tags

    tags: dict[str, str] = resolve_tags(ignore=[GitRunContext])
    return tags


def _commit(tags: Mapping[str, str]) -> dict[str, str]:
    """MLflow's tag of the commit, from the tags of a lineage; {} if there is no commit."""
    commit = tags.get("eqreg.git_commit", "")
    return {"mlflow.source.git.commit": commit} if re.fullmatch("[0-9a-f]{40}", commit) else {}


def make_tables(uri: str) -> None:
    """Makes the tables of a new database. One process makes them, the others wait, and none sees incomplete tables.

    Raises:
        UserError: the database cannot be made or opened.
    """
    if not re.match(r"(sqlite|postgresql|mysql|mssql)\b", uri):  # a server makes its own
        return
    quiet_mlflow()
    import sqlalchemy
    from mlflow import MlflowClient

    with answering(uri):
        url = sqlalchemy.make_url(uri)
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")  # the driver that is installed
        with alone(url, "tables.lock"):
            file = sqlite_file(url)
            if file and not file.exists():
                _make_file(url, file)
            # Fails at once if the database cannot be opened; MLflow would try for minutes.
            with sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).connect() as connection:
                sqlalchemy.inspect(connection).get_table_names()
            MlflowClient(uri)


def _make_file(url: sqlalchemy.URL, file: Path) -> None:
    """Makes a new SQLite database with MLflow's tables. The file appears only when it is complete."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)  # left by a process that was killed
    address = url.set(database=f"{(url.database or '').removesuffix(file.name)}{new.name}")
    store = SqlAlchemyStore(address.render_as_string(hide_password=False), DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
    store.engine.dispose()
    try:
        os.link(new, file)
    except FileExistsError:  # made by a process that does not take the lock, such as mlflow ui
        pass
    except OSError:  # a file system without hard links
        new.replace(file)
    new.unlink(missing_ok=True)


class answering:  # noqa: N801 - used as a with statement, like contextlib.suppress
    """Raises a ``UserError`` of two lines for errors of an MLflow store that does not answer or rejects a request."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, UserError):
            return
        module = type(error).__module__.split(".")[0]
        if module in _LIBRARIES or isinstance(error, OSError):
            if isinstance(error, OSError) and error.filename:
                shown = without_password(self.uri)
                raise UserError(f"{described(error)}\nit belongs to what the MLflow store {shown} keeps") from error
            text = re.split(r"\[SQL: |\(Background on this error", str(error))[0]
            reason, shown = without_password(" ".join(text.split())), without_password(self.uri)
            raise UserError(
                f"the MLflow store {shown} does not answer as it should: {reason[:200]}\n{hint(shown, error, reason)}"
            ) from error


def without_password(text: str) -> str:
    """A text without the user and the password of every address in it, and without the passwords in queries."""
    text = re.sub(r"(\w://)[^/\s@]*(?:@[^/\s@]*)*@", r"\1", text)
    return re.sub(r"(?i)([?&](?:password|passwd|token)=)[^&\s]*", r"\1...", text)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings to dotted keys.

    A mapping with a key that MLflow rejects (``down.*``) stays one value.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value and all(re.fullmatch(r"[\w./ :-]+", name) for name in value):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
