"""A script that opens a store as a first start does, and kills itself on the way.

`first_start.py STATEMENT HOW URI` ends itself by SIGKILL just before it sends the database the statement with
number STATEMENT. Statements are counted from 1. With 0 it sends all statements and prints their number. HOW
is `bench`, or `mlflow` to open the store as earlier versions did.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from typing import Any


def main(last: int, how: str, uri: str) -> None:
    from mlflow.tracking import MlflowClient
    from sqlalchemy import Engine, event

    from tensorbench.store.store import Store

    count = 0

    @event.listens_for(Engine, "connect")
    def unsynced(connection: Any, _: object) -> None:
        # A killed process loses nothing, because the system already has the written data.
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    @event.listens_for(Engine, "before_cursor_execute")
    def kill(*_: object) -> None:
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    if how == "bench":
        Store.create(uri, "stress")
    else:
        MlflowClient(uri).search_experiments(max_results=1)
    print(count)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
