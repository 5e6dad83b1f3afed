"""tailorbird serve"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import tyro

from tailorbird.errors import ConfigError
from tailorbird.infer.config import PolicyEngine
from tailorbird.serve.config import ServeConfig


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve a policy to robots over websockets, in the protocols of openpi and vla-eval at once.

    Example: tailorbird serve policy runs/demo/policy --port 8000

    Then, on the robot: tailorbird.client.PolicyClient("ws://127.0.0.1:8000"), or openpi-client, or vla-eval.
    GET /healthz says OK once it is warm; GET /metrics is for Prometheus. SIGTERM ends it gracefully.

    For other machines, with a key and a certificate: TAILORBIRD_API_KEY=$(openssl rand -hex 32) tailorbird
    serve policy runs/demo/policy --host 0.0.0.0 --cert cert.pem --cert-key key.pem
    """

    what: tyro.conf.Positional[Literal["policy"]]
    """What to serve."""
    model: tyro.conf.Positional[str]
    """Folder or hub id of a policy: a checkpoint, what `demo` calls policy/, or a SmolVLA of lerobot."""
    settings: Annotated[ServeConfig, tyro.conf.arg(name="")] = field(default_factory=ServeConfig)
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ...; auto is the first GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Of the weights; auto leaves them as the policy's own layout has them."""
    engine: PolicyEngine = "torch"
    """torch and graphs are exact; openvino is faster on a CPU, to the tolerance that its tests state."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    rename: dict[str, str] = field(default_factory=dict)
    """The robot's names of cameras to the policy's."""
    without: tuple[str, ...] = ()
    """Cameras of the policy that the robot does not have."""
    stats: str | None = None
    """What to normalise with in a policy of lerobot."""
    replicas: int = 1
    """Copies of the policy, each in a process of its own on Ray; a robot stays with one."""
    ray: str = "local"
    """Where: a cluster's address, auto, or local, which starts one here. Its machines see the same files."""
    max_view_age_s: float = 0.0
    """How old a camera's last picture may be, when an observation has none of it; 0 refuses that."""

    def __call__(self) -> None:
        from tailorbird.infer.policy import load_policy
        from tailorbird.progress import console
        from tailorbird.serve.limits import load_keys, load_tls

        try:
            from tailorbird.serve.policy import serve_policy
            from tailorbird.serve.replicas import replicas
        except ImportError as error:
            raise ConfigError(f"{error}. Install what serves: pip install 'tailorbird[serve]'") from error
        load_keys(self.settings), load_tls(self.settings)  # what is refused need not load a policy first
        load = partial(
            load_policy,
            self.model,
            device=self.device,
            dtype=None if self.dtype == "auto" else self.dtype,
            engine=self.engine,
            revision=self.revision,
            rename=self.rename or None,
            without=self.without,
            stats=self.stats,
            max_view_age_s=self.max_view_age_s,
        )
        copies = nullcontext() if self.replicas == 1 else replicas(load, self.replicas, address=self.ray)
        with copies as more:
            say = console.print
            serve_policy(load(), self.settings, lambda url: say(f"serving {self.model} on {url}"), more)
