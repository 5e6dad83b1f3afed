"""Settings of runs that teach a vision-language model. Importable without torch."""

from dataclasses import dataclass, field, replace

from tailorbird.data.config import VIDEO_SHOW, VISION_SHOW, RowsConfig, ShowConfig, WhenDry
from tailorbird.errors import ConfigError
from tailorbird.train.config import (
    VLM_TARGETS,
    LearnConfig,
    LoraConfig,
    Pace,
    VLMTrainConfig,
    require_shardable,
)


@dataclass(frozen=True, kw_only=True)
class VLMRunConfig:
    """What is learned, at which pace, from how much.

    Attributes:
        epochs: passes over the data, by which the steps are reckoned; warm-up, evaluations and checkpoints
            keep their shares of --train.steps. 0: --train.steps it is.
        when_dry: what happens when a source has been gone through: repeat it, drop it, or stop.
        passes: of sources by name; a source that is dropped has been gone through after so many, 0.5 is half
            of it. Of the others --epochs holds.
        most: of sources by name, at most so many of their rows, chosen by the seed.
        held_out: share of each source that is never learned from, only measured.
        measured: at most so many packed rows of it.
        answers: so many questions of it are answered before the first step and at each evaluation.
        answer_tokens: at most so many in each answer.
    """

    epochs: float = 0.0
    when_dry: WhenDry = "repeat"
    passes: dict[str, float] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    held_out: float = 0.02
    measured: int = 16
    answers: int = 4
    answer_tokens: int = 48
    learn: LearnConfig = field(default_factory=LearnConfig)
    rows: RowsConfig = field(default_factory=RowsConfig)
    show: ShowConfig = field(default_factory=ShowConfig)
    train: VLMTrainConfig = field(default_factory=VLMTrainConfig)

    def __post_init__(self) -> None:
        if self.epochs < 0 or min(self.answers, self.answer_tokens - 1) < 0 or self.measured < 1:
            raise ConfigError(
                f"epochs and answers cannot be negative, measured and answer_tokens are at least 1: {self}"
            )
        if not 0 < self.held_out < 1:
            raise ConfigError(f"{self.held_out=} is a share between 0 and 1")
        require_shardable(self.train, updates=bool(self.learn.lora.rank), is_policy=False)

    def lasting(self, steps: int) -> "VLMRunConfig":
        """The same for another number of steps: all that is counted in steps keeps its share of them."""
        train, times = self.train, steps / self.train.steps
        scaled = {
            name: max(1, round(times * getattr(train, name)))
            for name in ("eval_every", "save_every", "log_every")
        }
        scaled["log_every"] = min(scaled["log_every"], train.log_every)
        return replace(self, train=replace(train, steps=steps, warmup=round(times * train.warmup), **scaled))


def vision_dora() -> VLMRunConfig:
    """First of SmolVLM's two vision stages: DoRA beside whole connector and norms, on pictures.

    Rank 64, alpha 16, dropout 0.1, rate 1e-4, weight decay 0.1, rows of 7000 tokens, and 2 to 5 tiles on the
    long side. The published rate falls on a line; here it is a cosine. How many steps there were is not
    published: these are 4000.

    Attributes:
        Expect: unknown; no run of this size was made with this code. The published step has 1024 samples.
    """
    lora = LoraConfig(
        rank=64,
        alpha=16.0,
        dropout=0.1,
        dora=True,
        targets=(*VLM_TARGETS, "vision.blocks.*.attn.*", "vision.blocks.*.up", "vision.blocks.*.down"),
        whole=("connector.proj", "vision.patches", "vision.positions", "*norm*"),
    )
    train = replace(_big(), steps=4000, warmup=2000, weight_decay=0.1)
    rows = RowsConfig(tokens=7000, tiles=104, lanes=160, workers=8)
    return VLMRunConfig(learn=LearnConfig(lora=lora), rows=rows, show=VISION_SHOW, train=train)


def vision() -> VLMRunConfig:
    """Second of SmolVLM's two vision stages: everything learns from pictures, with noise on the words.

    NEFTune 5, rate 1e-4, weight decay 0.1, rows of 7000 tokens, at most 6000 steps, and 2 to 5 tiles on the
    long side. The published rate falls on a line; here it is a cosine.

    Attributes:
        Expect: unknown; no run of this size was made with this code. The published step has 2048 samples;
            SmolVLM-256M came to 52.6 on OCRBench and 55.6 on ChartQA after both stages and the video one.
    """
    train = replace(_big(), steps=6000, warmup=180, weight_decay=0.1, neftune=5.0)
    rows = RowsConfig(tokens=7000, tiles=104, lanes=320, workers=8)
    return VLMRunConfig(rows=rows, show=VISION_SHOW, train=train)


def video() -> VLMRunConfig:
    """SmolVLM2's video stage: everything learns, each part at its rate, from videos, pictures and texts.

    Image tower 5e-6, connector 1e-4, language model 2e-5, cosine, warm-up 3 %, no weight decay, one epoch,
    rows of 8192 tokens, at most 64 frames. The published run had 3.03 million samples, 512 in a step.

    Attributes:
        Expect: unknown; no run of this size was made with this code. The published run had 64 GPUs, and came
            to 33.7 on Video-MME for the 256M and 42.2 for the 500M.
    """
    train = replace(_big(), steps=5918, warmup=178, weight_decay=0.0)
    rows = RowsConfig(tokens=8192, tiles=120, lanes=256, workers=8)
    slow = Pace(rate=0.2)
    learn = LearnConfig(vision=Pace(rate=0.05), connector=Pace(), text=slow, embeddings=slow)
    return VLMRunConfig(
        epochs=1.0, when_dry="drop", learn=learn, rows=rows, show=VIDEO_SHOW, train=train, held_out=0.001
    )


def tune() -> VLMRunConfig:
    """A model that can talk already learns from your own rows: low-rank updates of its language model.

    Three passes, rank 16, rate 2e-4, a tenth of the rows held out (100 at most). The weights with the lowest
    held-out loss are kept.

    Attributes:
        Expect: what the run prints before its first step; it measures how long one takes here.
    """
    train = VLMTrainConfig(
        steps=1000,
        lr=2e-4,
        final_lr=0.1,
        warmup=30,
        betas=(0.9, 0.999),
        weight_decay=0.0,
        ema=0.0,
        device="auto",
        log_every=5,
        eval_every=200,
        save_every=200,
        best="held_out_loss",
    )
    lora = LoraConfig(rank=16, alpha=32.0, dropout=0.05, targets=VLM_TARGETS)
    rows = RowsConfig(lanes=4)
    return VLMRunConfig(epochs=3.0, held_out=0.1, learn=LearnConfig(lora=lora), rows=rows, train=train)


def _big() -> VLMTrainConfig:
    """What the published stages have in common."""
    return VLMTrainConfig(
        lr=1e-4,
        final_lr=0.0,
        betas=(0.9, 0.999),
        precision="bfloat16",
        checkpointing=True,
        ema=0.0,
        device="auto",
        log_every=10,
        eval_every=500,
        save_every=500,
    )
