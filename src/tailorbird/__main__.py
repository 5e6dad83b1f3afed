"""The command line: `tailorbird COMMAND --help` teaches each command."""

import sys
from typing import Annotated

import tyro

from tailorbird.cli.bench import Bench
from tailorbird.cli.chat import Chat
from tailorbird.cli.data import Data
from tailorbird.cli.demo import Demo
from tailorbird.cli.describe import Describe
from tailorbird.cli.doctor import Doctor
from tailorbird.cli.export import Export
from tailorbird.cli.finetune import Finetune
from tailorbird.cli.info import Info
from tailorbird.cli.init import Init
from tailorbird.cli.inspect import Inspect
from tailorbird.cli.launch import Launch
from tailorbird.cli.merge import Merge
from tailorbird.cli.profile import Profile
from tailorbird.cli.quantise import Quantise
from tailorbird.cli.record import Record
from tailorbird.cli.report import Report
from tailorbird.cli.rollout import Rollout
from tailorbird.cli.run import Run
from tailorbird.cli.serve import Serve
from tailorbird.cli.train import Train, with_recipe
from tailorbird.cli.verify import Verify
from tailorbird.errors import Interrupted, TailorbirdError
from tailorbird.progress import console

Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Record, tyro.conf.subcommand("record")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Finetune, tyro.conf.subcommand("finetune")]
    | Annotated[Launch, tyro.conf.subcommand("launch")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Rollout, tyro.conf.subcommand("rollout")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[Quantise, tyro.conf.subcommand("quantise")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Chat, tyro.conf.subcommand("chat")]
    | Annotated[Describe, tyro.conf.subcommand("describe")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Profile, tyro.conf.subcommand("profile")]
    | Annotated[Init, tyro.conf.subcommand("init")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def main() -> None:
    """Run one command. Exits with 1 when refused, 2 when misspelt, 130 when interrupted and saved."""
    try:
        words = with_recipe(sys.argv[1:])
        command: Command = tyro.cli(Command, prog="tailorbird", description=DESCRIPTION, args=words)
        command()
    except Interrupted as error:
        console.print(str(error))
        sys.exit(130)
    except TailorbirdError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        console.print("interrupted: what was finished is kept")
        sys.exit(130)


DESCRIPTION = """Small vision-language(-action) models, from data to robot.

`demo` goes the whole way at once; `record`, `train`, `rollout` and `report` are its steps.
`data` finds, fetches, shows and checks what a vision-language model learns from; `finetune` teaches it,
and `merge` puts what was learned into the weights.

`run` drives a robot; `serve` answers robots elsewhere.

`chat` and `describe` answer about pictures and videos; `inspect` and `profile` show how; `init` makes a new
model from parts. `info`, `doctor` and `bench` say what is there. Each command has its own --help."""


if __name__ == "__main__":
    main()
