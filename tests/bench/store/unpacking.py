"""Unpacks a pack and kills itself on the way.

A script: `unpacking.py EVENT URI PACK` ends by SIGKILL at the event with this number, counted from 1; 0 lets
everything pass. Events are database statements about to be sent and artifact files half written. At its end
it prints the number of events and which of them were files.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any


def main(last: int, uri: str, pack: str) -> None:
    from sqlalchemy import Engine, event

    from bench.store.opening import unpack

    count, files = 0, []

    def happens() -> bool:
        nonlocal count
        count += 1
        return count == last

    @event.listens_for(Engine, "connect")
    def unsynced(connection: Any, _: object) -> None:
        # A killed process loses nothing, because the system already has the written data.
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    @event.listens_for(Engine, "before_cursor_execute")
    def kill(*_: object) -> None:
        if happens():
            os.kill(os.getpid(), signal.SIGKILL)

    def kill_amid_file(name: str, details: tuple[Any, ...]) -> None:
        if name != "shutil.copyfile":
            return
        if happens():
            content = Path(details[0]).read_bytes()
            Path(details[1]).write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        files.append(count)

    sys.addaudithook(kill_amid_file)
    unpack(pack, store=uri)
    print(count, *files)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
