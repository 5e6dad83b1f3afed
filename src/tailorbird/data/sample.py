"""What a VLM learns from: conversations, and where they come from."""

from dataclasses import dataclass
from typing import Protocol

from tailorbird.errors import DataError
from tailorbird.processing.chat import Message


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One conversation. Its pictures and videos are not opened yet.

    name: where it is from, for people: the file or set, and the row in it.
    source: the name of the `Source`.
    """

    name: str
    source: str
    messages: tuple[Message, ...]


class BadSample(DataError):  # noqa: N818 (reads as what happened)
    """A row that nothing can be learned from.

    reason: a few words of which there are few, for counting: "no picture", "empty conversation", ...
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Source(Protocol):
    """Conversations by number. Reading one costs the same wherever it stands.

    fingerprint: of what is read, so that a run is only continued on the same.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Sample:
        """Raises BadSample for a row that cannot be used."""
