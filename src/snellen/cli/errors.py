"""What a user sees when something goes wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from snellen.errors import SnellenError

BAD_INPUT, FAILED_JOBS, INTERRUPTED = 2, 3, 130


@contextmanager
def report_errors(debug: bool) -> Iterator[None]:
    """Turns errors into one sentence on stderr and an exit status; `--debug` lets the traceback through."""
    try:
        yield
    except SnellenError as error:
        if debug:
            raise
        fail(str(error))
    except KeyboardInterrupt:
        if debug:
            raise
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `snellen … | head` is no error
    except Exception as error:  # the last net: what reaches it is a defect of ours, and is told as one
        if debug:
            raise
        fail(f"unexpected {type(error).__name__}: {error} (a defect of snellen; --debug shows where)")


def fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(BAD_INPUT)
