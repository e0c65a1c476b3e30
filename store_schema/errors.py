"""Every error that a user can meet, with the exit code it leads to.

Each is also a builtin error, so that callers who do not know this package can catch it. A message says what
was expected, what came, where, and the remedy; the command line prints it as one line without a traceback.
"""


class ButdError(Exception):
    """A failure that is explained by its message alone."""

    exit_code = 1


class UsageError(ButdError, ValueError):
    """The user's mistake: a missing folder, an unknown option, two things that do not fit together."""

    exit_code = 2


class InputNotFoundError(UsageError, FileNotFoundError):
    """A file or folder that the user named does not exist."""


class ConfigError(UsageError):
    """A configuration has an unknown key or a value of the wrong type or range."""


class TableError(UsageError):
    """An annotation table breaks its schema; the message names file, row and rule."""


class ImageReadError(ButdError, OSError):
    """A picture cannot be decoded; the batch job records it and goes on."""


class CheckpointError(UsageError):
    """A checkpoint is cut short, foreign, or does not fit the model, vocabulary or store."""


class StoreError(ButdError):
    """A region store cannot be used as it is."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no region store at the path."""

    exit_code = 2


class StoreMismatchError(StoreError, ValueError):
    """The store was made with another detector, selection or schema than what is asked of it."""

    exit_code = 2


class StoreLockedError(StoreError, RuntimeError):
    """Another live process is writing the store."""

    exit_code = 2


class StoreDamagedError(StoreError, OSError):
    """Bytes of the store are missing or changed; the message names block and array."""


class StoreUnreachableError(StoreError, RuntimeError):
    """The server of a remote store refuses, fails or does not answer; the message names address and cause."""


class MalformedRecordError(ButdError, ValueError):
    """A record of somebody else's file cannot be read; an import names and counts it, and goes on."""
