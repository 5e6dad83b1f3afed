"""tailorbird profile"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tailorbird.errors import ConfigError
from tailorbird.infer.config import ImageOptions, LoadOptions


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Say where the time of a policy's chunk goes, or of an answer from the processor to the last token.

    Examples: tailorbird profile runs/demo/policy --engine openvino --trace runs/call.json

    tailorbird profile HuggingFaceTB/SmolVLM2-256M-Video-Instruct --image cat.jpg --dtype bfloat16
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Folder of a policy or a model, or its id on the hub. A policy is shown a simulated scene."""
    trace: Path | None = None
    """Of a policy: write one call to this .json file, to be opened at ui.perfetto.dev."""
    image: Path | None = None
    """The picture; without one, 640 x 480 px of noise."""
    tokens: int = 32
    """Length of the answer that is reckoned with."""
    repeats: int = 3
    """Runs of each stage; the median counts."""
    images: Annotated[ImageOptions, tyro.conf.arg(name="")] = field(default_factory=ImageOptions)
    load: Annotated[LoadOptions, tyro.conf.arg(name="")] = field(default_factory=LoadOptions)

    def __call__(self) -> None:
        from tailorbird.perf.acting import is_policy

        if is_policy(self.model, self.load.revision):
            self._policy()
        elif self.trace is not None:
            raise ConfigError(f"{self.model} is no policy: --trace writes a policy's call")
        else:
            self._vlm()

    def _policy(self) -> None:
        from tailorbird.evals.scenes import fit_scenes
        from tailorbird.perf.acting import measure_policy, open_policy, table
        from tailorbird.perf.roofline import measure_device
        from tailorbird.perf.trace import check_name, write_trace
        from tailorbird.progress import console

        if self.image is not None:
            raise ConfigError("--image is for models that answer: a policy is shown a simulated scene")
        check_name(self.trace)
        policy = open_policy(self.model, self.load)
        (seen, *_), _ = fit_scenes(policy.pipeline, 2)
        device = measure_device(policy.device)
        console.print(table(measure_policy(policy, seen, device, repeats=self.repeats)))
        if self.trace is not None:
            write_trace(self.trace, policy, seen)
            console.print(f"{self.trace}: open it at ui.perfetto.dev")

    def _vlm(self) -> None:
        from tailorbird.infer.chat import open_model
        from tailorbird.perf.stages import measure, table
        from tailorbird.progress import console

        model = open_model(self.model, self.load, self.images)
        found = measure(model, self.image, num_tokens=self.tokens, repeats=self.repeats)
        console.print(table(found))
