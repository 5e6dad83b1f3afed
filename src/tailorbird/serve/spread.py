"""Several copies of a policy behind one server: each robot stays with one of them."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from tailorbird.serve.batcher import Batcher, Job, Refusal, Robot


class Spread:
    """Stands where a `Batcher` stands, and hands each robot's observations to one of several.

    A new robot goes where the fewest are; `move` takes those of a copy that was lost to the others, for good.
    """

    def __init__(self, batchers: Sequence[Batcher]) -> None:
        self._batchers, self._down = batchers, set[int]()
        self._home: WeakKeyDictionary[Robot, int] = WeakKeyDictionary()

    def submit(self, job: Job) -> None:
        self._batchers[self._home_of(job.robot)].submit(job)

    def forget(self, robot: Robot, why: Refusal) -> None:
        self._batchers[self._home_of(robot)].forget(robot, why)

    async def drain(self, grace_s: float) -> bool:
        return all(await asyncio.gather(*(one.drain(grace_s) for one in self._batchers)))

    async def run(self) -> None:
        await asyncio.gather(*(one.run() for one in self._batchers))

    def set_up(self, number: int, is_up: bool) -> None:
        """A copy was lost, or is back. What waits for a lost one goes where its robot goes."""
        if is_up:
            self._down.discard(number)
            return
        self._down.add(number)
        for robot in [one for one, home in self._home.items() if home == number]:
            del self._home[robot]
        for job in self._batchers[number].give_up():
            self.submit(job)

    def _home_of(self, robot: Robot) -> int:
        if (home := self._home.get(robot)) is None:
            count = Counter(self._home.values())
            up = [number for number in range(len(self._batchers)) if number not in self._down]
            home = min(up or range(len(self._batchers)), key=lambda number: count[number])
            self._home[robot] = home
        return home
