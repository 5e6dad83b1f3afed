"""A policy's whole call as one file for other runtimes: ONNX, or torch.export's own."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tailorbird.checkpoint.policy import settings_of
from tailorbird.errors import CheckpointError, ConfigError
from tailorbird.infer.policy import Policy
from tailorbird.model.vla import VLA
from tailorbird.storage import new_file
from tailorbird.types import Inputs

INPUTS = ("pixels", "ids", "ids_valid", "state", "noise")
TOLERANCE = 1e-4  # of the largest action: other runtimes add in another order
INSTALL = "pip install 'tailorbird[onnx]'"
SINGLE_BYTES = 2_000_000_000  # protobuf, which ONNX is written in, ends at 2 GiB


class Call(nn.Module):
    """Prepared inputs and noise to normalised actions, all steps of the flow unrolled."""

    def __init__(self, model: VLA) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, ids: Tensor, ids_valid: Tensor, state: Tensor, noise: Tensor) -> Tensor:
        """pixels: (B, N, 3, s, s); ids, ids_valid: (B, T); state: (B, S); noise: (B, L, A), as the result."""
        seen = Inputs(pixels=pixels, ids=ids, ids_valid=ids_valid, state=state)
        return self.model.sample(self.model.encode(seen), noise)


def export_policy(policy: Policy, out: Path) -> float:
    """Write a policy as .onnx or .pt2, run it, and compare. The numbers of robots and of words are free.

    Its inputs are what `Pipeline.read` makes, its output is what `Pipeline.write` takes; the settings of both
    and the tokenizer are in the metadata of an .onnx, or in an extra file of a .pt2: "tailorbird".
    Chunks begin freely: what a robot is committed to is no input.

    Returns:
        The largest difference of an action from ours, in shares of the largest action.
    Raises:
        ConfigError: the name says no format, a package is missing, or the weights are int8.
        CheckpointError: the file does not act as the policy does; nothing is written.
    """
    if out.suffix not in (".onnx", ".pt2"):
        raise ConfigError(f"{out} says no format: name a file .onnx or .pt2")
    kinds = {value.dtype for value in policy.model.state_dict().values()}
    if type(policy.model) is not VLA or kinds != {torch.float32}:
        raise ConfigError(
            "only what is in float32 and not compiled is exported: load it so, or what it was made from"
        )
    if out.suffix == ".onnx":
        _import_onnx()
        if (size := sum(value.nbytes for value in policy.model.state_dict().values())) > SINGLE_BYTES:
            raise ConfigError(f"{size / 1e9:.1f} GB do not fit into one file of ONNX: export as .pt2")
    call, model = Call(policy.model).eval(), policy.model
    example, other = (_inputs(policy, *sizes) for sizes in ((2, 5), (3, 7)))
    free = {0: Dim("robots", max=4096)}
    words = {**free, 1: Dim("words", max=model.cfg.vlm.decoder.max_positions // 2)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(call, example, dynamic_shapes=(free, words, words, free, free))
        expected = call(*other)
        with new_file(out) as temporary:
            run = _write_onnx if out.suffix == ".onnx" else _write_torch
            found = run(program, temporary, other, policy)
            error = float((found - expected).abs().max() / expected.abs().max())
            if not error <= TOLERANCE:
                raise CheckpointError(f"{out} would act otherwise: its actions are off by {error:.1e}")
    return error


def _inputs(policy: Policy, batch: int, words: int) -> tuple[Tensor, ...]:
    """Anything of the right sizes, the last word of one row missing."""
    cfg, draw = policy.model.cfg, torch.Generator().manual_seed(batch)
    side, cameras = cfg.vlm.vision.image_size, len(policy.pipeline.seen_cameras)
    valid = torch.ones(batch, words, dtype=torch.bool)
    valid[0, -1] = False
    return (
        torch.rand(batch, cameras, 3, side, side, generator=draw) * 2 - 1,
        torch.randint(cfg.vlm.decoder.vocab, (batch, words), generator=draw),
        valid,
        torch.randn(batch, cfg.state_dim, generator=draw),
        torch.randn(batch, cfg.chunk, cfg.action_dim, generator=draw),
    )


def _write_torch(program: ExportedProgram, path: Path, inputs: tuple[Tensor, ...], policy: Policy) -> Tensor:
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={"tailorbird": _settings(policy)})
    return torch.export.load(str(path)).module()(*inputs)


def _write_onnx(program: ExportedProgram, path: Path, inputs: tuple[Tensor, ...], policy: Policy) -> Tensor:
    onnxruntime = _import_onnx()
    made: Any = torch.onnx.export(
        program, dynamo=True, input_names=INPUTS, output_names=("actions",), verbose=False
    )
    made.model.metadata_props["tailorbird"] = _settings(policy)
    made.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=True)}
    (actions,) = session.run(None, feed)
    return torch.from_numpy(np.asarray(actions))


def _settings(policy: Policy) -> str:
    settings = settings_of(policy.model.cfg, policy.pipeline)
    return json.dumps({**settings, "tokenizer": policy.pipeline.tokenizer.json})


def _import_onnx() -> Any:
    """Raises ConfigError when a package is missing."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  what torch writes ONNX with
    except ImportError as error:
        raise ConfigError(f"ONNX cannot be written ({error}): {INSTALL}, or export as .pt2") from None
    return onnxruntime
