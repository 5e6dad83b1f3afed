"""Whether a policy that failed may be asked again."""


class Breaker:
    """Closed until `failures` happened in a row, then open.

    After `cool_down_s` it lets one trial through. If that fails, or never ends, it waits as long again; if it
    succeeds, all is forgotten.
    """

    def __init__(self, failures: int, cool_down_s: float) -> None:
        self._failures, self._cool_down_s = failures, cool_down_s
        self.in_row = 0
        self._again_s = 0.0

    @property
    def is_open(self) -> bool:
        return self.in_row >= self._failures

    def failed(self, now_s: float) -> None:
        self.in_row += 1
        self._again_s = now_s + self._cool_down_s

    def succeeded(self) -> None:
        self.in_row = 0

    def may_ask(self, now_s: float) -> bool:
        """While open, True is a trial and the next one is later: ask only if you then do."""
        if not self.is_open:
            return True
        if now_s < self._again_s:
            return False
        self._again_s = now_s + self._cool_down_s
        return True
