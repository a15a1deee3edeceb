"""`tensorbench` and `python -m bench` are the command line."""

from __future__ import annotations

import sys

from bench.machine import interrupts


def main() -> None:
    """Runs the program. Interrupts are caught before anything that takes long is imported."""
    interrupts.install()
    try:
        with interrupts.deferred():
            from bench.cli.program import main as program
        try:
            program()
        finally:
            interrupts.raise_pending()
    except KeyboardInterrupt:
        # It came before a command began, or so late in it that it had ended.
        sys.stderr.write("stopped\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
