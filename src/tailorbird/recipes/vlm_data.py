"""What a run learns from, in words: sources with weights, and the published mixes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tailorbird.data.mixture import VIDEO_STAGE, VISION_STAGE, Mixture, Part, by_kind
from tailorbird.data.sample import Source
from tailorbird.data.sources.readers import open_source
from tailorbird.data.sources.rows import RowSource
from tailorbird.data.split import Share, split
from tailorbird.errors import ConfigError, DataError
from tailorbird.progress import console
from tailorbird.recipes.vlm_config import VLMRunConfig

KINDS = {  # of the published mixes, by set
    "cauldron": "pictures",
    "docmatix": "documents",
    "finevision": "others",
    "onevision": "image",
    "mammoth-vl": "image",
    "m4-instruct": "multi-image",
    "llava-video": "video",
    "finevideo": "video",
    "video-star": "video",
    "vript": "video",
    "vista": "video",
    "moviechat": "video",
    "sharegpt4video": "video",
}
MOST_HELD_OUT = 100  # rows of a source


def open_parts(
    data: Sequence[str],
    media: Path | None,
    cfg: VLMRunConfig = VLMRunConfig(),  # noqa: B008 (frozen)
) -> list[Part]:
    """Sources as `open_source` takes them, each with =WEIGHT or all without.

    Without weights the shares are those of the published mix that the names belong to, if they all belong to
    one and not to the same kind; of other sources, they are as the numbers of rows that are gone through.

    Raises:
        ConfigError: some have weights and some have none, or a name occurs twice.
        DataError: there is no such source.
    """
    told = [_weighed(word) for word in data]
    if not told:
        raise ConfigError("there is nothing to learn from: name a file, a folder or NAME:FOLDER with --data")
    sources = _told_apart([open_source(what, media) for what, _ in told], [what for what, _ in told])
    weights = [weight for _, weight in told if weight is not None]
    if weights and len(weights) < len(told):
        raise ConfigError(
            f"{len(weights)} of {len(told)} sources have a weight: give all of them one, or none"
        )
    if weights:
        return [Part(source=one, weight=weight) for one, weight in zip(sources, weights, strict=True)]
    return _published(sources) or [Part(source=one, weight=_num_shown(one, cfg)) for one in sources]


def _num_shown(source: Source, cfg: VLMRunConfig) -> float:
    """Rows, each as often as they are gone through more than those of other sources are."""
    num = min(len(source), cfg.most.get(source.name, len(source)))
    return max(num, 1) * cfg.passes.get(source.name, cfg.epochs or 1.0) / (cfg.epochs or 1.0)


def _told_apart(sources: Sequence[RowSource], told: Sequence[str]) -> list[RowSource]:
    """Those of one name, as two files in two folders have, go by what was said of them."""
    names = [one.name for one in sources]
    return [
        one if names.count(one.name) == 1 else replace(one, name=Path(what).with_suffix("").as_posix())
        for one, what in zip(sources, told, strict=True)
    ]


def _weighed(word: str) -> tuple[str, float | None]:
    what, _, number = word.rpartition("=")
    try:
        return (word, None) if Path(word).exists() else (what, float(number)) if what else (word, None)
    except ValueError:
        return word, None


def _published(sources: Sequence[Source]) -> list[Part]:
    """Parts of a published mix; none if the sources are of none."""
    kinds = [KINDS.get(one.name.partition("/")[0], "") for one in sources]
    for name, mix in (("vision", VISION_STAGE), ("video", VIDEO_STAGE)):
        there = {kind: [one for one, its in zip(sources, kinds, strict=True) if its == kind] for kind in mix}
        there = {kind: some for kind, some in there.items() if some}
        if set(kinds) <= mix.keys() and len(there) > 1:
            if missing := mix.keys() - there.keys():
                console.print(f"the mix of the {name} stage goes without {', '.join(sorted(missing))}")
            return by_kind({kind: mix[kind] for kind in there}, there)
    return []


def divided(parts: Sequence[Part], cfg: VLMRunConfig) -> tuple[Mixture, list[Share]]:
    """What is learned from, and of each source what is only measured.

    Raises:
        ConfigError: the settings are of a source that is not there, or do not suit `Mixture`.
    """
    names = [part.source.name for part in parts]
    if strange := sorted({*cfg.passes, *cfg.most} - set(names)):
        raise ConfigError(
            f"--passes or --most speaks of {', '.join(strange)}: the sources are {', '.join(names)}"
        )
    usual = None if cfg.when_dry == "repeat" else cfg.epochs or None
    cuts = [split(part.source, cfg.held_out, MOST_HELD_OUT, cfg.train.seed) for part in parts]
    learned = [
        replace(part, source=mine, passes=cfg.passes.get(name, usual), most=cfg.most.get(name))
        for part, name, (mine, _) in zip(parts, names, cuts, strict=True)
    ]
    mixture = Mixture(learned, when_dry=cfg.when_dry, seed=cfg.train.seed)
    return mixture, [apart for _, apart in cuts]


def described(mixture: Mixture) -> list[str]:
    """A line for each source: its rows, its share of the samples, and when it will have been gone through."""
    total, dry = sum(part.weight for part in mixture.parts), mixture.dry_after()
    lines = []
    for part in mixture.parts:
        name = part.source.name
        ends = f", none after sample {dry[name]:,}" if name in dry else ""
        lines.append(f"{name}: {part.num_rows:,} rows, {part.weight / total:.1%} of the samples{ends}")
    return lines


def require_rows(apart: Sequence[Share], num_measured: int) -> None:
    """Raises DataError if nothing can be measured."""
    if not num_measured:
        names = ", ".join(one.name for one in apart)
        raise DataError(f"not one of the held-out rows of {names} can be used: see `tailorbird data check`")
