"""Training runs on packed conversations, each by one process or by several.

`python ranks.py RUN JSON` is one process of a run, as torchrun starts it: JSON has settings of the training,
and those of `DEFAULTS` besides. `python ranks.py` makes the processes itself, of one run after the other, as
`Ranks` tells it: it has imported everything before, which takes most of the time of a short run.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from conversing import Talks
from tiny_vlm import CONFIG, SMALL, lesson_of, new_vlm

from released import make_processor
from tailorbird.data.config import RowsConfig, ShowConfig
from tailorbird.data.encode import Encoder
from tailorbird.data.mixture import Mixture, Part
from tailorbird.data.rows import RowLoader
from tailorbird.errors import TailorbirdError
from tailorbird.train.config import LearnConfig, LoraConfig, Pace
from tailorbird.train.loop import Trained, train
from tailorbird.train.parallel import join_team
from tailorbird.train.stages import choose

TOKENS, TILES = 256, 12
PATIENCE_S = 300  # of one run
DEFAULTS: dict[str, Any] = {
    "workers": 0,
    "lora": False,
    "lanes": 4,
    "start": 7,  # of the image tower
    "act": "",  # what happens: an error, a signal, or one "within a save"
    "at": 0,  # before this step; -1: at the very beginning
    "on": 0,  # in this process; None: in all
    "delay": 0.0,  # seconds after that
}


def loader(workers: int, lanes: int, rank: int, world: int) -> RowLoader:
    show = ShowConfig(long_side=(0.5, 0.5), system="Look.")
    encoder = Encoder(processor=make_processor(SMALL), cfg=show, tokens=TOKENS, tiles=TILES, seed=5)
    mixture = Mixture(
        [Part(source=Talks("a", 37, bad=(3, 8))), Part(source=Talks("b", 20, seen=False))], seed=2
    )
    cfg = RowsConfig(
        tokens=TOKENS,
        tiles=TILES,
        lanes=lanes,
        at_once=1,
        look_ahead=3,
        workers=workers,
        ahead=2,
        bad_share=0.5,
    )
    return RowLoader(mixture, encoder, cfg, rank=rank, world=world)


def learn(run: Path, **options: Any) -> Trained:
    asked = {**DEFAULTS, **options}
    own = {name: asked.pop(name) for name in DEFAULTS}
    deed = Deed(run=run, act=own["act"], delay=own["delay"])
    acts = own["on"] in (None, int(os.environ.get("RANK", "0"))) and own["act"]
    if acts and own["at"] < 0:
        deed.begin()
    team = join_team()
    cfg = replace(CONFIG, log=(), **asked)
    feed = loader(own["workers"], own["lanes"], team.rank, team.world)
    lesson = lesson_of(cfg, feed)
    if acts:
        lesson.steps = acting(lesson.steps, own["at"], deed)  # type: ignore[method-assign]
    targets = ("decoder.blocks.*.attn.query", "decoder.blocks.*.mlp.*")
    lora = LoraConfig(rank=3, dropout=0.2, targets=targets) if own["lora"] else LoraConfig()
    paces = {} if own["lora"] else {"vision": Pace(rate=0.5, start=own["start"])}
    model = new_vlm()
    with torch.no_grad():
        model.connector.proj.weight += team.rank  # what the first has counts
    return train(cfg, lesson, model, choose(model, LearnConfig(lora=lora, **paces), 0), run)


def acting(steps: Any, at: int, deed: "Deed") -> Any:
    """Does something to this process before a step."""

    def acted(start: int, stop: int) -> Any:
        for step, portions in enumerate(steps(start, stop), start):
            if step == at and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
                deed.begin()
            yield portions

    return acted


@dataclass(frozen=True, kw_only=True)
class Deed:
    """Something that happens to this process: an error, or a signal after a delay, wherever it is then."""

    run: Path
    act: str
    delay: float

    def begin(self) -> None:
        if self.act == "error":
            raise TailorbirdError("this process has had enough")
        if self.delay or self.act == "within a save":
            threading.Thread(target=self._later, daemon=True).start()
        else:
            os.kill(os.getpid(), signal.Signals[self.act])

    def _later(self) -> None:
        within = self.act == "within a save"
        while within and not list((self.run / "checkpoints").glob(".step-*.new/*")):
            time.sleep(1e-4)
        time.sleep(self.delay)
        os.kill(os.getpid(), signal.SIGKILL if within else signal.Signals[self.act])


def main(run: Path, options: dict[str, Any]) -> int | str:
    """What a process of a run does and says. Returns its exit status, or why it failed."""
    try:
        trained = learn(run, **options)
    except TailorbirdError as error:
        return f"error: {error}"
    print(f"step={trained.step} finished={trained.finished} stopped_by={trained.stopped_by}")
    return 0


@dataclass(frozen=True, kw_only=True)
class Done:
    """How the processes of a run ended, and what they said."""

    codes: list[int]
    said: list[str]


class Ranks:
    """Runs by processes that are forked off one which has imported everything."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()  # the end of what it is told is its end
        assert self._server.returncode == 0

    def __call__(self, run: Path, num: int, **options: Any) -> Done:
        assert self._server.stdin
        assert self._server.stdout
        run.mkdir(parents=True, exist_ok=True)
        print(json.dumps([str(run), num, options]), file=self._server.stdin, flush=True)
        codes = json.loads(self._server.stdout.readline())
        return Done(codes=codes, said=[(run / f"said-{rank}").read_text() for rank in range(num)])


def serve() -> None:
    torch.optim.AdamW(new_vlm().parameters())  # imports more than all the rest
    for line in sys.stdin:
        run, num, options = json.loads(line)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        team = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num)}
        team |= {"LOCAL_WORLD_SIZE": str(num)}
        begun = [_forked(Path(run), rank, team, options) for rank in range(num)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in begun]
        print(json.dumps(codes), flush=True)


def _forked(run: Path, rank: int, team: dict[str, str], options: dict[str, Any]) -> int:
    if pid := os.fork():
        return pid
    signal.alarm(PATIENCE_S)
    os.environ |= team | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    said = os.open(run / f"said-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    why: int | str = "an error"
    try:
        why = main(run, options)
        if dist.is_initialized():
            dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
    finally:
        if isinstance(why, str):
            print(why)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(why != 0))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        serve()
    else:
        sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
