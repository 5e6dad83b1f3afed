"""What of a source can be used: every row read, and its pictures and videos opened if asked."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tailorbird.data.sample import BadSample, Source
from tailorbird.errors import DataError
from tailorbird.processing.chat import ImageItem, Item, TextItem, VideoItem
from tailorbird.progress import console, track

NAMED = 3  # offenders for each reason


@dataclass(kw_only=True)
class Checked:
    """Counts. dropped: rows by reason. offenders: what was wrong with the first ones of each reason."""

    looked: int = 0
    pictures: int = 0
    videos: int = 0
    turns: int = 0
    letters: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    offenders: dict[str, list[str]] = field(default_factory=dict)

    @property
    def num_dropped(self) -> int:
        return self.dropped.total()

    def drop(self, reason: str, message: str) -> None:
        self.dropped[reason] += 1
        named = self.offenders.setdefault(reason, [])
        if len(named) < NAMED:
            named.append("".join(letter if letter.isprintable() else " " for letter in message))

    def add(self, items: Sequence[Item]) -> None:
        self.turns += 1
        self.pictures += sum(isinstance(item, ImageItem) for item in items)
        self.videos += sum(isinstance(item, VideoItem) for item in items)
        self.letters += sum(len(item.text) for item in items if isinstance(item, TextItem))


def spread(length: int, rows: int | None) -> Sequence[int]:
    """So many of the rows, evenly spread over all."""
    if rows is None or rows >= length:
        return range(length)
    return [i * length // rows for i in range(rows)]


def check(source: Source, rows: int | None = None, *, opened: bool = False) -> Checked:
    """Read all rows, or so many, spread over all.

    opened: pictures are decoded, and the packets of videos read.
    """
    checked = Checked()
    chosen = spread(len(source), rows)
    with track(f"rows of {source.name}", total=len(chosen)) as bar:
        for row in chosen:
            checked.looked += 1
            try:
                sample = source[row]
                for message in sample.messages:
                    for item in message.items if opened else ():
                        _open(item, sample.name)
            except BadSample as error:
                checked.drop(error.reason, str(error))
            else:
                for message in sample.messages:
                    checked.add(message.items)
            bar.advance(note=f"{checked.num_dropped} dropped")
    return checked


def _open(item: Item, name: str) -> None:
    from tailorbird.processing.picture import BadPicture, open_picture
    from tailorbird.processing.video_file import VideoFile

    try:
        if isinstance(item, ImageItem):
            open_picture(item.source)
        elif isinstance(item, VideoItem):
            VideoFile(item.source)
    except BadPicture as error:
        raise BadSample(error.reason, f"{name}: {error}") from None
    except DataError as error:
        raise BadSample("damaged video", f"{name}: {error}") from None


def show(checked: Checked) -> None:
    """Print the counts, and the first offenders."""
    good = checked.looked - checked.num_dropped
    console.print(
        f"{good} of {checked.looked} rows can be used: {checked.turns} turns, {checked.pictures} pictures, "
        f"{checked.videos} videos, {checked.letters} letters"
    )
    for reason, count in checked.dropped.most_common():
        console.print(f"dropped {count} ({count / checked.looked:.1%}): {reason}")
        for message in checked.offenders[reason]:
            console.print(f"  {message}")
