"""tailorbird run"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tailorbird.recipes.run_config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Run:
    """Let a policy drive one robot by the wall clock, and see how.

    Examples: tailorbird run push-v3 --policy runs/demo/policy --sim.size 192 --trace runs/trace.json

    tailorbird run push-v3 --policy ws://127.0.0.1:8000 --mode rtc --rerun runs/push.rrd

    tailorbird run lerobot:arm.json --policy me/smolvla-pick --hz 30 --seconds 60 --task "pick up the cube"

    Ctrl-C stops the robot, which then holds; a second one leaves. Ends with 0 after the last episode, with
    130 when it was stopped.
    """

    env: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ENV")]
    """A Meta-World task, simulated in real time, or lerobot:FILE, a robot as lerobot describes
    it: {"type": "so101_follower", "port": "/dev/ttyACM0", "id": "left", "cameras": {..}}."""
    policy: str
    """Folder or hub id of a policy, or ws://HOST:PORT of a server, whose key is in TAILORBIRD_API_KEY."""
    limits: Path | None = None
    """What the robot may do, as a .json or .toml file; by default what its adapter says: of an arm, each
    joint's calibrated range, in 2 s from end to end."""
    rerun: str | None = None
    """Record for Rerun into this .rrd file; or "viewer", which shows it while it runs."""
    trace: Path | None = None
    """Write every tick and every chunk to this .json file, to be opened at ui.perfetto.dev."""
    settings: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)

    def __call__(self) -> None:
        from tailorbird.recipes.run import Watching, run

        run(self.env, self.policy, self.settings, self.limits, Watching(rerun=self.rerun, trace=self.trace))
