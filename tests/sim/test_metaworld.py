"""The simulated world: exact seeds, gymnasium's rules, pictures, experts."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tailorbird.errors import ConfigError, SimulatorError
from tailorbird.sim.camera import choose_gl
from tailorbird.sim.config import HORIZON, PUBLISHED, SimConfig
from tailorbird.sim.expert import ScriptedExpert
from tailorbird.sim.metaworld import MetaWorld, open_simulator
from tailorbird.sim.pool import run_in_order
from tailorbird.sim.tasks import INSTRUCTIONS

SMALL = SimConfig(size=32)
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (5, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def env() -> Iterator[MetaWorld]:
    env = MetaWorld("drawer-open-v3", SMALL)
    yield env
    env.close()


def play(env: MetaWorld, seed: int) -> dict[str, list[Any]]:
    """Frames, states, full states and rewards of a few fixed actions."""
    seen, _ = env.reset(seed=seed)
    story: dict[str, list[Any]] = {
        "frames": [seen["pixels"]["corner2"].tolist()],
        "states": [seen["agent_pos"].tolist()],
        "full": [env.privileged.tolist()],
        "rewards": [],
    }
    for action in ACTIONS:
        seen, reward, _, _, _ = env.step(action)
        story["frames"].append(seen["pixels"]["corner2"].tolist())
        story["states"].append(seen["agent_pos"].tolist())
        story["full"].append(env.privileged.tolist())
        story["rewards"].append(reward)
    return story


def play_elsewhere(seed: int) -> dict[str, list[Any]]:
    return play(open_simulator("drawer-open-v3", SMALL), seed)


def solve(env: MetaWorld, seed: int, most: int = 60) -> int:
    """Actions that the expert needs."""
    env.restart(seed)
    expert = ScriptedExpert(env.task)
    return next((n for n in range(1, most + 1) if env.advance(expert.act(env))), most + 1)


def test_a_seed_gives_the_same_story_whatever_was_played_before(env: MetaWorld) -> None:
    first = play(env, 7)
    other = play(env, 8)
    solve(env, 9)
    assert play(env, 7) == first
    assert other["frames"] != first["frames"]
    assert other["full"] != first["full"]


def test_the_first_picture_of_a_seed_is_the_same_whatever_was_played_before() -> None:
    """One grey level is enough for a policy to go another way."""
    env = MetaWorld("push-v3", SimConfig(size=192))
    rng, pictures = np.random.default_rng(0), []
    for seed in (3, 12, 3):
        env.restart(seed)
        pictures.append(env.photograph(192))
        for action in rng.uniform(-1, 1, (40, 4)):
            env.advance(action)
    np.testing.assert_array_equal(pictures[0], pictures[-1])
    env.close()


def test_a_seed_gives_the_same_story_in_another_process(env: MetaWorld) -> None:
    ((_, theirs),) = run_in_order(play_elsewhere, [7], workers=1)
    assert theirs == play(env, 7)


def test_a_reset_without_a_seed_goes_on_from_the_last_one(env: MetaWorld) -> None:
    def scenes() -> list[list[float]]:
        env.reset(seed=3)
        found = []
        for _ in range(2):
            env.reset()
            found.append(env.privileged.tolist())
        return found

    first, again = scenes(), scenes()
    assert first == again
    assert first[0] != first[1]


@pytest.mark.parametrize("render_mode", ["rgb_array", None])
def test_the_world_keeps_the_rules_of_gymnasium(render_mode: str | None) -> None:
    env = MetaWorld("button-press-topdown-v3", SMALL, render_mode=render_mode)
    with warnings.catch_warnings():
        # A position has no natural bounds, and worlds here are made by their class, not by a name.
        for known in (".*observation space m(in|ax)imum value is -?infinity", ".*not having a spec"):
            warnings.filterwarnings("ignore", known, UserWarning)
        check_env(env)
    env.close()


def test_videos_of_an_episode_run_at_the_speed_of_the_world() -> None:
    for control_hz in (20, 80):
        env = MetaWorld("reach-v3", SimConfig(size=32, control_hz=control_hz))
        assert env.metadata["render_fps"] == control_hz
        env.restart(1)
        env.advance(np.zeros(4))
        assert env.time_s == pytest.approx(1 / control_hz)
    assert gymnasium.Env.metadata.get("render_fps") is None


def test_a_step_reports_the_moment_of_success_and_the_horizon() -> None:
    env = MetaWorld("drawer-open-v3", SMALL)
    env.reset(seed=5)
    expert, results = ScriptedExpert(env.task), []
    while not results or not results[-1][2]:
        results.append(env.step(expert.act(env)))
    _, reward, terminated, truncated, info = results[-1]
    assert (reward, terminated, truncated, info) == (1.0, True, False, {"success": True})
    assert {result[1] for result in results[:-1]} == {0.0}

    env.reset(seed=5)
    for step in range(1, HORIZON // 4 + 1):
        *_, truncated, _ = env.step(np.zeros(4, np.float32))
        assert truncated == (step == HORIZON // 4)
    with pytest.raises(SimulatorError, match="over after 500 simulator steps; reset first"):
        env.step(np.zeros(4, np.float32))
    env.close()


def test_a_success_in_passing_counts() -> None:
    fine, coarse = (MetaWorld("reach-v3", SimConfig(size=32, control_hz=hz)) for hz in (80, 1))
    fine.restart(1)
    way = fine._sim._target_pos - fine.privileged[:3]
    action = np.append(way / np.abs(way).max(), 0.0)
    moments = [fine.advance(action) for _ in range(80)]
    assert any(moments)
    assert not moments[-1], "the gripper flies past the target"
    coarse.restart(1)
    assert coarse.advance(action)
    np.testing.assert_array_equal(coarse.privileged, fine.privileged)


@pytest.mark.parametrize("action", [[0.0, np.nan, 0.0, 0.0], [np.inf] * 4, [0.0] * 3, 1.0, [[0.0] * 4]])
def test_an_action_that_is_not_four_finite_numbers_is_refused(env: MetaWorld, action: Any) -> None:
    env.restart(2)
    before = env.privileged.tolist()
    with pytest.raises(SimulatorError, match="an action is 4 finite numbers"):
        env.advance(np.array(action))
    assert env.privileged.tolist() == before


def test_actions_beyond_the_limits_act_like_the_limits(env: MetaWorld) -> None:
    ends = []
    for scale in (1, 7):
        env.restart(2)
        env.advance(scale * np.array([1.0, -1.0, 1.0, 1.0]))
        ends.append(env.privileged.tolist())
    assert ends[0] == ends[1]


def test_unknown_tasks_and_cameras_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no task 'drawer-open' in Meta-World; .*drawer-open-v3"):
        MetaWorld("drawer-open")
    with pytest.raises(ConfigError, match=r"no camera 'front' in Meta-World; .*corner2, .*gripperPOV"):
        MetaWorld("drawer-open-v3", SimConfig(camera="front"))


def test_an_observation_says_what_the_robot_sees_feels_and_should_do(env: MetaWorld) -> None:
    env.restart(4)
    env.advance(np.zeros(4))
    seen = env.observe()
    assert {name: (p.shape, p.dtype) for name, p in seen.images.items()} == {
        "corner2": ((32, 32, 3), np.dtype(np.uint8))
    }
    assert seen.state.dtype == np.float32
    np.testing.assert_array_equal(seen.state, env.privileged[:4].astype(np.float32))
    assert seen.task == env.instruction == INSTRUCTIONS["drawer-open-v3"]
    assert seen.time_s == pytest.approx(0.05)
    np.testing.assert_array_equal(env.render(), seen.images["corner2"])


def published_picture(task: str, seed: int, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As evaluations on MT50 take it: Meta-World's own renderer, corner2 moved, both axes flipped."""
    import metaworld

    benchmark = metaworld.MT1(task, seed=42)
    theirs = benchmark.train_classes[task](render_mode="rgb_array", camera_name="corner2")
    theirs.set_task(benchmark.train_tasks[0])
    theirs.model.cam_pos[2] = [0.75, 0.075, 0.7]
    theirs.reset()
    theirs._freeze_rand_vec = False
    theirs.seeded_rand_vec = True
    theirs.seed(seed)
    state, _ = theirs.reset()
    for action in actions:
        state, *_ = theirs.step(action.astype(float))  # in float32 the arm ends half a nanometre away
    picture = np.flip(theirs.render(), (0, 1)).copy()
    theirs.close()
    return picture, state[:4]


@pytest.mark.parametrize("task", ["drawer-open-v3", "push-v3"])
def test_faithful_pictures_are_the_published_ones_pixel_for_pixel(task: str) -> None:
    ours = MetaWorld(task, PUBLISHED)
    ours.restart(11)
    for action in ACTIONS:
        ours.advance(action)
    seen = ours.observe()
    ours.close()
    picture, state = published_picture(task, 11, ACTIONS)
    assert picture.shape == (480, 480, 3)
    assert picture.std() > 20, "a blank picture would prove nothing"
    np.testing.assert_array_equal(seen.images["corner2"], picture)
    np.testing.assert_array_equal(seen.state, state.astype(np.float32))


def test_fast_pictures_stay_within_a_few_grey_levels_of_faithful_ones() -> None:
    pictures = {}
    for faithful in (False, True):
        env = MetaWorld("drawer-open-v3", SimConfig(size=96, faithful=faithful))
        env.restart(6)
        pictures[faithful] = env.observe().images["corner2"].astype(int)
        env.close()
    difference = np.abs(pictures[True] - pictures[False])
    assert 0 < difference.mean() < 10  # of 255: missing shadows, jagged edges
    assert np.median(difference) <= 2
    correlation = np.corrcoef(pictures[True].ravel(), pictures[False].ravel())[0, 1]
    assert correlation > 0.95


def test_fast_and_faithful_pictures_of_one_world_do_not_disturb_each_other() -> None:
    pictures = []
    for order in ((True, False), (False, True)):
        env = MetaWorld("drawer-open-v3", SMALL)
        env.restart(6)
        found = {fast: env.photograph(64, fast=fast) for fast in order}
        found |= {fast: env.photograph(64, fast=fast) for fast in order}
        pictures.append(found)
        env.close()
    for fast in (True, False):
        np.testing.assert_array_equal(pictures[0][fast], pictures[1][fast])


def test_cameras_look_from_different_places_and_sizes_do_not_disturb_each_other() -> None:
    pictures = {}
    for name in ("corner2", "topview", "gripperPOV"):
        env = MetaWorld("drawer-open-v3", SimConfig(size=32, camera=name))
        env.restart(1)
        pictures[name] = env.photograph(32)
        large = env.photograph(64)
        assert large.shape == (64, 64, 3)
        np.testing.assert_array_equal(env.photograph(32), pictures[name])
        env.close()
    assert all(
        np.abs(pictures["corner2"].astype(int) - pictures[name]).mean() > 10
        for name in ("topview", "gripperPOV")
    )


def test_a_closed_camera_says_so_and_a_closed_world_opens_new_ones() -> None:
    env = MetaWorld("reach-v3", SMALL)
    env.restart(1)
    before = env.render()
    (camera,) = env._cameras.values()
    env.close()
    with pytest.raises(SimulatorError, match="this camera was closed"):
        camera.shoot(env._sim.data)
    np.testing.assert_array_equal(env.render(), before)
    env.close()


def test_a_process_keeps_one_simulator_while_task_and_settings_stay() -> None:
    first = open_simulator("drawer-open-v3", SMALL)
    first.restart(1)
    first.render()
    assert open_simulator("drawer-open-v3", SimConfig(size=32)) is first
    other = open_simulator("drawer-open-v3", SimConfig(size=48))
    assert other is not first
    assert not first._cameras, "the first one's cameras are closed"
    assert open_simulator("drawer-open-v3", SMALL) is not first


@pytest.mark.parametrize(
    "task", ["button-press-topdown-v3", "drawer-open-v3", "door-close-v3", "window-open-v3", "push-v3"]
)
def test_the_scripted_expert_solves_the_task_at_twenty_actions_a_second(task: str) -> None:
    env = MetaWorld(task, SMALL)
    assert 5 < solve(env, 1000) <= 60
    expert = ScriptedExpert(task)
    env.restart(1000)
    action = expert.act(env)
    assert (action.shape, action.dtype) == ((4,), np.dtype(np.float32))
    assert np.abs(action).max() <= 1


@pytest.mark.parametrize(("given", "chosen"), [("osmesa", "osmesa"), ("egl", "egl"), ("glfw", "glfw")])
def test_an_opengl_that_is_already_chosen_stays(
    monkeypatch: pytest.MonkeyPatch, given: str, chosen: str
) -> None:
    monkeypatch.setenv("MUJOCO_GL", given)
    monkeypatch.setenv("PYOPENGL_PLATFORM", "untouched")
    monkeypatch.setenv("LP_NUM_THREADS", "3")
    assert choose_gl() == os.environ["MUJOCO_GL"] == chosen
    assert os.environ["PYOPENGL_PLATFORM"] == ("untouched" if given == "glfw" else given)
    assert os.environ["LP_NUM_THREADS"] == "3"


def test_an_opengl_for_no_screen_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "LP_NUM_THREADS"):
        monkeypatch.setenv(name, "restored afterwards")
        monkeypatch.delenv(name)
    assert choose_gl() in ("egl", "osmesa")
    assert os.environ["PYOPENGL_PLATFORM"] == os.environ["MUJOCO_GL"]
    assert os.environ["LP_NUM_THREADS"] == "1"


def test_an_opengl_that_cannot_start_is_an_error_with_its_remedy() -> None:
    code = (
        "import json\nfrom tailorbird.sim.metaworld import MetaWorld\n"
        "from tailorbird.errors import SimulatorError\n"
        "env = MetaWorld('reach-v3')\nenv.restart(1)\n"
        "try:\n    env.render()\nexcept SimulatorError as error:\n    print(json.dumps(str(error)))"
    )
    broken = {**os.environ, "MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "99"}
    done = subprocess.run([sys.executable, "-c", code], env=broken, capture_output=True, text=True)
    message = json.loads(done.stdout)
    assert message.startswith("cannot open an off-screen camera")
    assert "MUJOCO_GL=osmesa" in message
