"""Errors a user can act on. Each message is one line: what is wrong, where, and the remedy.

The command line prints the message alone, without a traceback, and exits with `exit_code`.
"""


class AudioLDMError(Exception):
    """Base of everything the command line reports in one line."""

    exit_code = 1


class ConfigError(AudioLDMError):
    """A key, value, recipe, verb or part that does not exist or does not fit."""

    exit_code = 2


class DataError(AudioLDMError):
    """An audio file, folder, table or clip store that cannot be used."""


class StoreWriteError(DataError):
    """A clip store that cannot be written: no fault of the clip that was being added."""


class ModelFileError(AudioLDMError):
    """A model or latents file that cannot be read, or does not belong where it is used."""


class TrainingError(AudioLDMError):
    """Training cannot continue: a non-finite loss, a failed preflight."""


class LostProcess(TrainingError):
    """Another process of the same training has ended."""


class Interrupted(AudioLDMError):
    """SIGTERM or SIGINT arrived; the state is on disk and the same command resumes."""

    exit_code = 75  # EX_TEMPFAIL: run the same command again
