"""Everything that Tailorbird raises on purpose.

    TailorbirdError
    |-- ConfigError        a setting that cannot work, or two that contradict each other
    |-- CheckpointError    a model file that is missing, damaged, or of another shape
    |-- DataError          a dataset, episode, frame or observation that cannot be used
    |   `-- MissingStats   normalisation was asked for a feature without statistics
    |-- SimulatorError     the simulator or its renderer cannot start
    |-- RobotError         a motor or camera of a robot does not answer, or is not calibrated
    |-- ConnectionLost     the policy server is away, or too late
    |-- StorageError       the disk is full, read-only, or refused to sync
    `-- Interrupted        a person stopped it; what was done is saved

Each message says what was asked, what is there, and what to do next.
"""


class TailorbirdError(Exception):
    """Root of the tree: catch this one to catch them all."""


class ConfigError(TailorbirdError, ValueError):
    pass


class CheckpointError(TailorbirdError):
    pass


class DataError(TailorbirdError, ValueError):
    pass


class MissingStats(DataError):  # noqa: N818 (reads as what happened)
    pass


class SimulatorError(TailorbirdError, RuntimeError):
    pass


class RobotError(TailorbirdError, RuntimeError):
    pass


class ConnectionLost(TailorbirdError, ConnectionError):  # noqa: N818 (reads as what happened)
    pass


class StorageError(TailorbirdError, OSError):
    pass


class Interrupted(TailorbirdError):  # noqa: N818 (reads as what happened)
    pass
