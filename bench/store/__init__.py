"""The store: writes suites and trials to MLflow and reads them. No other package uses MLflow."""

import os

# These variables are set before the first import of MLflow, which reads them.
# No usage data leaves the machine.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# MLflow's progress bars and its lines per run would break our display.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
#: The longest wait for a tracking server's first answer, in seconds. MLFLOW_HTTP_REQUEST_TIMEOUT sets a
#: longer wait, which a busy server may need.
FIRST_ANSWER = float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"))
# By default MLflow retries a silent server for four minutes; here unsent records wait in the outbox.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
# PostgreSQL's library waits for minutes without this limit, in seconds per address.
os.environ.setdefault("PGCONNECT_TIMEOUT", "4")

#: The default store, a file in the working folder.
DEFAULT_STORE = "sqlite:///mlflow.db"
