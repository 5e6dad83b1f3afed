"""The engine openvino against torch: logits to a tolerance, and the same words in fp32."""

import builtins
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import talk
import torch
from talk import DECODER, SEEING, letters
from torch import Tensor

import oracle
import tailorbird
from released import write_released
from tailorbird.errors import ConfigError
from tailorbird.infer.chat import open_model
from tailorbird.infer.config import ImageOptions, LoadOptions, Precision, Sampling
from tailorbird.infer.generate import generate, stream
from tailorbird.infer.tokens import every_logit
from tailorbird.infer.vlm_openvino import compile_vlm
from tailorbird.model.cache import StaticCache
from tailorbird.model.config import DecoderConfig
from tailorbird.model.lm import LM
from tailorbird.model.vlm import VLM
from tailorbird.types import Prompts

pytest.importorskip("openvino")

NEVER: frozenset[int] = frozenset()
LEAST_PCC: dict[Precision, float] = {"float32": 0.9999999, "bfloat16": 0.998, "int8": 0.998, "int4": 0.92}
GROUPED = DecoderConfig(  # wide enough for groups of int4 weights
    width=64, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=32, mlp_dim=128, vocab=talk.VOCAB
)


def compiled(model: LM | VLM, dtype: Precision = "float32") -> LM | VLM:
    own = copy.deepcopy(model)
    compile_vlm(own, dtype)
    return own


@pytest.fixture(scope="module")
def lms() -> tuple[LM | VLM, LM | VLM]:
    model = talk.build(DECODER)
    return model, compiled(model)


@pytest.fixture(scope="module")
def vlms() -> tuple[LM | VLM, LM | VLM]:
    model = talk.build(SEEING)
    return model, compiled(model)


def pcc(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.double().ravel(), other.double().ravel()]))[0, 1])


def said(model: LM | VLM, prompts: Prompts, num: int = 20, **settings: Any) -> list[list[int]]:
    sampling = Sampling(max_tokens=num, **settings)
    return [list(one.ids) for one in generate(model, prompts, sampling, end_ids=NEVER, decode=letters)]


@torch.inference_mode()
def steps_of(model: LM | VLM, ids: Tensor, later: Tensor) -> list[Tensor]:
    """Logits of a prompt (1, T), then of one token after the other."""
    cache = model.decoder.new_cache(ids.shape[1] + len(later))
    parts = [ids, *later[:, None, None]]
    return [model.logits(model.decoder(model.decoder.embed(part), cache=cache)) for part in parts]


def test_prefill_and_every_step_are_torchs_within_1e_5_in_fp32(lms: tuple[LM | VLM, LM | VLM]) -> None:
    ids, later = talk.words(9)[None], talk.words(6, 1)
    for exact, fast in zip(*(steps_of(model, ids, later) for model in lms), strict=True):
        torch.testing.assert_close(fast, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", LEAST_PCC)
@pytest.mark.parametrize("cfg", [DECODER, GROUPED], ids=["odd", "grouped"])
def test_logits_of_narrow_types_are_as_close_as_stated(cfg: DecoderConfig, dtype: Precision) -> None:
    model = talk.build(cfg)
    ids, later = talk.words(9)[None], talk.words(6, 1)
    exact, fast = (steps_of(one, ids, later) for one in (model, compiled(model, dtype)))
    whole = torch.cat([part.flatten() for part in exact]), torch.cat([part.flatten() for part in fast])
    assert pcc(*whole) > LEAST_PCC[dtype]


def test_int4_weights_are_int4_where_they_come_in_groups() -> None:
    """Otherwise the figures of int4 would be those of int8."""
    model = talk.build(GROUPED)
    ids, later = talk.words(9)[None], talk.words(6, 1)
    exact, *narrow = (
        steps_of(one, ids, later) for one in (model, compiled(model, "int8"), compiled(model, "int4"))
    )
    eight, four = (pcc(torch.cat(exact, 1), torch.cat(one, 1)) for one in narrow)
    assert four < eight - 1e-3


def test_the_tower_gives_torchs_tokens(vlms: tuple[LM | VLM, LM | VLM]) -> None:
    exact, fast = vlms
    assert isinstance(exact, VLM)
    assert isinstance(fast, VLM)
    for num in (1, 3):
        pixels = talk.pictures(num)
        assert pixels is not None
        torch.testing.assert_close(fast.encode_images(pixels), exact.encode_images(pixels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_images", range(3))
def test_greedy_words_are_the_oracles(vlms: tuple[LM | VLM, LM | VLM], num_images: int) -> None:
    exact, fast = vlms
    ids, pixels = talk.with_images(7, num_images), talk.pictures(num_images)
    assert said(fast, talk.batch([ids], pixels)) == [oracle.generate(exact, ids, pixels, 20, NEVER)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_padded_batch_say_what_torch_says(vlms: tuple[LM | VLM, LM | VLM], side: str) -> None:
    rows = [talk.with_images(6, 1, 0), talk.with_images(3, 2, 1), talk.words(4, 2)]
    prompts = talk.batch(rows, talk.pictures(3), side=side)
    assert said(vlms[1], prompts) == said(vlms[0], prompts)


def test_draws_and_penalties_are_torchs(lms: tuple[LM | VLM, LM | VLM]) -> None:
    prompts = talk.batch([talk.words(5), talk.words(8, 4)])
    settings = {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 3}
    assert said(lms[1], prompts, **settings) == said(lms[0], prompts, **settings)


def test_every_logit_is_torchs(vlms: tuple[LM | VLM, LM | VLM]) -> None:
    prompts = talk.batch([talk.with_images(6, 1), talk.words(4, 2)], talk.pictures(1))
    exact, fast = (every_logit(model, prompts)[prompts.valid] for model in vlms)
    torch.testing.assert_close(fast, exact, rtol=0, atol=2e-5)


def test_answers_one_after_the_other_and_side_by_side_do_not_mix(lms: tuple[LM | VLM, LM | VLM]) -> None:
    exact, fast = lms
    prompts = [talk.batch([talk.words(5)]), talk.batch([talk.words(8, 4)])]
    alone = [said(exact, one)[0] for one in prompts]
    assert [said(fast, one)[0] for one in prompts] == alone
    streams = [stream(fast, one, Sampling(max_tokens=20), end_ids=NEVER, decode=letters) for one in prompts]
    steps = list(zip(*streams, strict=True))  # a token of one, a token of the other
    assert [[row.id for step in steps for row in step[i] if row] for i in (0, 1)] == alone


def test_an_answer_stops_where_it_is_cancelled_or_closed(lms: tuple[LM | VLM, LM | VLM]) -> None:
    asked: list[int] = []
    prompts = talk.batch([talk.words(5)])
    [one] = generate(
        lms[1],
        prompts,
        Sampling(max_tokens=20),
        end_ids=NEVER,
        decode=letters,
        cancelled=lambda: (asked.append(1), len(asked) > 3)[1],
    )
    assert (one.reason, list(one.ids)) == ("cancelled", said(lms[0], prompts)[0][: len(one.ids)])
    assert 0 < len(one.ids) <= 3


@pytest.mark.parametrize("change", [{"tied": True}, {"num_kv_heads": 6}])
def test_a_head_that_is_the_embedding_and_heads_that_share_nothing_are_compiled_too(
    change: dict[str, Any],
) -> None:
    model = talk.build(replace(DECODER, **change))
    prompts = talk.batch([talk.words(6)])
    assert said(compiled(model), prompts) == said(model, prompts)


def test_a_cache_says_what_it_cannot(lms: tuple[LM | VLM, LM | VLM]) -> None:
    decoder = lms[1].decoder
    cache = decoder.new_cache(3)
    with pytest.raises(ConfigError, match=r"a cache of self\.max_length=3 positions cannot take 4 more"):
        decoder(decoder.embed(talk.words(4)[None]), cache=cache)
    with pytest.raises(ConfigError, match="not at hand: load with the engine torch"):
        cache.append(0, torch.zeros(1), torch.zeros(1))
    with pytest.raises(ConfigError, match="a StaticCache is not its own: make one with new_cache"):
        decoder(decoder.embed(talk.words(4)[None]), cache=StaticCache(9))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "vlm"
    write_released(path)
    return path


def test_a_loaded_model_answers_as_torch_does(folder: Path) -> None:
    unsplit = ImageOptions(split=False)
    exact = tailorbird.load_vlm(folder, device="cpu", images=unsplit)
    fast = open_model(str(folder), LoadOptions(engine="openvino"), unsplit)
    asked = tailorbird.ask("what?", images=[torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8).numpy()])
    short = Sampling(max_tokens=6)
    assert fast.chat(asked, short).ids == exact.chat(asked, short).ids
    assert "".join(fast.stream(asked, short)) == exact.chat(asked, short).text
    assert (fast.dtype, fast.device) == (torch.float32, torch.device("cpu"))
    torch.testing.assert_close(
        fast.logits(fast.encode(asked)), exact.logits(exact.encode(asked)), rtol=0, atol=1e-4
    )


def test_what_the_engine_cannot_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="does not compute in float16: name float32, bfloat16, int8, int4"):
        tailorbird.load_vlm(folder, engine="openvino", dtype="float16")
    with pytest.raises(ConfigError, match="computes on the cpu, not on cuda: take the engine torch"):
        tailorbird.load_vlm(folder, engine="openvino", device="cuda")
    with pytest.raises(ConfigError, match="there is no engine onnx: name torch, openvino"):
        tailorbird.load_vlm(folder, engine="onnx")  # type: ignore[arg-type]
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "openvino":
            raise ImportError("No module named 'openvino'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'tailorbird\[openvino\]', or take the engine torch"):
        tailorbird.load_vlm(folder, engine="openvino")
