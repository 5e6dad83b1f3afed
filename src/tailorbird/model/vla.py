"""SmolVLA: a truncated VLM reads the scene once, an action expert turns noise into a chunk of actions."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailorbird.model.cache import KV, DenseCache
from tailorbird.model.config import VLAConfig
from tailorbird.model.expert import Expert
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
    """Source: SmolVLA, arXiv:2506.01844, as lerobot runs it."""

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

    def encode(self, seen: Inputs) -> Prefix:
        """Read observations.

        Images and words see each other, the state sees both, nothing else sees the state.
        """
        scale = math.sqrt(self.cfg.vlm.decoder.width)
        images = self.vlm.encode_images(seen.pixels.flatten(0, 1))  # (B * N, tokens, C)
        images = images.unflatten(0, seen.pixels.shape[:2]).flatten(1, 2)  # (B, N * tokens, C)
        words = self.vlm.decoder.embed(seen.ids)  # (B, T, C)
        x = torch.cat([images * scale, words * scale, self.state_in(seen.state)[:, None]], dim=1)  # (B, S, C)
        valid = F.pad(seen.ids_valid, (images.shape[1], 1), value=True)  # (B, S)
        mask = valid[:, None, None].repeat(1, 1, x.shape[1], 1)  # (B, 1, S, S)
        mask[..., :-1, -1] = False
        positions = valid.cumsum(-1) - 1  # (B, S)
        cache = DenseCache()
        self.vlm.decoder(x, positions, mask, cache)
        return Prefix(self.expert.project(cache.layers), valid)

    def velocity(self, x_t: Tensor, t: Tensor, prefix: Prefix) -> Tensor:
        """Predict dx/dt. x_t: (B, L, A), normalised; t: (B,). Returns (B, L, A)."""
        actions = self.action_in(x_t.to(self.action_in.weight.dtype))  # (B, L, C)
        time = embed_time(t, actions.shape[-1], self.cfg.min_period, self.cfg.max_period).to(actions.dtype)
        x = torch.cat([actions, time[:, None].expand_as(actions)], dim=-1)  # (B, L, 2C)
        x = self.time_out(F.silu(self.time_in(x)))  # (B, L, C)
        return self.action_out(self.expert(x, prefix.layers, prefix.valid))  # (B, L, A)

    def sample(self, prefix: Prefix, noise: Tensor) -> Tensor:
        """Turn noise (B, L, A) into a normalised chunk of actions (B, L, A)."""
        return integrate(lambda x, t: self.velocity(x, t, prefix), noise, self.cfg.num_steps)

    def forward(self, seen: Inputs, x_t: Tensor, t: Tensor) -> Tensor:
        """Training: the velocity at x_t, (B * R, L, A), for R noises per observation in neighbouring rows."""
        return self.velocity(x_t, t, self.encode(seen).repeat(x_t.shape[0] // len(seen.ids)))
