"""The chain between a robot's numbers and a model's."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tailorbird.errors import DataError
from tailorbird.processing.image import ImageSpec
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer, train_tokenizer
from tailorbird.wire import Observation

TASKS = ("open the drawer", "close it")


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline(
        cameras=("wrist", "front"),
        image=ImageSpec(size=6, crop=(0.0, 0.25, 1.0, 0.5)),
        state=Normalizer(mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0)),
        action=Normalizer(mean=(0.5, -0.5), std=(2.0, 4.0)),
        tokenizer=InstructionTokenizer(train_tokenizer(TASKS, 300), 32),
        hz=20.0,
    )


@pytest.fixture
def seen() -> list[Observation]:
    rng = np.random.default_rng(0)
    return [
        Observation(
            images={
                name: rng.integers(0, 256, (12, 16, 3), np.uint8) for name in ("front", "wrist", "spare")
            },
            state=rng.normal(size=3).astype(np.float32),
            task=task,
        )
        for task in TASKS
    ]


def test_an_observation_becomes_pictures_words_and_state(pipeline: Pipeline, seen: list[Observation]) -> None:
    inputs = pipeline.read(seen)
    assert inputs.pixels.shape == (2, 2, 3, 6, 6)
    words, valid = pipeline.tokenizer(TASKS)
    assert torch.equal(inputs.ids, words)
    assert torch.equal(inputs.ids_valid, valid)
    wrist = pipeline.image.shrink(torch.from_numpy(seen[1].images["wrist"]))
    assert torch.equal(inputs.pixels[1, 0], ImageSpec.scale(wrist))  # in the pipeline's order of cameras
    state = torch.from_numpy(seen[1].state)
    expected = (state - torch.tensor([1.0, 2.0, 3.0])) / torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close(inputs.state[1], expected, rtol=1e-6, atol=0)


def test_reading_live_equals_preparing_cached_frames(pipeline: Pipeline, seen: list[Observation]) -> None:
    cached = torch.stack(
        [
            torch.stack(
                [pipeline.image.shrink(torch.from_numpy(one.images[name])) for name in pipeline.cameras]
            )
            for one in seen
        ]
    )
    state = torch.from_numpy(np.stack([one.state for one in seen]))
    prepared, live = pipeline.prepare(cached, state, TASKS), pipeline.read(seen)
    for name in ("pixels", "ids", "ids_valid", "state"):
        assert torch.equal(getattr(prepared, name), getattr(live, name)), name


def test_mirrored_and_read_only_pictures_are_read(pipeline: Pipeline, seen: list[Observation]) -> None:
    images = seen[0].images
    mirrored = {name: picture[::-1, ::-1] for name, picture in images.items()}
    for picture in images.values():
        picture.flags.writeable = False
    upside_down = pipeline.read([replace(seen[0], images=mirrored)])
    copied = pipeline.read([replace(seen[0], images={k: v.copy() for k, v in mirrored.items()})])
    assert torch.equal(upside_down.pixels, copied.pixels)
    assert pipeline.read(seen[:1]).pixels.shape == (1, 2, 3, 6, 6)


def test_a_missing_camera_is_named(pipeline: Pipeline, seen: list[Observation]) -> None:
    del seen[1].images["wrist"]
    with pytest.raises(
        DataError, match=r"no picture from \['wrist'\]: the observation has \['front', 'spare'\]"
    ):
        pipeline.read(seen)


@pytest.mark.parametrize(
    "state",
    [
        np.zeros(2, np.float32),
        np.zeros((1, 3), np.float32),
        np.array([0, np.nan, 0]),
        np.array([0, 0, np.inf]),
    ],
)
def test_a_state_of_another_size_or_not_finite_is_refused(
    pipeline: Pipeline, seen: list[Observation], state: np.ndarray
) -> None:
    with pytest.raises(DataError, match="expects 3 finite state values"):
        pipeline.read([replace(seen[0], state=state)])


def test_actions_are_written_in_physical_units(pipeline: Pipeline) -> None:
    written = pipeline.write(torch.tensor([[[1.0, 1.0], [0.0, -1.0]]]))
    assert written.dtype == np.float32
    assert written.tolist() == [[[2.5, 3.5], [0.5, -4.5]]]
