"""The command line. Importing it is cheap: each command imports what it needs when it runs."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of `snellen`: errors a user can cause become one sentence and exit status 2."""
    from snellen.cli.app import app
    from snellen.cli.errors import report_errors

    with report_errors(debug="--debug" in sys.argv):
        sys.argv = [word for word in sys.argv if word != "--debug"]
        app()


__all__ = ["main"]
