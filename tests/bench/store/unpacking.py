"""A script that unpacks a pack and kills itself on the way.

Events are counted from 1. An event is a database statement that is about to be sent, or an artifact of which
half is written. `unpacking.py EVENT URI PACK` kills itself with SIGKILL at the event with the number EVENT.
If EVENT is 0, it runs to its end, and prints the number of events and the numbers of those that were
artifacts.
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

    from tensorbench.store.opening import unpack

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
