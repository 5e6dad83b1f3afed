"""SmolVLA: a truncated VLM reads the scene once, an action expert turns noise into a chunk of actions."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailorbird.model.cache import KV, DenseCache
from tailorbird.model.config import VLAConfig
from tailorbird.model.expert import CrossBlock, Expert, View, view_of
from tailorbird.model.flow import integrate
from tailorbird.model.vlm import VLM
from tailorbird.types import Inputs


class Prefix(NamedTuple):
    """What the expert needs of images, words and state. Made once per observation."""

    layers: list[KV]  # one an expert layer, (B, K, S, D)
    valid: Tensor  # (B, S)

    def repeat(self, times: int) -> "Prefix":
        """Each row `times` times in a row, for several noises per observation."""
        layers = [KV(*(part.repeat_interleave(times, dim=0) for part in kv)) for kv in self.layers]
        return Prefix(layers, self.valid.repeat_interleave(times, dim=0))


def embed_time(t: Tensor, width: int, min_period: float, max_period: float) -> Tensor:
    """Sines, then cosines, of periods spaced geometrically. t: (B,). Returns (B, width), fp32."""
    fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=t.device)
    period = min_period * (max_period / min_period) ** fraction
    angle = t[:, None].double() * (2 * math.pi / period)  # (B, width / 2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


class VLA(nn.Module):
    """Source: SmolVLA, arXiv:2506.01844, as lerobot runs it; equality: tests/parity/test_smolvla.py.

    The VLM, the expert and the layers at its ends may have different dtypes: values are cast between them.
    """

    def __init__(self, cfg: VLAConfig) -> None:
        super().__init__()
        self.cfg = cfg
        width = cfg.expert.width
        self.vlm = VLM(cfg.vlm)
        self.expert = Expert(cfg.vlm.decoder, cfg.expert)
        self.state_in = nn.Linear(cfg.state_dim, cfg.vlm.decoder.width)
        self.action_in = nn.Linear(cfg.action_dim, width)
        self.time_in = nn.Linear(2 * width, width)
        self.time_out = nn.Linear(width, width)
        self.action_out = nn.Linear(width, cfg.action_dim)

    def narrow(self, dtype: torch.dtype) -> "VLA":
        """Take the dtypes of the release, with `dtype` for its bf16: some tensors are fp32 whatever it is.

        Works on the meta device too, where it says in which dtype each weight is to be loaded.
        """
        cross = [block.attn for block in self.expert.blocks if isinstance(block, CrossBlock)]
        ends = {self.state_in, self.action_in, self.time_in, self.time_out, self.action_out}
        # fp32: actions, times and states differ by less than bf16 resolves; the keys are as in the release
        wide = ends.union(*({attn.key, attn.value} for attn in cross))
        for module in self.modules():
            for value in module.parameters(recurse=False):
                value.data = value.data.to(torch.float32 if module in wide else dtype)
        return self

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Tokens of the cameras, one after the other, each between its start and end tokens.

        Those two are not scaled, unlike the image's own.

        pixels: (B, N, 3, image_size, image_size). Returns (B, places, C).
        """
        cfg, pixels = self.cfg, pixels.to(self.vlm.vision.dtype)
        images = self.vlm.encode_images(pixels.flatten(0, 1)) * math.sqrt(cfg.vlm.decoder.width)
        marks = [pixels.new_full((1,), i, dtype=torch.long) for i in cfg.image_start + cfg.image_end]
        if not marks:
            return images.unflatten(0, pixels.shape[:2]).flatten(1, 2)  # (B, N * tokens, C)
        around = self.vlm.decoder.embed(torch.cat(marks))  # (start + end, C)
        start, end = (
            part.expand(images.shape[0], -1, -1)
            for part in around.tensor_split([len(cfg.image_start)])  # (B * N, start or end, C)
        )
        x = torch.cat([start, images, end], dim=1)  # (B * N, start + tokens + end, C)
        x = x.unflatten(0, pixels.shape[:2]).flatten(1, 2)  # (B, N * (start + tokens + end), C)
        empty = around.repeat(cfg.empty_images, 1)  # (empty * (start + end), C)
        return torch.cat([x, empty.expand(x.shape[0], -1, -1)], dim=1)  # (B, places, C)

    def encode(self, seen: Inputs) -> Prefix:
        """Read observations.

        Images and words see each other, the state sees both, nothing else sees the state.
        """
        images = self.embed_images(seen.pixels)  # (B, places, C)
        words = self.vlm.decoder.embed(seen.ids) * math.sqrt(self.cfg.vlm.decoder.width)  # (B, T, C)
        state = self.state_in(seen.state.to(self.state_in.weight.dtype))  # (B, C)
        scene, state = torch.cat([images, words], dim=1).to(words.dtype), state[:, None].to(words.dtype)
        # in a frozen VLM only the state's token has gradients: read after the rest, it keeps them to itself
        apart = state.requires_grad and not scene.requires_grad
        parts = [scene, state] if apart else [torch.cat([scene, state], dim=1)]  # (B, S, C) together
        valid = F.pad(seen.ids_valid, (images.shape[1], 1), value=True)  # (B, S)
        mask = valid[:, None, None].repeat(1, 1, valid.shape[1], 1)  # (B, 1, S, S)
        mask[..., :-1, -1] = False
        positions = valid.cumsum(-1) - 1  # (B, S)
        return Prefix(self.read(parts, positions, mask), valid)

    def read(self, parts: list[Tensor], positions: Tensor, mask: Tensor) -> list[KV]:
        """Keys and values for the expert of an embedded prefix, (B, S, C), in parts of its places."""
        cache = DenseCache()
        for part in parts:
            new = slice(cache.length, cache.length + part.shape[1])
            self.vlm.decoder.fill(part, cache, positions[:, new], mask[:, :, new, : new.stop])
        return self.expert.project(cache.layers)

    def velocity(self, x_t: Tensor, t: Tensor, prefix: Prefix, view: View | None = None) -> Tensor:
        """Predict dx/dt.

        Args:
            x_t: (B, L, A), normalised.
            t: (B,), in [0, 1].
            view: the expert's, if it was made already.
        Returns:
            (B, L, A).
        """
        cfg = self.cfg
        time = embed_time(t, cfg.expert.width, cfg.min_period, cfg.max_period)  # (B, C)
        return self.step(x_t, time, prefix.layers, view or self.view(prefix, x_t.shape[1]))

    def view(self, prefix: Prefix, num: int) -> View:
        return view_of(self.cfg.vlm.decoder, prefix.valid, num)

    def step(self, x_t: Tensor, time: Tensor, layers: list[KV], view: View) -> Tensor:
        """`velocity` of what does not change on the way. time: (B, C).

        What comes before and after the expert is in fp32 in the release.
        """
        actions = self.action_in(x_t.to(self.action_in.weight.dtype))  # (B, L, C)
        time = time.to(actions.dtype)[:, None].expand_as(actions)
        x = torch.cat([actions, time], dim=-1)  # (B, L, 2C)
        x = self.time_out(F.silu(self.time_in(x)))  # (B, L, C)
        x = self.expert(x.to(self.expert.dtype), layers, view)
        return self.action_out(x.to(self.action_out.weight.dtype))  # (B, L, A)

    def sample(self, prefix: Prefix, noise: Tensor) -> Tensor:
        """Turn noise (B, L, A) into a normalised chunk of actions (B, L, A)."""
        cfg, view = self.cfg, self.view(prefix, noise.shape[1])
        return integrate(lambda x, t: self.velocity(x, t, prefix, view), noise, cfg.num_steps, cfg.solver)

    def forward(self, seen: Inputs, x_t: Tensor, t: Tensor) -> Tensor:
        """Training: the velocity at x_t, (B * R, L, A), for R noises per observation in neighbouring rows."""
        return self.velocity(x_t, t, self.encode(seen).repeat(x_t.shape[0] // len(seen.ids)))
