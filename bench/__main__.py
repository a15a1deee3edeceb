"""The entry point of `tensorbench` and `python -m tensorbench`."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from contextlib import suppress

from tensorbench.machine import interrupts


def main() -> None:
    """Runs the command line program. Interrupts are caught even during its slow imports."""
    interrupts.install()
    # Imports make objects that stay. Looking for garbage among them would take a tenth of a short command.
    gc.set_threshold(50_000)
    # At its end Python would look once more through all objects, for over a second after torch and MLflow.
    atexit.register(gc.freeze)
    try:
        with interrupts.deferred():
            from tensorbench.cli.program import main as program
        try:
            program()
        finally:
            interrupts.raise_pending()
    except KeyboardInterrupt:
        # The interrupt came before a command began or after it had ended.
        sys.stderr.write("stopped\n")
    except SystemExit as end:
        if end.code != 130:
            raise
    else:
        return
    # Everything is closed. Python would take down torch and MLflow piece by piece, for up to a second.
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(130)


if __name__ == "__main__":
    main()
