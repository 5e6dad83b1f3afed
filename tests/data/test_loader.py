"""Batches for training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from synthetic import write_dataset
from tailorbird.data.augment import change
from tailorbird.data.config import Augment, LoadConfig
from tailorbird.data.frames import load_frames
from tailorbird.data.lerobot import ACTION, STATE, LeRobotDataset
from tailorbird.data.loader import Loader, split_episodes
from tailorbird.data.order import batch_rows, seed_of
from tailorbird.errors import DataError
from tailorbird.processing.image import ImageSpec, Letterbox
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer, train_tokenizer
from tailorbird.types import Batch

SIZE, CHUNK, BATCH, SEED = 12, 5, 4, 9
PLAIN, LIVELY = Augment(), Augment(shift_px=2, brightness=0.2, contrast=0.2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """Episodes of 7, 10, 13 and 8 frames."""
    root = tmp_path_factory.mktemp("loader") / "set"
    write_dataset(root, range(4))
    return LeRobotDataset(root)


@pytest.fixture(scope="module")
def pipeline(data: LeRobotDataset) -> Pipeline:
    return Pipeline(
        cameras=("wrist", "front"),
        image=ImageSpec(size=SIZE),
        state=Normalizer.from_stats(data.stats, STATE, "here"),
        action=Normalizer.from_stats(data.stats, ACTION, "here"),
        tokenizer=InstructionTokenizer(train_tokenizer(data.tasks, 300), max_tokens=19),
        hz=data.fps,
    )


@pytest.fixture(scope="module")
def frames(data: LeRobotDataset, pipeline: Pipeline) -> list[NDArray[np.uint8]]:
    return load_frames(data, pipeline.image, pipeline.cameras, data.root / "cache", 1)


@pytest.fixture
def loader(data: LeRobotDataset, frames: list[NDArray[np.uint8]], pipeline: Pipeline) -> Loader:
    rows = np.arange(2, 36)
    return Loader(
        data, frames, pipeline, rows=rows, cfg=LoadConfig(chunk=CHUNK, batch=BATCH, seed=SEED, augment=LIVELY)
    )


def same(a: Batch, b: Batch) -> bool:
    return all(
        torch.equal(getattr(x, name), getattr(y, name))
        for x, y, names in (
            (a.inputs, b.inputs, ("pixels", "ids", "ids_valid", "state")),
            (a, b, ("actions", "valid")),
        )
        for name in names
    )


def test_a_batch_holds_what_its_rows_say(loader: Loader, data: LeRobotDataset) -> None:
    rows = np.array([3, 15, 37])
    batch = loader.load(rows)
    assert batch.inputs.pixels.shape == (3, 2, 3, SIZE, SIZE)
    assert batch.actions.shape == (3, CHUNK, 2)
    for i, row in enumerate(rows):
        seen, actions, valid = data.sample(int(row), CHUNK)
        live = loader.pipeline.read([seen])
        torch.testing.assert_close(batch.inputs.pixels[i], live.pixels[0], rtol=0, atol=0)
        torch.testing.assert_close(batch.inputs.state[i], live.state[0], rtol=0, atol=0)
        ids = batch.inputs.ids[i][batch.inputs.ids_valid[i]]
        assert torch.equal(ids, live.ids[0])
        np.testing.assert_allclose(loader.pipeline.write(batch.actions[i : i + 1])[0], actions, atol=1e-6)
        assert batch.valid[i].tolist() == valid.tolist()
    assert batch.valid.sum(1).tolist() == [4, 2, 1]


def test_pictures_of_several_sizes_and_padded_vectors_reach_the_batch(
    data: LeRobotDataset, pipeline: Pipeline
) -> None:
    wide = replace(pipeline, image=Letterbox(size=SIZE), state_dim=9, action_dim=8)
    frames = load_frames(data, wide.image, wide.robot_cameras, data.root / "cache", 1)
    loader = Loader(
        data,
        frames,
        wide,
        rows=np.arange(30),
        cfg=LoadConfig(chunk=CHUNK, batch=BATCH, seed=SEED, augment=LIVELY),
    )
    batch = loader.at(2)
    assert batch.inputs.pixels.shape == (BATCH, 2, 3, SIZE, SIZE)
    assert batch.inputs.state.shape == (BATCH, 9)
    assert batch.actions.shape == (BATCH, CHUNK, 8)
    seen, actions, _ = data.sample(15, CHUNK)
    alone = loader.load(np.array([15]))
    assert torch.equal(alone.inputs.pixels, wide.read([seen]).pixels)
    np.testing.assert_allclose(wide.write(alone.actions)[0], actions, atol=1e-6)


def test_the_batch_of_a_step_is_the_same_whenever_it_is_asked_for(loader: Loader) -> None:
    first = loader.at(6)
    loader.at(0)
    assert same(loader.at(6), first)
    assert not same(loader.at(7), first)


def test_a_stream_from_a_step_is_the_rest_of_the_stream_from_the_start(loader: Loader) -> None:
    whole = list(loader.stream(0, 11))
    assert len(whole) == 11
    late = list(loader.stream(7, 11))
    assert all(same(a, b) for a, b in zip(whole[7:], late, strict=True))
    assert all(same(batch, loader.at(step)) for step, batch in enumerate(whole))


def test_a_step_draws_the_rows_that_the_order_says_and_changes_them_by_its_own_seed(
    loader: Loader, frames: list[NDArray[np.uint8]]
) -> None:
    for step in (0, 3, 8):
        rows = loader.rows[batch_rows(34, BATCH, SEED, step)]
        generator = torch.Generator().manual_seed(seed_of(SEED, step))
        together = torch.stack([torch.from_numpy(one[rows]) for one in frames], dim=1)
        changed = change(together, LIVELY, generator)
        assert torch.equal(loader.at(step).inputs.pixels, ImageSpec.scale(changed))


def test_pictures_may_be_older_than_the_state_and_never_of_another_episode(
    data: LeRobotDataset, frames: list[NDArray[np.uint8]], pipeline: Pipeline
) -> None:
    cfg = LoadConfig(chunk=CHUNK, batch=BATCH, seed=SEED, augment=Augment(stale=3))
    loader = Loader(data, frames, pipeline, rows=np.arange(2, 36), cfg=cfg)
    ages: set[int] = set()
    for step in range(24):
        rows, batch = loader.rows[batch_rows(34, BATCH, SEED, step)], loader.at(step)
        exact = loader.load(rows)
        assert torch.equal(batch.inputs.state, exact.inputs.state)
        assert torch.equal(batch.actions, exact.actions)
        for row, pixels in zip(rows, batch.inputs.pixels, strict=True):
            start = data.episodes[data.episode_index[row]].start
            near = range(row, max(start, row - 3) - 1, -1)
            same = [
                row - old
                for old in near
                if torch.equal(loader.load(np.array([old])).inputs.pixels[0], pixels)
            ]
            assert same, "of another row"
            ages.add(int(same[0]))
    assert ages == {0, 1, 2, 3}


def test_an_epoch_shows_every_row_at_most_once_and_only_the_rows_given(
    data: LeRobotDataset, frames: list[NDArray[np.uint8]], pipeline: Pipeline
) -> None:
    rows = np.arange(4, 24)
    loader = Loader(
        data, frames, pipeline, rows=rows, cfg=LoadConfig(chunk=1, batch=5, seed=0, augment=PLAIN)
    )
    shown = [
        [
            int(np.flatnonzero((pipeline.state(torch.from_numpy(data.state)) == state).all(1))[0])
            for state in b
        ]
        for b in (batch.inputs.state for batch in loader.stream(0, 8))
    ]
    for epoch in (shown[:4], shown[4:]):
        assert sorted(row for batch in epoch for row in batch) == rows.tolist()
    assert shown[:4] != shown[4:]


def test_another_seed_gives_other_batches(loader: Loader) -> None:
    again = Loader(
        loader.data,
        loader.frames,
        loader.pipeline,
        rows=loader.rows,
        cfg=LoadConfig(chunk=CHUNK, batch=BATCH, seed=SEED + 1, augment=LIVELY),
    )
    assert not same(again.at(0), loader.at(0))


def test_more_rows_a_batch_than_there_are_is_refused(loader: Loader) -> None:
    with pytest.raises(DataError, match="3 frames cannot fill a batch of 4: record more"):
        Loader(
            loader.data,
            loader.frames,
            loader.pipeline,
            rows=np.arange(3),
            cfg=LoadConfig(chunk=CHUNK, batch=BATCH, seed=0, augment=PLAIN),
        )


@pytest.mark.parametrize(("share", "held"), [(0.0, 1), (0.25, 1), (0.5, 2)])
def test_whole_episodes_are_held_out_and_none_is_in_both_parts(
    data: LeRobotDataset, share: float, held: int
) -> None:
    learn, apart = split_episodes(data, share, seed=3)
    assert sorted([*learn, *apart]) == list(range(len(data)))
    inside, outside = set(data.episode_index[learn]), set(data.episode_index[apart])
    assert inside.isdisjoint(outside)
    assert len(outside) == held
    again, _ = split_episodes(data, share, seed=3)
    np.testing.assert_array_equal(again, learn)
    seeds = [split_episodes(data, share, seed)[1].tolist() for seed in range(9)]
    assert any(other != apart.tolist() for other in seeds)


def test_an_instruction_that_the_policy_cannot_read_is_refused(loader: Loader, pipeline: Pipeline) -> None:
    short = replace(pipeline, tokenizer=InstructionTokenizer(pipeline.tokenizer.json, max_tokens=2))
    cramped = Loader(
        loader.data,
        loader.frames,
        short,
        rows=loader.rows,
        cfg=LoadConfig(chunk=CHUNK, batch=BATCH, seed=0, augment=PLAIN),
    )
    with pytest.raises(DataError, match="the policy reads 2: shorten it"):
        cramped.at(0)
