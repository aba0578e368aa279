"""Errors that a caller may want to catch. Everything a user can cause derives from `SnellenError`.

The message is one sentence: which argument, what came, what is accepted, what to do. The command line prints it
without a traceback (`--debug` shows the traceback).
"""

from __future__ import annotations


class SnellenError(Exception):
    """Something the user can put right; the message says how."""


class InvalidInput(SnellenError, ValueError):
    """An argument is outside what is accepted."""


class AccessDenied(SnellenError):
    """A method asked for more of the model than the model grants."""


class BudgetExhausted(SnellenError):
    """The query budget does not cover the next pass; nothing of that pass was spent."""


class UntrustedFile(SnellenError):
    """The file could run code when it is loaded, so it was not loaded."""


class ModelUnavailable(SnellenError):
    """The model can no longer be asked, for example because its server does not answer; what is stored is safe."""
