"""SmolVLA: a truncated VLM reads the scene once, an action expert turns noise into a chunk of actions."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailorbird.model.cache import KV, DenseCache
from tailorbird.model.config import Views, VLAConfig
from tailorbird.model.expert import CrossBlock, Expert, View, view_of
from tailorbird.model.flow import Guide, by_action, guided, held, integrate
from tailorbird.model.vlm import VLM
from tailorbird.types import Inputs


class Reading(NamedTuple):
    """What the decoder made of pictures and words: any state may be read over it, and none changes it."""

    layers: list[KV]  # one a decoder layer, as the decoder goes on from them, (B, K, S, D)
    projected: list[KV]  # one an expert layer, as the expert reads them, (B, K, S, D)
    valid: Tensor  # (B, S)


class Prefix(NamedTuple):
    """What the expert needs of images, words and state. Made once per observation."""

    layers: list[KV]  # one an expert layer, (B, K, S, D)
    valid: Tensor  # (B, S)

    def repeat(self, times: int) -> "Prefix":
        """Each row `times` times in a row, for several noises per observation."""
        layers = [KV(*(part.repeat_interleave(times, dim=0) for part in kv)) for kv in self.layers]
        return Prefix(layers, self.valid.repeat_interleave(times, dim=0))

    def clone(self) -> "Prefix":
        return Prefix([KV(kv.k.clone(), kv.v.clone()) for kv in self.layers], self.valid.clone())


def pool(sights: Tensor, views: Views) -> Tensor:
    """Tokens of the cameras, (B, N, tokens, C), in the places of one, (B, 1, tokens, C), unless "joint".

    "attention" weighs the cameras of each token by how alike they are to their mean; it has no parameters.
    The order of the cameras matters to rounding at most, and one alone stays as it is, bit for bit.
    """
    match views:
        case "joint":
            return sights
        case "mean":
            return sights.mean(1, keepdim=True)
        case "max":
            return sights.amax(1, keepdim=True)
        case "attention":
            alike = (sights * sights.mean(1, keepdim=True)).sum(-1, keepdim=True)  # (B, N, tokens, 1)
            weights = (alike.float() / math.sqrt(sights.shape[-1])).softmax(1)  # fp32: softmax input
            return (weights.to(sights.dtype) * sights).sum(1, keepdim=True)


def embed_time(t: Tensor, width: int, min_period: float, max_period: float) -> Tensor:
    """Sines, then cosines, of periods spaced geometrically. t: (...). Returns (..., width), fp32."""
    fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=t.device)
    period = min_period * (max_period / min_period) ** fraction
    angle = t[..., None].double() * (2 * math.pi / period)  # (..., width / 2)
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

    def see(self, pixels: Tensor) -> Tensor:
        """Encode pictures, each alone: (M, 3, image_size, image_size) to sights, (M, tokens, C).

        All go through the tower as one batch: there is nothing that CUDA streams could overlap.
        """
        return self.vlm.encode_images(pixels.to(self.vlm.vision.dtype))

    def embed_images(self, pixels: Tensor) -> Tensor:
        """`embed_sights` of cameras that are not encoded yet, (B, N, 3, image_size, image_size)."""
        return self.embed_sights(self._see_all(pixels))

    def _see_all(self, pixels: Tensor) -> Tensor:
        return self.see(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])  # (B, N, tokens, C)

    def embed_sights(self, sights: Tensor) -> Tensor:
        """Tokens of the cameras, one after the other, each between its start and end tokens.

        Pooled cameras are one picture: those two stand around it once. They are not scaled, unlike the
        image's own.

        sights: (B, N, tokens, C). Returns (B, places, C).
        """
        cfg = self.cfg
        images = pool(sights, cfg.views) * math.sqrt(cfg.vlm.decoder.width)  # (B, N or 1, tokens, C)
        marks = [sights.new_full((1,), i, dtype=torch.long) for i in cfg.image_start + cfg.image_end]
        if not marks:
            return images.flatten(1, 2)  # (B, places, C)
        around = self.vlm.decoder.embed(torch.cat(marks))  # (start + end, C)
        start, end = (
            part.expand(*images.shape[:2], -1, -1)
            for part in around.tensor_split([len(cfg.image_start)])  # (B, N or 1, start or end, C)
        )
        x = torch.cat([start, images, end], dim=2).flatten(1, 2)  # (B, (N or 1) * (start + tokens + end), C)
        empty = around.repeat(cfg.empty_images, 1)  # (empty * (start + end), C)
        return torch.cat([x, empty.expand(x.shape[0], -1, -1)], dim=1)  # (B, places, C)

    def look(self, sights: Tensor, ids: Tensor, ids_valid: Tensor) -> Reading:
        """Read pictures and words, which see each other. The slow half of a policy's call.

        Args:
            sights: (B, N, tokens, C), from `see`.
            ids, ids_valid: (B, T).
        """
        x, valid = self._embed_scene(sights, ids, ids_valid)
        mask = valid[:, None, None].expand(-1, -1, x.shape[1], -1)  # (B, 1, S, S)
        return Reading(*self.read(x, valid.cumsum(-1) - 1, mask, []), valid)

    def feel(self, scene: Reading, state: Tensor) -> Prefix:
        """Read a state, (B, state_dim): it sees pictures and words, and nothing of the VLM's sees it."""
        valid = F.pad(scene.valid, (0, 1), value=True)  # (B, S + 1)
        position, mask = scene.valid.sum(-1, keepdim=True), valid[:, None, None]  # (B, 1), (B, 1, 1, S + 1)
        _, own = self.read(self._embed_state(state), position, mask, scene.layers)
        return Prefix([_joined(*both) for both in zip(scene.projected, own, strict=True)], valid)

    def act_on(self, scene: Reading, state: Tensor, noise: Tensor, guide: Guide | None = None) -> Tensor:
        """The fast half of a policy's call: `feel`, then `sample`. Returns normalised actions (B, L, A)."""
        return self.sample(self.feel(scene, state), noise, guide)

    def encode(self, seen: Inputs) -> Prefix:
        """Read observations: `look`, then `feel`; in one pass where the VLM learns.

        There all places have gradients. In a frozen VLM only the state's token has any: read apart, it keeps
        them to itself.
        """
        sights = self._see_all(seen.pixels)
        if not (torch.is_grad_enabled() and any(value.requires_grad for value in self.vlm.parameters())):
            return self.feel(self.look(sights, seen.ids, seen.ids_valid), seen.state)
        scene, valid = self._embed_scene(sights, seen.ids, seen.ids_valid)
        x, valid = torch.cat([scene, self._embed_state(seen.state)], dim=1), F.pad(valid, (0, 1), value=True)
        mask = valid[:, None, None].repeat(1, 1, x.shape[1], 1)  # (B, 1, S, S)
        mask[..., :-1, -1] = False
        _, layers = self.read(x, valid.cumsum(-1) - 1, mask, [])
        return Prefix(layers, valid)

    def _embed_scene(self, sights: Tensor, ids: Tensor, ids_valid: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, C), and which places of it are valid, (B, S)."""
        images = self.embed_sights(sights)  # (B, places, C)
        words = self.vlm.decoder.embed(ids) * math.sqrt(self.cfg.vlm.decoder.width)  # (B, T, C)
        x = torch.cat([images, words], dim=1).to(words.dtype)  # (B, S, C)
        return x, F.pad(ids_valid, (images.shape[1], 0), value=True)  # (B, S)

    def _embed_state(self, state: Tensor) -> Tensor:
        x = self.state_in(state.to(self.state_in.weight.dtype))  # (B, C)
        return x[:, None].to(self.vlm.decoder.embed.weight.dtype)  # (B, 1, C)

    def read(self, x: Tensor, positions: Tensor, mask: Tensor, past: list[KV]) -> tuple[list[KV], list[KV]]:
        """Keys and values of the decoder's layers, and of the expert's, at new places.

        Args:
            x: (B, T, C), what is embedded there.
            positions: (B, T).
            mask: (B, 1, T, S + T), True where attention is allowed.
            past: the decoder's, of the S places before.
        Returns:
            (B, K, T, D) each.
        """
        cache = DenseCache(past)
        before = cache.length
        self.vlm.decoder.fill(x, cache, positions, mask)
        new = cache.since(before)
        return new, self.expert.project(new)

    def velocity(self, x_t: Tensor, t: Tensor, prefix: Prefix, view: View | None = None) -> Tensor:
        """Predict dx/dt.

        Args:
            x_t: (B, L, A), normalised.
            t: (B,), or (B, L) for each action its own, in [0, 1].
            view: the expert's, if it was made already.
        Returns:
            (B, L, A).
        """
        cfg = self.cfg
        time = embed_time(by_action(t), cfg.expert.width, cfg.min_period, cfg.max_period)  # (B, 1 or L, C)
        return self.step(x_t, time, prefix.layers, view or self.view(prefix, x_t.shape[1]))

    def view(self, prefix: Prefix, num: int) -> View:
        return view_of(self.cfg.vlm.decoder, prefix.valid, num)

    def step(self, x_t: Tensor, time: Tensor, layers: list[KV], view: View) -> Tensor:
        """`velocity` of what does not change on the way. time: (B, 1, C) or (B, L, C).

        What comes before and after the expert is in fp32 in the release.
        """
        actions = self.action_in(x_t.to(self.action_in.weight.dtype))  # (B, L, C)
        time = time.to(actions.dtype).expand_as(actions)
        x = torch.cat([actions, time], dim=-1)  # (B, L, 2C)
        x = self.time_out(F.silu(self.time_in(x)))  # (B, L, C)
        x = self.expert(x.to(self.expert.dtype), layers, view)
        return self.action_out(x.to(self.action_out.weight.dtype))  # (B, L, A)

    def sample(self, prefix: Prefix, noise: Tensor, guide: Guide | None = None) -> Tensor:
        """Turn noise (B, L, A) into a normalised chunk of actions (B, L, A).

        A policy that learned to go on from given actions, up to `cfg.max_delay`, takes a guide's frozen ones
        as they are, in any engine, and is free in all others: in those beyond `max_delay` too, of which it
        learned nothing. Any other policy is drawn towards all that the
        guide wants, by the network's gradient, which makes a step two to three times as dear.

        Raises:
            ConfigError: there is a guide to follow by gradient, and this engine computes none.
        """
        if guide is None or self.cfg.max_delay:
            return self._follow(prefix, noise, guide)
        with torch.inference_mode(False), torch.no_grad():  # what that mode made cannot be differentiated
            return self._follow(prefix.clone(), noise.clone(), guide)

    def _follow(self, prefix: Prefix, noise: Tensor, guide: Guide | None) -> Tensor:
        cfg, view = self.cfg, self.view(prefix, noise.shape[1])

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return self.velocity(x, t, prefix, view)

        if guide is None:
            return integrate(velocity, noise, cfg.num_steps, cfg.solver)
        if not cfg.max_delay:
            return integrate(guided(velocity, guide, cfg.num_steps), noise, cfg.num_steps, cfg.solver)
        frozen = guide.frozen & (torch.arange(noise.shape[1], device=noise.device) < cfg.max_delay)  # (B, L)
        start = torch.where(frozen[..., None], guide.target, noise)
        return integrate(held(velocity, frozen), start, cfg.num_steps, cfg.solver)

    def forward(self, seen: Inputs, x_t: Tensor, t: Tensor) -> Tensor:
        """Training: the velocity at x_t, (B * R, L, A), for R noises per observation in neighbouring rows."""
        return self.velocity(x_t, t, self.encode(seen).repeat(x_t.shape[0] // len(seen.ids)))


def _joined(first: KV, second: KV) -> KV:
    """One after the other, along the places."""
    return KV(torch.cat([first.k, second.k], dim=2), torch.cat([first.v, second.v], dim=2))
