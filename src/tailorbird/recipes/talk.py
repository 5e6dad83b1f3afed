"""A conversation at the terminal."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tailorbird.errors import TailorbirdError
from tailorbird.infer.chat import ChatModel
from tailorbird.infer.config import Sampling
from tailorbird.progress import console
from tailorbird.recipes.captions import look_at

HELP = """Write to the model. /image FILE and /video FILE show it something with your next words; /new begins
again; /bye, or Ctrl-D, ends. Ctrl-C stops an answer."""


def answer(model: ChatModel, messages: list[dict[str, Any]], sampling: Sampling) -> str:
    """Print an answer while it comes, and return it. Ctrl-C keeps what was said until then."""
    said = ""
    try:
        for piece in model.stream(messages, sampling):
            shown = piece.lstrip() if not said else piece
            said += shown
            console.file.write(shown)
            console.file.flush()
    except KeyboardInterrupt:
        said += " ..."
    console.print()
    return said


def talk(
    model: ChatModel, sampling: Sampling, media: Sequence[Path], read: Callable[[str], str] = input
) -> None:
    """Read lines and answer them until the reader ends. `media` are shown with the first words."""
    messages: list[dict[str, Any]] = []
    shown = list(media)
    console.print(HELP)
    while True:
        try:
            line = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        command, _, rest = line.partition(" ")
        match command:
            case "":
                continue
            case "/bye":
                return
            case "/new":
                messages, shown = [], []
            case "/image" | "/video" if Path(rest).is_file():
                shown.append(Path(rest))
            case _ if command.startswith("/"):
                console.print(f"nothing is done for {line!r}: {HELP}" if not rest else f"no file {rest}")
            case _:
                turn = [*messages, *look_at(shown, line)]
                try:
                    said = answer(model, turn, sampling)
                except TailorbirdError as error:
                    console.print(f"error: {error}")
                    continue
                messages, shown = [*turn, {"role": "assistant", "content": said}], []
