"""Tokens to text while they come."""

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"  # what decoders write for bytes that are no character, or not yet


class Words:
    """Turns the tokens of one answer into pieces of text that can be shown at once.

    A character whose bytes have not all come is held back, and so is what may be the beginning of a stop
    string. The pieces joined are the decoded answer, up to where the first stop string that became complete
    begins.

    decode: ids to text; more ids may only add text, but for a broken character at the end.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._shown: list[int] = []  # the last tokens that gave text: some decoders join words by them
        self._shown_text = ""
        self._new: list[int] = []
        self._held = ""
        self.stopped = False  # a stop string is complete; nothing comes after it

    def feed(self, ids: Sequence[int]) -> str:
        """Take tokens, return the text that has become certain."""
        if self.stopped:
            return ""
        self._new += ids
        whole = self._decode(self._shown + self._new)
        if whole.endswith(BROKEN):
            return ""
        return self._take(whole)

    def flush(self) -> str:
        """Return what was held back: no token will come."""
        if self.stopped:
            return ""
        piece = self._take(self._decode(self._shown + self._new))
        held, self._held = self._held, ""
        return piece + held

    def _take(self, whole: str) -> str:
        new = whole[len(self._shown_text) :]
        if new:
            self._shown, self._new = self._new, []
            self._shown_text = self._decode(self._shown)
        self._held += new
        cut = self._cut()
        if cut is not None:
            self.stopped = True
        elif self._stop:
            cut = len(self._held) - self._undecided()
        piece = self._held[:cut]
        self._held = "" if cut is None or self.stopped else self._held[cut:]
        return piece

    def _cut(self) -> int | None:
        """Where the stop string begins that was complete first, the longer one of two."""
        found = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _undecided(self) -> int:
        """Length of the longest end of the held text that a stop string may begin with."""
        longest = min(len(self._held), max(map(len, self._stop)) - 1)
        ends = (num for num in range(longest, 0, -1) if self._begins_stop(self._held[-num:]))
        return next(ends, 0)

    def _begins_stop(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stop)
