"""The errors a user can meet, each with the exit code that the command line gives it."""


class ConvsparkError(Exception):
    """Base of all errors raised on purpose; the message alone must tell a user what to do."""

    exit_code = 1


class UsageError(ConvsparkError, ValueError):
    """An argument or a configuration value that cannot be used."""

    exit_code = 2


class DataError(ConvsparkError):
    """Images (or files meant to be images) that cannot be used."""

    exit_code = 3


class DivergedError(ConvsparkError):
    """The loss is no longer a finite number."""

    exit_code = 4


class NotExactError(ConvsparkError):
    """A network whose visible-patches output would differ from the truth."""

    exit_code = 1
