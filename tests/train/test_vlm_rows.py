"""A VLM learns from conversations that are read, drawn and packed, the same whoever prepared them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_vlm import CONFIG, SMALL, lesson_of, new_vlm

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from conversing import Talks

from released import make_processor
from tailorbird.data.config import RowsConfig, ShowConfig
from tailorbird.data.encode import Encoder
from tailorbird.data.mixture import Mixture, Part
from tailorbird.data.rows import RowLoader
from tailorbird.train.config import LearnConfig
from tailorbird.train.log import read_metrics
from tailorbird.train.loop import train
from tailorbird.train.stages import choose
from tailorbird.train.state import checkpoint_at
from tailorbird.types import Rows


class Cut(RowLoader):
    """Ends with an error before a step."""

    at = -1

    def steps(self, start: int, stop: int) -> Iterator[tuple[Rows, ...]]:
        for step, rows in enumerate(super().steps(start, stop), start):
            if step == self.at:
                raise RuntimeError("here")
            yield rows


def learn(run: Path, workers: int, at: int = -1) -> None:
    processor, shape = make_processor(SMALL), {"tokens": 150, "tiles": 15}
    sources = (Talks("seen", 37, bad=(3, 8)), Talks("heard", 20, seen=False))
    feed = Cut(
        Mixture([Part(source=one) for one in sources], seed=2),
        Encoder(processor=processor, cfg=ShowConfig(), seed=5, **shape),
        RowsConfig(**shape, lanes=2, at_once=1, workers=workers, bad_share=0.5),
    )
    feed.at = at
    model = new_vlm()
    train(CONFIG, lesson_of(CONFIG, feed), model, choose(model, LearnConfig(), 0), run)


def test_a_run_with_two_workers_that_is_interrupted_goes_on_with_none_bit_for_bit(tmp_path: Path) -> None:
    learn(tmp_path / "whole", 0)
    with pytest.raises(RuntimeError, match="here"):
        learn(tmp_path / "part", 2, at=8)
    learn(tmp_path / "part", 0)
    one, other = (checkpoint_at(tmp_path / name, CONFIG.steps) for name in ("whole", "part"))
    for name in ("model.safetensors", "train.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    last = [row for row in read_metrics(tmp_path / "whole") if "loss" in row][-1]
    assert last["dropped/seen/no picture"] == 2
    assert last["loss/seen"] > 0
    assert last["loss/heard"] > 0
