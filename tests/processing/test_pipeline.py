"""The chain between a robot's numbers and a model's."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tailorbird.errors import ConfigError, DataError
from tailorbird.processing.image import ImageSpec, Letterbox
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
    cached = [
        torch.stack([pipeline.image.shrink(torch.from_numpy(one.images[name])) for one in seen])
        for name in pipeline.cameras
    ]
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


def test_what_the_model_wants_wider_is_filled_with_zeros_and_taken_off_again(
    pipeline: Pipeline, seen: list[Observation]
) -> None:
    wide = replace(pipeline, state_dim=7, action_dim=6)
    narrow, padded = pipeline.read(seen).state, wide.read(seen).state
    assert torch.equal(padded[:, :3], narrow)
    assert padded[:, 3:].tolist() == [[0.0] * 4] * 2
    actions = torch.tensor([[[2.5, 3.5], [0.5, -4.5]]])
    learned = wide.prepare_actions(actions)
    assert torch.equal(learned[..., :2], pipeline.prepare_actions(actions))
    assert learned[..., 2:].abs().sum() == 0
    learned[..., 2:] = 99.0  # what a model says there is nothing
    torch.testing.assert_close(torch.from_numpy(wide.write(learned)), actions, rtol=1e-6, atol=1e-6)


def test_the_robots_names_of_cameras_and_those_it_lacks(pipeline: Pipeline, seen: list[Observation]) -> None:
    other = replace(pipeline, rename={"spare": "front"}, absent=("wrist",))
    assert other.seen_cameras == ("front",)
    assert other.robot_cameras == ("spare",)
    spare = pipeline.image.shrink(torch.from_numpy(seen[0].images["spare"]))
    assert torch.equal(other.read(seen).pixels[0, 0], ImageSpec.scale(spare))
    with pytest.raises(DataError, match=r"no picture from \['spare'\].*rename=.*without="):
        other.read([replace(seen[0], images={"front": seen[0].images["front"]})])


@pytest.mark.parametrize(
    ("rename", "absent", "robot"),
    [
        ({"wrist": "front", "front": "wrist"}, (), ("front", "wrist")),
        ({"wrist": "front"}, ("wrist",), ("wrist",)),
        ({"wrist": "front", "a": "wrist"}, (), ("a", "wrist")),
        ({"front": "front"}, (), ("wrist", "front")),
    ],
)
def test_a_name_that_both_have_may_stand_for_another_camera(
    pipeline: Pipeline, rename: dict[str, str], absent: tuple[str, ...], robot: tuple[str, ...]
) -> None:
    assert replace(pipeline, rename=rename, absent=absent).robot_cameras == robot


def test_pictures_of_several_sizes_make_one_batch(pipeline: Pipeline, seen: list[Observation]) -> None:
    tall = {name: picture.transpose(1, 0, 2) for name, picture in seen[1].images.items()}
    both = replace(pipeline, image=Letterbox(size=9)).read([seen[0], replace(seen[1], images=tall)])
    assert both.pixels.shape == (2, 2, 3, 9, 9)
    assert (both.pixels[0, :, :, :3] == -1).all(), "black above what is wide"
    assert (both.pixels[1, :, :, :, :3] == -1).all(), "black beside what is tall"


def test_pictures_may_be_tensors_and_must_be_bytes(pipeline: Pipeline, seen: list[Observation]) -> None:
    as_tensors = {name: torch.from_numpy(picture) for name, picture in seen[0].images.items()}
    same = pipeline.read([replace(seen[0], images=as_tensors)])  # type: ignore[arg-type]
    assert torch.equal(same.pixels, pipeline.read(seen[:1]).pixels)
    floats = {name: picture / 255 for name, picture in seen[0].images.items()}
    with pytest.raises(DataError, match=r"a frame is \(H, W, 3\) uint8, got \(12, 16, 3\) torch.float64"):
        pipeline.read([replace(seen[0], images=floats)])


def test_a_state_that_moves_where_it_never_did_is_named(pipeline: Pipeline, seen: list[Observation]) -> None:
    still = replace(pipeline, state=Normalizer(mean=(1.0, 2.0, 3.0), std=(1.0, 0.0, 4.0)))
    with pytest.raises(DataError, match=r"state value 1 is 2\.5, .* do not vary: always 2, or nearly"):
        still.read([replace(seen[0], state=np.array([0, 2.5, 0], np.float32))])
    inputs = still.read([replace(seen[0], state=np.array([0, 2, 0], np.float32))])
    assert inputs.state[0, 1] == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rename": {"a": "side"}}, "no camera side: the policy's cameras are wrist, front"),
        ({"absent": ("side",)}, "no camera side"),
        ({"absent": ("wrist", "front")}, "needs a picture"),
        ({"rename": {"a": "front", "b": "front"}}, "one camera two pictures"),
        (
            {"rename": {"wrist": "front"}},
            "one picture as two cameras, front and wrist: .* to wrist, or leave it out with without=",
        ),
        ({"rename": {"a": "front"}, "absent": ("front",)}, "a picture to front, which without= leaves out"),
        ({"state_dim": 2}, "reads 2 state values, there are statistics of 3"),
        ({"aloha": True}, "an Aloha has 14 state values"),
    ],
)
def test_a_pipeline_that_cannot_work_is_refused(
    pipeline: Pipeline, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        replace(pipeline, **changes)  # type: ignore[arg-type]
