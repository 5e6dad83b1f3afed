"""Teach a vision-language model: the parts, put together, and what will happen said before it does."""

import hashlib
import math
import shutil
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tailorbird.checkpoint.hub import find_model
from tailorbird.checkpoint.vlm import VLMFolder, read_vlm
from tailorbird.data.encode import Encoded, Encoder
from tailorbird.data.mixture import Mixture, Part
from tailorbird.data.rows import RowLoader
from tailorbird.data.split import Share
from tailorbird.data.stock import Draws
from tailorbird.errors import ConfigError
from tailorbird.infer.device import find_device
from tailorbird.model.vlm import VLM
from tailorbird.perf.roofline import peak_flops
from tailorbird.progress import console, track
from tailorbird.provenance import command, stamp
from tailorbird.recipes.vlm_answers import FILE, Watch, WatchedLesson, questions
from tailorbird.recipes.vlm_config import VLMRunConfig
from tailorbird.recipes.vlm_data import described, divided, open_parts, require_rows
from tailorbird.storage import claim, locked, new_folder, write_json
from tailorbird.train.lesson import Lesson
from tailorbird.train.log import count_unusable, read_metrics
from tailorbird.train.loop import Trained, train
from tailorbird.train.parallel import Team, join_team
from tailorbird.train.probe import seconds_of_pass
from tailorbird.train.stages import Group, choose, count
from tailorbird.train.state import newest_checkpoint
from tailorbird.train.vlm import Packed, portion_of
from tailorbird.types import Rows

PROBED = 48  # samples by which the length of all is reckoned
FULL = 0.93  # of a row is used, about, where there are samples enough to choose from
PROBE_S = 0.1  # seconds for each kernel whose speed is measured


@dataclass(frozen=True, kw_only=True)
class Found:
    """What there is to learn from. tokens: of a sample, about. rows: what one takes of a row's room."""

    mixture: Mixture
    encoder: Encoder
    apart: list[Share]
    held_out: list[Rows]
    tokens: float
    rows: float
    bad: float  # share of the samples that were looked at


def teach(
    cfg: VLMRunConfig, model: str | Path, data: Sequence[str], out: Path, media: Path | None = None
) -> Trained:
    """Train on sources, continuing what `out` already holds. The result is the folder `model` in it.

    model: folder in the hub's layout, or an id on the hub.
    data: as `open_parts` takes it. media: as `open_source` takes it.

    Raises:
        CheckpointError: there is no such model, or it is damaged.
        DataError: the data cannot be used.
        ConfigError: the settings do not fit each other, the model, or what `out` was begun with.
    """
    team = join_team()
    with team.first_alone():  # it fetches the model, and makes the indices of the data
        folder, parts = find_model(model), open_parts(data, media, cfg)
    if folder.resolve().is_relative_to((out / "model").resolve()):
        raise ConfigError(f"{out}/model would replace the model that is taught: choose another --out")
    with locked(out) if team.is_first else nullcontext():
        base = read_vlm(folder)
        base = replace(base, processor=replace(base.processor, fast=True, decoder=cfg.rows.decoder))
        cfg = fitting(cfg, base.model)
        found = look(cfg, parts, base)
        if cfg.epochs:
            cfg = cfg.lasting(num_steps(cfg, found))
        if team.is_first:
            claim(out / "data.json", {"model": _digest(folder), "learn": asdict(cfg.learn)})
            write_json(out / "run.json", {**stamp(command()), "model": str(model), "data": list(data)})
        trained = _learn(cfg, base, found, str(model), out, team)
        if trained.finished and team.is_first:
            _deliver(trained.best or trained.checkpoint, out / "model")
    return trained


def fitting(cfg: VLMRunConfig, model: VLM) -> VLMRunConfig:
    """Rows as long as the model's context at most."""
    context = model.cfg.decoder.max_positions
    if cfg.rows.tokens <= context:
        return cfg
    if cfg.rows.lengths:
        raise ConfigError(f"rows of {cfg.rows.tokens} tokens are longer than the model's context, {context}")
    console.print(f"rows have {context} tokens, the model's context, instead of {cfg.rows.tokens}")
    return replace(cfg, rows=replace(cfg.rows, tokens=context))


def look(cfg: VLMRunConfig, parts: Sequence[Part], base: VLMFolder) -> Found:
    """Divide the data, encode some of it, and pack what is only measured."""
    mixture, apart = divided(parts, cfg)
    encoder = Encoder(
        processor=base.processor,
        cfg=cfg.show,
        tokens=cfg.rows.tokens,
        tiles=cfg.rows.tiles,
        seed=cfg.train.seed,
    )
    num = min(PROBED, mixture.length or sum(part.num_rows for part in mixture.parts))
    draws, good = Draws(mixture, encoder), list[Encoded]()
    with track("samples looked at", num) as bar:
        for i in range(num):
            if isinstance(one := draws[i], Encoded):
                good.append(one)
            bar.advance()
    still = replace(encoder, cfg=replace(cfg.show, long_side=()))
    unseen = Mixture([Part(source=one) for one in apart], when_dry="drop", seed=cfg.train.seed)
    alone = replace(cfg.rows, lanes=1, workers=0)
    held_out = [rows for step in RowLoader(unseen, still, alone).steps(0, cfg.measured) for rows in step]
    require_rows(apart, len(held_out))
    parts_of_row = [max(len(one.ids) / cfg.rows.tokens, one.num_tiles / cfg.rows.tiles) for one in good]
    return Found(
        mixture=mixture,
        encoder=encoder,
        apart=apart,
        held_out=held_out,
        tokens=statistics.fmean(len(one.ids) for one in good) if good else 0.0,
        rows=statistics.fmean(parts_of_row) if good else 1.0,
        bad=1 - len(good) / num,
    )


def num_steps(cfg: VLMRunConfig, found: Found) -> int:
    """That go through the data as often as `cfg.epochs`, about, or until the data end."""
    num = found.mixture.length or cfg.epochs * sum(part.num_rows for part in found.mixture.parts)
    return max(1, math.ceil(num * (1 - found.bad) * found.rows / FULL / cfg.rows.lanes))


def _learn(cfg: VLMRunConfig, base: VLMFolder, found: Found, name: str, out: Path, team: Team) -> Trained:
    device = find_device(team.device(cfg.train.device))
    groups = choose(base.model, cfg.learn, cfg.train.seed)
    loader = RowLoader(found.mixture, found.encoder, cfg.rows, rank=team.rank, world=team.world)
    lesson = WatchedLesson(
        cfg.train, base.model.cfg, loader, base.processor, base.end_ids, found.held_out, base=name
    )
    room = base.model.cfg.decoder.max_positions - cfg.answer_tokens
    asked = questions(found.apart, cfg.answers, base.processor, cfg.show, room) if room > 0 else []
    model = base.model.to(device)
    _tell(cfg, found, model, groups, lesson, team)
    lesson.watch = Watch(
        run=out if team.is_first else None,
        questions=asked,
        answer_tokens=cfg.answer_tokens,
        peak=peak_flops(device, cfg.train.precision, seconds=PROBE_S),
        learned=frozenset(part for group in groups for part in group.parts),
        updates=bool(cfg.learn.lora.rank),
    )
    if not newest_checkpoint(out):
        if team.is_first:
            (out / FILE).unlink(missing_ok=True)
        lesson.answer(model.eval())
    trained = train(cfg.train, lesson, model, groups, out)
    for kind, source, reason, num in count_unusable(read_metrics(out)):
        console.print(f"{kind} {num} of {source}: {reason}")
    return trained


def _tell(
    cfg: VLMRunConfig,
    found: Found,
    model: VLM,
    groups: Sequence[Group],
    lesson: Lesson[VLM, Packed],
    team: Team,
) -> None:
    """Say what will happen."""
    steps, rows = cfg.train.steps, cfg.rows
    samples = steps * rows.lanes * FULL / found.rows
    whole = sum(part.num_rows for part in found.mixture.parts)
    numbers = count(model, groups)
    kind = "in low-rank updates" if cfg.learn.lora.rank else "of the weights themselves"
    step_s = _step_s(cfg, found, model, groups, lesson) / team.world
    for line in described(found.mixture):
        console.print(line)
    console.print(
        f"held out: {sum(map(len, found.apart))} rows, measured in {len(found.held_out)} packed ones"
    )
    if found.bad:
        console.print(f"{found.bad:.0%} of the samples looked at cannot be used: see `tailorbird data check`")
    console.print(
        f"{steps:,} steps of {rows.lanes} rows: about {samples:,.0f} samples, "
        f"{samples / whole / (1 - found.bad or 1):.1f} passes, {samples * found.tokens:,.0f} tokens"
    )
    console.print(
        f"{numbers['learned_parameters']:,} numbers learn, {kind}; about {_time(steps * step_s)} "
        f"({step_s:.2g} s a step, measured), evaluations aside"
    )


def _step_s(
    cfg: VLMRunConfig, found: Found, model: VLM, groups: Sequence[Group], lesson: Lesson[VLM, Packed]
) -> float:
    """Seconds of a step, by a pass over rows that are only measured."""
    portion = portion_of(found.held_out[0], model.cfg.image_token_id, 0)
    spent, num = seconds_of_pass(model, groups, cfg.train, lesson, portion), len(portion.rows.ids)
    full = max(portion.tokens / (num * cfg.rows.tokens), 0.01)
    return spent * cfg.rows.lanes / num * max(1.0, FULL / full)


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _digest(folder: Path) -> str:
    """Of the weights that training starts from."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        if not file.name.startswith("train."):
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]


def _deliver(checkpoint: Path, out: Path) -> None:
    """The model of a checkpoint without what only training needs: other programs read every tensor file."""
    with new_folder(out) as temporary:
        shutil.copytree(checkpoint, temporary, ignore=shutil.ignore_patterns("train.*"), dirs_exist_ok=True)
