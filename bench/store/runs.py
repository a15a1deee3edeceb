"""What every use of MLflow's runs shares: the search for them, all pages of it, and JSON artifacts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from mlflow.entities import Run, ViewType
from mlflow.tracking import MlflowClient

from bench.store.connect import storing
from bench.wire import Wired
from bench.wire.words import Artifact

#: Runs of one request.
PAGE = 1000


def find_runs(client: MlflowClient, experiments: Sequence[str], condition: str) -> Iterator[Run]:
    """The runs of these experiments that are not deleted and meet a condition in MLflow's search language."""
    token = None
    while experiments:
        page = client.search_runs(
            list(experiments),
            condition,
            ViewType.ACTIVE_ONLY,
            max_results=PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


@storing()
def keep_json(client: MlflowClient, run_id: str, name: Artifact, content: Wired) -> None:
    """Stores a JSON artifact."""
    client.log_text(run_id, json.dumps(content.model_dump(mode="json"), indent=1), name)
