"""Why a run ended without doing its work, each with the exit code the command line returns."""

from __future__ import annotations


class RunError(Exception):
    """A run cannot go on; the message is one line that names the thing and what to do."""

    exit_code = 3


class JobError(RunError):
    """The job asks for what its model or its cluster cannot give."""

    exit_code = 2


class SourceError(RunError):
    """The source cannot be read as the job file describes it."""


class TableError(RunError):
    """The output table cannot be used: another schema, another job's carried columns, not writable."""


class TableHeldError(RunError):
    """Another run holds the table's lease."""

    exit_code = 5


class FailureRateError(RunError):
    """More pairs failed than `limits.max_failure_rate` allows; what is done is kept."""

    exit_code = 4


class SkipRateError(RunError):
    """More training rows cannot be used than `limits.max_skip_rate` allows."""

    exit_code = 4
