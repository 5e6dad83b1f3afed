"""Make a policy int8: look at what each layer loses on observations, keep in float what loses too much."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tailorbird.checkpoint.policy import write_policy
from tailorbird.data.lerobot import LeRobotDataset
from tailorbird.errors import ConfigError
from tailorbird.evals.scenes import fit_scenes
from tailorbird.infer.policy import Policy
from tailorbird.infer.quant import LayerError, policy_layers, quantise
from tailorbird.model.int8 import is_int8
from tailorbird.progress import console, track
from tailorbird.storage import new_folder, write_json
from tailorbird.wire import Observation

REPORT = "int8.json"
NUM_SCENES = 8


def quantise_policy(
    policy: Policy, out: Path, *, data: Path | None, num: int, max_error: float
) -> list[LayerError]:
    """Write an int8 copy of a policy, in Tailorbird's layout, with a report of each layer's error.

    Args:
        policy: becomes int8 itself.
        data: dataset whose observations calibrate; None for simulated scenes.
        num: of observations, spread over the dataset; at most 8 scenes.
    Raises:
        ConfigError: nothing can be quantised, or the policy is quantised already.
        DataError: the dataset does not fit the policy.
    """
    if out.exists():
        raise ConfigError(f"{out} exists: name another folder, or delete it")
    if is_int8(policy.model):
        raise ConfigError("the policy is int8 already")
    seen = _observations(policy, data, num)

    def run() -> None:
        with track("calibrate", len(seen)) as bar:
            for one in seen:
                policy.act(one)
                bar.advance()

    found = quantise(policy.model, policy_layers(policy.model), run, max_error)
    weights, pipeline = policy.model.state_dict(), replace(policy.pipeline, lerobot=None)
    with new_folder(out) as folder:
        write_policy(folder, weights, policy.model.cfg, pipeline)
        write_json(folder / REPORT, {"max_error": max_error, "layers": [vars(layer) for layer in found]})
    return found


def _observations(policy: Policy, data: Path | None, num: int) -> Sequence[Observation]:
    if num < 1:
        raise ConfigError(f"{num} observations are too few to calibrate with: take at least 1")
    if data is None:
        seen, states_from = fit_scenes(policy.pipeline, NUM_SCENES)
        if num > len(seen):
            raise ConfigError(f"there are {len(seen)} scenes, not {num}: name --data for more observations")
        console.print(f"calibrating on {num} simulated scenes, states from {states_from}")
        return seen[:num]
    dataset = LeRobotDataset(data)
    total, num = len(dataset.state), min(num, len(dataset.state))
    return [dataset.observe(total * i // num) for i in range(num)]
