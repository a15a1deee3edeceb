"""MLflow, and nowhere else: what is stored of suites and trials, written and read."""

import os

# Before anything imports MLflow, which reads these when it is imported.
# Nothing leaves the machine unless the user names a server.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Its bars and its lines for each run of a server would tear ours.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# MLflow asks a silent server for four minutes; what cannot be sent waits in the outbox instead.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
# So does PostgreSQL's library, which without a limit waits for minutes. In seconds, for each address.
os.environ.setdefault("PGCONNECT_TIMEOUT", "4")

#: The default store: a file in the working folder.
DEFAULT_STORE = "sqlite:///mlflow.db"
