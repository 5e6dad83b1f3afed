"""A conversation at the terminal."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tailorbird.errors import TailorbirdError
from tailorbird.infer.chat import ChatModel, ask
from tailorbird.infer.config import Sampling
from tailorbird.progress import console

HELP = """Write to the model. /image FILE and /video FILE show it something with your next words; /new begins
again; /bye, or Ctrl-D, ends. Ctrl-C stops an answer."""


@dataclass
class Shown:
    """What goes with the next words."""

    images: list[Path] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)


def answer(model: ChatModel, messages: list[dict[str, Any]], sampling: Sampling) -> tuple[str, bool]:
    """Print an answer while it comes. Returns it, as far as it came, and whether Ctrl-C ended it."""
    stream, said, interrupted = model.stream(messages, sampling), "", False
    try:
        for piece in stream:
            said += piece
            console.file.write(piece)
            console.file.flush()
    except KeyboardInterrupt:
        stream.close()
        interrupted = True
    console.print(" ..." if interrupted else "")
    if stream.reason == "length":
        console.print(f"(cut: --max-tokens {sampling.max_tokens}, or the model's context, is used up)")
    return said, interrupted


def talk(model: ChatModel, sampling: Sampling, shown: Shown, read: Callable[[str], str] = input) -> None:
    """Read lines and answer them until the reader ends."""
    messages: list[dict[str, Any]] = []
    console.print(HELP)
    while True:
        try:
            line = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        command, _, rest = line.partition(" ")
        if not line:
            continue
        if command == "/bye":
            return
        if command == "/new":
            messages, shown = [], Shown()
        elif command in ("/image", "/video"):
            _show(Path(rest.strip()).expanduser(), shown.images if command == "/image" else shown.videos)
        elif command.startswith("/"):
            console.print(f"there is no {command}. {HELP}")
        else:
            turn = [*messages, *ask(line, images=shown.images, videos=shown.videos)]
            shown = Shown()
            try:
                said, _ = answer(model, turn, sampling)
            except TailorbirdError as error:
                console.print(f"error: {error}. Your last words are forgotten; /new begins again")
                continue
            if said:  # else nothing happened that the model could know of
                messages = [*turn, {"role": "assistant", "content": said}]


def _show(file: Path, where: list[Path]) -> None:
    if file.is_file():
        where.append(file)
    else:
        console.print(f"there is no file {file}: write /image or /video, a space, and its path")
