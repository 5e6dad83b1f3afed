"""The published sets: what they are, and where. How a folder of one is read: `readers`."""

import glob
from dataclasses import dataclass
from typing import Literal

from tailorbird.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Known:
    """A published set.

    gb, rows: as its card or the hub's page says; None where neither does. The hub is asked for the true size
    before anything is fetched. files: patterns of what is fetched. part: pattern of one configuration, with a
    hole for its name; None for a set without configurations.
    """

    name: str
    hub: str
    stage: Literal["vision", "video"]
    about: str
    licence: str
    gated: bool = False
    gb: float | None = None
    rows: int | None = None
    files: tuple[str, ...] = ("*",)
    part: str | None = None

    def patterns(self, configs: tuple[str, ...]) -> list[str]:
        """Of the files of some configurations; () for all.

        Raises:
            DataError: the set has none.
        """
        if not configs:
            return list(self.files)
        if self.part is None:
            raise DataError(f"{self.name} has no configurations: leave out {', '.join(configs)}")
        return [self.part.format(glob.escape(config)) for config in configs]


KNOWN = (
    Known(
        name="cauldron",
        hub="HuggingFaceM4/the_cauldron",
        stage="vision",
        about="50 sets of questions about pictures, documents, charts and tables",
        licence="each part its own; the prompts CC-BY-4.0",
        gb=169,
        rows=1_880_992,
        part="{}/*",
    ),
    Known(
        name="docmatix",
        hub="HuggingFaceM4/Docmatix",
        stage="vision",
        about="9.5 M questions about the pages of 1.3 M documents",
        licence="MIT",
        gb=553,
        rows=1_273_215,
        files=("data/*",),
        part="{}/*",
    ),
    Known(
        name="finevision",
        hub="HuggingFaceM4/FineVision",
        stage="vision",
        about="185 sets of questions about pictures",
        licence="each part its own",
        gb=5000,
        rows=24_200_000,
        part="{}/*",
    ),
    Known(
        name="onevision",
        hub="lmms-lab/LLaVA-OneVision-Data",
        stage="video",
        about="pictures and texts of LLaVA-OneVision's single-image stage",
        licence="Apache-2.0",
        rows=3_900_000,
        part="{}/*",
    ),
    Known(
        name="mammoth-vl",
        hub="MAmmoTH-VL/MAmmoTH-VL-Instruct-12M",
        stage="video",
        about="questions with worked answers about pictures and videos",
        licence="Apache-2.0",
        rows=12_000_000,
    ),
    Known(
        name="m4-instruct",
        hub="lmms-lab/M4-Instruct-Data",
        stage="video",
        about="questions about several pictures, frames or views",
        licence="CC-BY-4.0",
    ),
    Known(
        name="llava-video",
        hub="lmms-lab/LLaVA-Video-178K",
        stage="video",
        about="captions and questions about 178 k videos of up to 3 minutes",
        licence="see its card",
        rows=1_335_500,
        part="{}/*",
    ),
    Known(
        name="finevideo",
        hub="HuggingFaceFV/finevideo",
        stage="video",
        about="43 751 videos of YouTube with descriptions and questions",
        licence="CC-BY, each video its own",
        gated=True,
        gb=600,
        rows=43_751,
    ),
    Known(
        name="video-star",
        hub="orrzohar/Video-STaR",
        stage="video",
        about="questions about Kinetics-700, STAR and FineDiving, whose videos are to be had elsewhere",
        licence="Apache-2.0",
        gb=0.62,
        rows=1_190_000,
        part="ft_json/{}*",
    ),
    Known(
        name="vript",
        hub="Mutonix/Vript",
        stage="video",
        about="400 k clips with captions like a script",
        licence="for research only",
        gb=1510,
        rows=409_000,
        files=("vript_captions/*.jsonl", "vript_*_clips/*"),
    ),
    Known(
        name="vista",
        hub="TIGER-Lab/VISTA-400K",
        stage="video",
        about="questions about videos that were put together in time and space",
        licence="MIT",
        rows=400_000,
        part="{}*",
    ),
    Known(
        name="moviechat",
        hub="Enxin/MovieChat-1K_train",
        stage="video",
        about="clips of films with captions and questions",
        licence="see its card",
    ),
    Known(
        name="sharegpt4video",
        hub="ShareGPT4Video/ShareGPT4Video",
        stage="video",
        about="40 k videos with long captions",
        licence="CC-BY-NC-4.0",
        rows=40_000,
    ),
)


def find_known(name: str) -> Known:
    """Raises DataError, listing all, if there is none of this name."""
    found = next((known for known in KNOWN if known.name == name), None)
    if found is None:
        raise DataError(f"{name} is no known set: there are {', '.join(known.name for known in KNOWN)}")
    return found
