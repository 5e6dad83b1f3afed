"""The whole way, small: everything here looks at one run of the miniature demo."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver

from tailorbird.cli.info import Info
from tailorbird.cli.rollout import Rollout
from tailorbird.errors import CheckpointError, ConfigError, StorageError
from tailorbird.evals.report import write_report
from tailorbird.evals.results import load_episodes
from tailorbird.evals.rollout import Run, SimRobot, rollouts, shuffled_instruction
from tailorbird.infer.policy import load_policy
from tailorbird.progress import console
from tailorbird.recipes.demo import demo
from tailorbird.sim.metaworld import MetaWorld
from tailorbird.sim.tasks import INSTRUCTIONS
from tailorbird.storage import locked, read_json

sys.path.insert(0, str(Path(__file__).parent))
from mini import MINI, WORLD

README = Path(__file__).parents[2] / "README.md"
PROMISED = """success_rate success_by_task untrained_success_rate shuffled_instruction_success_rate
    episodes chunk_ms_p50 control_hz train_seconds parameters command commit hardware date minutes"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    demo(MINI, out, workers=2, command="make demo")
    return out


def test_the_result_says_everything_that_was_promised(run: Path) -> None:
    result = read_json(run / "result.json")
    assert result.keys() >= set(PROMISED.split())
    assert result["episodes"] == 4
    assert result["demonstrations"] == 5
    assert 0 < result["control_hz"] <= 20.5
    assert result["parameters"] == sum(p.numel() for p in load_policy(run / "policy").model.parameters())
    assert result["minutes"].keys() == {"record", "train", "rollouts"}
    assert result["success_rate"] == np.mean(list(result["success_by_task"].values()))


def test_a_finished_demo_is_not_played_again(run: Path) -> None:
    files = [*run.glob("rollouts/*"), *run.glob("videos/*"), *run.glob("dataset/**/*.mp4")]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = demo(MINI, run, workers=2, command="make demo")
    assert again == run / "report.html"
    assert before == {path: path.stat().st_mtime_ns for path in files}


def test_other_settings_need_another_folder(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"begun with other settings.*choose another folder"):
        demo(replace(MINI, control_seeds=2), run, workers=2, command="make demo")


def test_rollouts_on_recorded_scenes_are_refused() -> None:
    with pytest.raises(ConfigError, match="would repeat recorded scenes"):
        replace(MINI, rollout=replace(MINI.rollout, first_seed=999))


def test_a_demo_killed_while_training_ends_as_the_one_that_was_not(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, str(Path(__file__).parent / "mini.py"), str(out)]
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        while not (out / "train/checkpoints/step-000010").exists():
            assert first.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        assert not (out / "result.json").exists()
        subprocess.run(command, check=True, stdout=log, stderr=log)
    for name in ("policy/model.safetensors", "policy/config.json", "untrained/model.safetensors"):
        assert (out / name).read_bytes() == (run / name).read_bytes(), name
    for name in ("normal", "shuffled", "black", "untrained"):
        ours, theirs = load_episodes(out, name), load_episodes(run, name)
        assert [replace(e, chunk_ms=[]) for e in ours] == [replace(e, chunk_ms=[]) for e in theirs]


def test_rollouts_repeat_whatever_the_number_of_processes(run: Path) -> None:
    ((_, again),) = rollouts({"again": Run(policy=run / "policy", cfg=MINI.rollout)}, workers=1)
    before = load_episodes(run, "normal")
    assert [asdict(replace(e, chunk_ms=[], film=None)) for e in again] == [
        asdict(replace(e, chunk_ms=[])) for e in before
    ]
    assert [e.film for e in again if e.film] == [
        (run / f"videos/{e.task}.mp4").read_bytes() for e in before if e.actions
    ]


def test_the_conditions_differ_in_what_the_policy_is_given() -> None:
    wrong = [shuffled_instruction(task, MINI.rollout.tasks) for task in MINI.rollout.tasks]
    assert wrong[0] == INSTRUCTIONS["button-press-topdown-v3"]
    assert wrong[1] not in (INSTRUCTIONS["button-press-topdown-v3"], wrong[0])
    env = MetaWorld("drawer-open-v3", WORLD)
    env.restart(3)
    seen, blind = (SimRobot(env, instruction="open it", blind=blind).observe() for blind in (False, True))
    env.close()
    assert seen.task == "open it"
    assert seen.images["corner2"].any()
    assert not blind.images["corner2"].any()
    np.testing.assert_array_equal(seen.state, blind.state)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sim": replace(WORLD, camera="topview")}, "looks through .*corner2.*the simulator shows 'topview'"),
        ({"sim": replace(WORLD, control_hz=40)}, "set --sim.control-hz 20"),
        ({"execute": 9}, "lower --execute"),
    ],
)
def test_a_world_that_the_policy_does_not_know_is_refused(
    run: Path, wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        list(rollouts({"refused": Run(policy=run / "policy", cfg=replace(MINI.rollout, **wrong))}, workers=1))  # type: ignore[arg-type]


def test_a_folder_without_a_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        list(rollouts({"refused": Run(policy=tmp_path, cfg=MINI.rollout)}, workers=1))


def test_results_of_another_policy_do_not_mix_and_nothing_is_played_first(run: Path, tmp_path: Path) -> None:
    cfg = replace(MINI.rollout, tasks=("drawer-open-v3",), seeds=1, film=False)
    Rollout(policy=run / "policy", out=tmp_path, workers=1, settings=cfg)()
    played = (tmp_path / "rollouts/normal.json").read_bytes()
    with pytest.raises(ConfigError, match=r"begun with other settings.*choose another folder"):
        Rollout(policy=run / "untrained", out=tmp_path, workers=1, settings=cfg)()
    assert (tmp_path / "rollouts/normal.json").read_bytes() == played


def test_a_refused_rollout_leaves_the_folder_free_for_the_corrected_one(run: Path, tmp_path: Path) -> None:
    cfg = replace(MINI.rollout, sim=replace(WORLD, control_hz=40))
    out = tmp_path / "results"
    with pytest.raises(ConfigError, match=r"set --sim.control-hz 20"):
        Rollout(policy=run / "policy", out=out, workers=1, settings=cfg)()
    assert not out.exists()


def test_two_processes_do_not_work_in_one_folder(run: Path) -> None:
    with locked(run), pytest.raises(StorageError, match=f"another process is at work in {run}: wait"):
        demo(MINI, run, workers=2, command="make demo")


def test_a_task_that_nobody_demonstrated_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nothing is demonstrated for .*push-v3"):
        replace(MINI, rollout=replace(MINI.rollout, tasks=("push-v3",)))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("policy", ["chunk", "8 actions at 20 Hz", "vlm.decoder"]),
        ("dataset", ["LeRobot v3.0", "open the drawer", "gripper_opening"]),
        (".", ["drawer-open", "make demo", "commit"]),
    ],
)
def test_info_describes_what_the_demo_made(run: Path, what: str, words: list[str]) -> None:
    with console.capture() as screen:
        Info(what=str(run / what))()
    assert all(word in screen.get() for word in words), screen.get()


def test_the_five_lines_of_the_readme_act(run: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "runs/demo/policy" in block)
    assert len(code.strip().replace("\n\n", "\n").splitlines()) == 5
    room: dict[str, object] = {}
    exec(code.replace("runs/demo/policy", str(run / "policy")), room)
    assert room["solved"] in (True, False)
    room["env"].close()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    flags = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for flag in [
        *flags.split(),
        "disable-component-update",
        "disable-sync",
        "host-resolver-rules=MAP * 0.0.0.0",
    ]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def test_the_report_plays_in_a_browser_and_asks_the_network_for_nothing(
    run: Path, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"  # alone in a folder: nothing beside it to lean on
    page.write_bytes(write_report(run).read_bytes())
    browser.set_window_size(1000, 900)
    browser.get(page.as_uri())
    rate = read_json(run / "result.json")["success_rate"]
    assert browser.title == f"Tailorbird: {100 * rate:.0f} % of 4 episodes solved"
    wait_for_films = "return [...document.querySelectorAll('video')].map(v => [v.readyState, v.currentTime])"
    deadline = time.monotonic() + 20
    while not all(ready == 4 and at > 0.1 for ready, at in browser.execute_script(wait_for_films)):
        assert time.monotonic() < deadline, browser.execute_script(wait_for_films)
    assert len(browser.execute_script(wait_for_films)) == 2
    sizes = "return [...document.querySelectorAll('.plot svg')].map(s => s.getBoundingClientRect().height)"
    heights = browser.execute_script(sizes)
    assert len(heights) == 5  # success, learning, actions of two tasks, latency
    assert min(heights) > 80
    text = browser.execute_script("return document.body.innerText")
    for words in (
        "make demo",
        "told another task's instruction",
        "open the drawer",
        "Every setting",
        "torch",
    ):
        assert words in text
    asked = [entry["message"] for entry in browser.get_log("performance")]
    urls = {url for message in asked for url in re.findall(r'"requestWillBeSent".*?"url":"(\w+):', message)}
    assert urls <= {"file", "data"}
    assert browser.get_log("browser") == []


def test_the_report_fits_a_phone(run: Path, browser: webdriver.Chrome) -> None:
    browser.set_window_size(500, 900)
    browser.get((run / "report.html").as_uri())
    wide, window = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window
