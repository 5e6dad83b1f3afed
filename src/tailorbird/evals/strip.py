"""A picture of a run: a row of film frames for each task."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tailorbird.sim.tasks import INSTRUCTIONS
from tailorbird.storage import new_file

FRAMES, SIDE, GAP, LABEL = 6, 160, 4, 22  # frames in a row, px of a frame, between frames, of a caption


def draw_strip(run: Path, tasks: Sequence[str], out: Path) -> None:
    """Write a JPEG from videos/<task>.mp4 of a run, the instruction above each row."""
    width = FRAMES * (SIDE + GAP) - GAP
    height = len(tasks) * (LABEL + SIDE + GAP) - GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for row, task in enumerate(tasks):
        top = row * (LABEL + SIDE + GAP)
        draw.text((2, top + 1), f'"{INSTRUCTIONS[task]}"', fill="#222222", font=font)
        with av.open(str(run / f"videos/{task}.mp4")) as film:
            frames = [frame.to_image() for frame in film.decode(video=0)]
        for column, i in enumerate(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)):
            picture = frames[i].resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(picture, (column * (SIDE + GAP), top + LABEL))
    with new_file(out) as temporary:
        sheet.save(temporary, quality=88, optimize=True)
