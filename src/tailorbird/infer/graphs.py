"""CUDA graphs: what a call launches, recorded once for its sizes, replayed as a whole. The exact tier.

It has not run on a GPU yet: tests/infer/test_graphs.py does where there is one.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailorbird.model.cache import KV
from tailorbird.model.flow import Guide
from tailorbird.model.vla import VLA, Reading

WARM_UP = 3  # calls before the recording: libraries set up their workspaces
KEPT = 8  # recordings; each keeps its intermediate results
WORDS = 16  # instructions are padded to a multiple of it, so that not every length is recorded


class _Recording(NamedTuple):
    inputs: tuple[Tensor, ...]  # static: written before a replay
    outputs: tuple[Tensor, ...]  # static: read after it
    replay: Callable[[], None]


class Replayed:
    """A function of tensors whose work depends on their sizes alone. Bit for bit what the function returns.

    Calls from several threads wait for each other. A CPU records nothing: the function is called there, on
    the same static tensors.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self._function = function
        self._recordings: OrderedDict[tuple[object, ...], _Recording] = OrderedDict()
        self._lock = threading.Lock()

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with self._lock:
            return self._call(inputs)

    def _call(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        key = tuple((value.shape, value.dtype, value.device) for value in inputs)
        if key not in self._recordings:
            while len(self._recordings) >= KEPT:
                self._recordings.popitem(last=False)
            self._recordings[key] = self._record(inputs)
        self._recordings.move_to_end(key)
        found = self._recordings[key]
        for static, value in zip(found.inputs, inputs, strict=True):
            static.copy_(value, non_blocking=True)
        found.replay()
        return tuple(output.clone() for output in found.outputs)  # the next replay writes there again

    def _record(self, inputs: tuple[Tensor, ...]) -> _Recording:
        static = tuple(value.clone() for value in inputs)
        if static[0].is_cuda:
            with torch.cuda.device(static[0].device):
                return self._capture(static)
        outputs = self._function(*static)

        def call() -> None:
            for held, new in zip(outputs, self._function(*static), strict=True):
                held.copy_(new)

        return _Recording(static, outputs, call)

    def _capture(self, static: tuple[Tensor, ...]) -> _Recording:
        side, now = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(now)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._function(*static)
        now.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "error", ".*graph is empty.*"
            )  # recorded on another device: only a warning
            # memory that other threads ask for meanwhile is none of this recording's business
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                outputs = self._function(*static)
        return _Recording(static, outputs, graph.replay)


class ReplayedVLA(VLA):
    """A policy with three kinds of recordings, for each number of robots, cameras and words.

    Of the image tower, of reading a scene, and of acting on one: the last alone is a tick that reuses what
    was read. It shares the model's weights, and acts as it does, bit for bit if the instruction has a
    multiple of `WORDS` tokens, else to the rounding that padding costs. A gradient is never recorded.
    """

    def __init__(self, model: VLA) -> None:
        nn.Module.__init__(self)
        self.cfg, self.vlm, self.expert = model.cfg, model.vlm, model.expert
        for name in ("state_in", "action_in", "time_in", "time_out", "action_out"):
            self.add_module(name, model.get_submodule(name))
        self._see, self._look = Replayed(self._flat_see), Replayed(self._flat_look)
        self._act_on, self._go_on = Replayed(self._flat_act_on), Replayed(self._flat_go_on)

    def see(self, pixels: Tensor) -> Tensor:
        return self._see(pixels)[0]

    def look(self, sights: Tensor, ids: Tensor, ids_valid: Tensor) -> Reading:
        room = -ids.shape[1] % WORDS
        return self._reading(self._look(sights, F.pad(ids, (0, room)), F.pad(ids_valid, (0, room))))

    def act_on(self, scene: Reading, state: Tensor, noise: Tensor, guide: Guide | None = None) -> Tensor:
        if guide is None:
            return self._act_on(state, noise, *_flat(scene))[0]
        if not self.cfg.max_delay:
            return super().act_on(scene, state, noise, guide)
        return self._go_on(guide.target, guide.weight, state, noise, *_flat(scene))[0]

    def _flat_see(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return (super().see(pixels),)

    def _flat_look(self, sights: Tensor, ids: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        return _flat(super().look(sights, ids, valid))

    def _flat_act_on(self, state: Tensor, noise: Tensor, *scene: Tensor) -> tuple[Tensor, ...]:
        return (super().act_on(self._reading(scene), state, noise),)

    def _flat_go_on(
        self, target: Tensor, weight: Tensor, state: Tensor, noise: Tensor, *scene: Tensor
    ) -> tuple[Tensor, ...]:
        return (super().act_on(self._reading(scene), state, noise, Guide(target, weight)),)

    def _reading(self, flat: Sequence[Tensor]) -> Reading:
        valid, *kv = flat
        pairs = [KV(k, v) for k, v in zip(kv[::2], kv[1::2], strict=True)]
        num = self.cfg.vlm.decoder.num_layers
        return Reading(pairs[:num], pairs[num:], valid)


def _flat(scene: Reading) -> tuple[Tensor, ...]:
    return (scene.valid, *(part for kv in [*scene.layers, *scene.projected] for part in kv))
