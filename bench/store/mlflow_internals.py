"""What MLflow has no public interface for. No other module uses MLflow's inner modules.

Its client reads a run at a time, and 30,000 runs take a quarter of an hour; so the store asks the database
itself. `tests/test_internals.py` checks each part against the installed MLflow. Inner modules are imported in
functions, since that takes seconds.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

#: The columns of MLflow's tables that queries name.
COLUMNS = {
    "experiments": ("experiment_id", "name", "artifact_location", "lifecycle_stage"),
    "runs": (
        *("run_uuid", "experiment_id", "status", "start_time", "end_time", "lifecycle_stage"),
        "artifact_uri",
    ),
    "tags": ("run_uuid", "key", "value"),
    "metrics": ("run_uuid", "key", "value", "is_nan", "step", "timestamp"),
    "latest_metrics": ("run_uuid", "key", "value", "is_nan"),
}


def quiet() -> None:
    """Silences what MLflow and its migrations log below warnings, and errors that it also raises."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It prints the traceback of every database error.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def models() -> ModuleType:
    """Returns the module with the SQLAlchemy classes of MLflow's tables, such as `SqlRun`."""
    from mlflow.store.tracking.dbmodels import models

    return models


def tables() -> dict[str, Any]:
    """Returns the SQLAlchemy tables of MLflow by name."""
    from mlflow.store.db.base_sql_model import Base

    return dict(Base.metadata.tables)


def make_tables(database: Path) -> None:
    """Makes a SQLite file with MLflow's tables, or upgrades the tables of a file."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"sqlite:///{database}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()


def delete_artifacts(uri: str, tracking_uri: str, where: str) -> None:
    """Deletes a folder among the artifacts at an address."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(uri, tracking_uri).delete_artifacts(where)


def forget_places() -> None:
    """Forgets where runs keep their artifacts.

    MLflow remembers it by the ids of runs, which a copied store has in common with its original.
    """
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()
