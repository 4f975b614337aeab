"""The exceptions a user can meet, one family and one voice.

Every message says which argument or file, what was needed, what came, and
(where there is something to do) what to do. Each class keeps its parts as
positional ``args``, so that an exception survives pickling between processes.
"""

from __future__ import annotations


class TinkeringError(Exception):
    """Any mistake this package reports on purpose; catch it to catch them all."""


class ArgumentError(TinkeringError, ValueError):
    """An argument that cannot be used.

    Args:
        argument: name of the argument, as the user wrote it.
        needed: what would have been accepted, with numbers.
        came: what was passed.
        advice: what to do, if that is not plain from the rest.

    Example:
        >>> raise ArgumentError("width", "an integer of at least 1", 0)
        Traceback (most recent call last):
        tinkering.errors.ArgumentError: width: needed an integer of at least 1, got 0.
    """

    def __init__(self, argument: str, needed: str, came: object, advice: str = "") -> None:
        super().__init__(argument, needed, came, advice)

    def __str__(self) -> str:
        argument, needed, came, advice = self.args
        return f"{argument}: needed {needed}, got {came}.{' ' + advice if advice else ''}"


class _FileError(TinkeringError):
    """A file or folder that cannot be used: where, what was expected, what was found."""

    def __init__(self, path: object, expected: str, found: str, advice: str = "") -> None:
        super().__init__(str(path), expected, found, advice)

    def __str__(self) -> str:
        path, expected, found, advice = self.args
        return f"{path}: expected {expected}, found {found}.{' ' + advice if advice else ''}"


class DataError(_FileError):
    """A data file that cannot be used. Nothing of the data set is handed out.

    Args:
        path: the file, or the archive and the member in it.
        expected: what a usable file would hold.
        found: what this one holds.
        advice: what to do about it.

    Example:
        >>> raise DataError("a.gz", "magic number 2051 (images)", "2049 (labels)")
        Traceback (most recent call last):
        tinkering.errors.DataError: a.gz: expected magic number 2051 (images), found 2049 (labels).
    """


class RunFolderError(_FileError):
    """A run folder that cannot be read or must not be written.

    Example:
        >>> raise RunFolderError("runs/a", "a new or empty folder", "4 entries", "Choose --out.")
        Traceback (most recent call last):
        tinkering.errors.RunFolderError: runs/a: expected a new or empty folder, found 4 entries.
        Choose --out.
    """


class CheckpointError(RunFolderError):
    """A checkpoint that is damaged or is none.

    Example:
        >>> raise CheckpointError("00000012.safetensors", "a whole checkpoint", "a part of one")
        Traceback (most recent call last):
        tinkering.errors.CheckpointError: 00000012.safetensors: expected a whole checkpoint, found a
        part of one.
    """


class RunBusyError(TinkeringError):
    """A run folder that another process works on.

    Example:
        >>> raise RunBusyError("runs/a")
        Traceback (most recent call last):
        tinkering.errors.RunBusyError: runs/a: another process works on this run. Wait for it, or
        end it.
    """

    def __init__(self, path: object) -> None:
        super().__init__(str(path))

    def __str__(self) -> str:
        return f"{self.args[0]}: another process works on this run. Wait for it, or end it."


class ClusterError(TinkeringError):
    """Workers that cannot be had: no cluster, no room in it, or all that start are lost.

    Args:
        needed: what was needed.
        came: what there is.
        advice: what to do about it.

    Example:
        >>> raise ClusterError("a cluster at 10.0.0.1:6379", "no answer")
        Traceback (most recent call last):
        tinkering.errors.ClusterError: Ray: needed a cluster at 10.0.0.1:6379, got no answer.
    """

    def __init__(self, needed: str, came: str, advice: str = "") -> None:
        super().__init__(needed, came, advice)

    def __str__(self) -> str:
        needed, came, advice = self.args
        return f"Ray: needed {needed}, got {came}.{' ' + advice if advice else ''}"


class UnsupportedLayerError(TinkeringError):
    """A module does something with its parameters that a population cannot follow.

    Args:
        parameters: names of the parameters concerned.
        operation: what is done with them.
        advice: what to do, if there is something.

    Example:
        >>> raise UnsupportedLayerError("embedding.weight", "torch.nn.functional.embedding")
        Traceback (most recent call last):
        tinkering.errors.UnsupportedLayerError: embedding.weight: no member-wise form of
        torch.nn.functional.embedding is known.
    """

    def __init__(self, parameters: str, operation: str, advice: str = "") -> None:
        super().__init__(parameters, operation, advice)

    def __str__(self) -> str:
        parameters, operation, advice = self.args
        said = f"{parameters}: no member-wise form of {operation} is known."
        return f"{said} {advice}" if advice else said
