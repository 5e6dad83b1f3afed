"""vla-eval's own connection and runners, in an environment of their own.

python vlaeval_peer.py URL MODE STEPS SEEN.npz ANSWERS.npz; MODE is sync or live.
"""

import json
import logging
import sys

import anyio
import numpy as np
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.connection import Connection
from vla_eval.runners.live_runner import LiveEpisodeRunner
from vla_eval.runners.sync_runner import SyncEpisodeRunner

HZ = 50.0


class Recorded(StepBenchmark):
    """Shows what was recorded, picture after picture, and keeps what it is told to do."""

    def __init__(self, images: np.ndarray, states: np.ndarray) -> None:
        super().__init__()
        self._images, self._states = images, states
        self.actions: list[np.ndarray] = []

    def get_tasks(self) -> list[dict]:
        return [{"name": "reach"}]

    def reset(self, task: dict) -> int:
        return 0

    def step(self, action: dict) -> StepResult:
        self.actions.append(np.asarray(action["actions"]))
        return StepResult(obs=len(self.actions), reward=0.0, done=False, info={})

    def make_obs(self, raw_obs: int, task: dict) -> dict:
        at = raw_obs % len(self._images)
        return {
            "images": {"top": self._images[at]},
            "states": self._states[at],
            "task_description": "reach the cube",
        }

    def get_step_result(self, step_result: StepResult) -> dict:
        return {"success": True}

    def get_hold_action(self, last_action: dict | None) -> dict:
        return {"actions": np.full(2, np.nan, np.float32)}  # the test tells holding from acting by it


async def main() -> None:
    url, mode, steps, seen, answers = sys.argv[1:]
    found = np.load(seen)
    benchmark = Recorded(found["images"], found["states"])
    runner = LiveEpisodeRunner(hz=HZ) if mode == "live" else SyncEpisodeRunner()
    async with Connection(url, timeout=10) as connection:
        episodes = [
            await runner.run_episode(benchmark, {"name": "reach"}, connection, max_steps=int(steps))
            for _ in range(2)
        ]
        info = connection.server_info
    np.savez(answers, actions=np.stack(benchmark.actions))
    print(json.dumps({"episodes": episodes, "info": info}))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    anyio.run(main)
