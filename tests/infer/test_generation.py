"""The engine says what the slow and obvious loop says, and stops when it should."""

from dataclasses import replace
from typing import Any

import pytest
import talk
import torch
from talk import CONTEXT, DECODER, SEEING, letters
from torch import Tensor

import oracle
from tailorbird.errors import ConfigError, DataError
from tailorbird.infer.config import Sampling
from tailorbird.infer.generate import Generation, Piece, generate, stream
from tailorbird.infer.tokens import draw_tokens
from tailorbird.model.lm import LM
from tailorbird.model.vlm import VLM
from tailorbird.types import Prompts

NEVER: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def lm() -> LM:
    model = talk.build(DECODER)
    assert isinstance(model, LM)
    return model


@pytest.fixture(scope="module")
def vlm() -> VLM:
    model = talk.build(SEEING)
    assert isinstance(model, VLM)
    return model


def answer(model: LM | VLM, prompts: Prompts, **settings: Any) -> list[Generation]:
    end_ids = settings.pop("end_ids", NEVER)
    tiles_at_once = settings.pop("tiles_at_once", 8)
    sampling = Sampling(**{"max_tokens": 20} | settings)
    return generate(model, prompts, sampling, end_ids=end_ids, decode=letters, tiles_at_once=tiles_at_once)


def ids_of(answers: list[Generation]) -> list[list[int]]:
    return [list(one.ids) for one in answers]


@pytest.mark.parametrize("seed", range(4))
def test_words_alone_are_continued_as_the_oracle_does(lm: LM, seed: int) -> None:
    ids = talk.words(5 + seed, seed)
    [said] = answer(lm, talk.batch([ids]))
    assert list(said.ids) == oracle.generate(lm, ids, None, 20, NEVER)
    assert len(set(said.ids)) > 3  # it is not one token repeated


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_images", range(4))
def test_images_are_read_as_the_oracle_does(vlm: VLM, num_images: int, seed: int) -> None:
    ids, pixels = talk.with_images(7, num_images, seed), talk.pictures(num_images, seed)
    [said] = answer(vlm, talk.batch([ids], pixels))
    assert list(said.ids) == oracle.generate(vlm, ids, pixels, 20, NEVER)


def test_another_picture_gives_another_answer(vlm: VLM) -> None:
    ids = talk.with_images(4, 2)
    one, other = (answer(vlm, talk.batch([ids], talk.pictures(2, seed))) for seed in (0, 1))
    assert one[0].ids != other[0].ids


ROWS = [talk.with_images(6, 1, 0), talk.with_images(3, 2, 1), talk.words(4, 2), talk.words(9, 3)]


@pytest.mark.parametrize("pad", [0, 9])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_of_a_padded_batch_says_what_it_says_alone(vlm: VLM, side: str, pad: int) -> None:
    pixels = talk.pictures(3)
    assert pixels is not None
    together = answer(vlm, talk.batch(ROWS, pixels, side=side, pad=pad))
    own = [pixels[:1], pixels[1:], None, None]
    for row, said, seen in zip(ROWS, together, own, strict=True):
        assert list(said.ids) == oracle.generate(vlm, row, seen, 20, NEVER)
        assert said.num_prompt_tokens == len(row)


def test_padding_that_every_row_has_changes_nothing(lm: LM) -> None:
    prompts = talk.batch([talk.words(5)])
    wide = replace(
        prompts,
        ids=torch.nn.functional.pad(prompts.ids, (3, 2)),
        valid=torch.nn.functional.pad(prompts.valid, (3, 2)),
    )
    assert ids_of(answer(lm, wide)) == ids_of(answer(lm, prompts))


@pytest.mark.parametrize("settings", [{"temperature": 0.9}, {"temperature": 1.2, "top_k": 20, "top_p": 0.9}])
def test_draws_of_a_row_do_not_depend_on_its_neighbours(vlm: VLM, settings: dict[str, Any]) -> None:
    few, many = ([*ROWS[2:], ROWS[2]], [ROWS[2], talk.words(12, 5), ROWS[2], talk.words(2, 6)])
    short, long = (ids_of(answer(vlm, talk.batch(rows), **settings)) for rows in (few, many))
    assert short[0] == long[0]
    assert short[2] == long[2]
    assert short[0] != short[2]  # the same prompt, drawn twice


def test_a_seed_repeats_its_answer_and_another_gives_another(lm: LM) -> None:
    prompts = talk.batch([talk.words(5)])
    said = [ids_of(answer(lm, prompts, temperature=1.0, seed=seed)) for seed in (4, 4, 5)]
    assert said[0] == said[1] != said[2]


def test_tokens_of_a_rows_prompt_are_penalised_and_padding_is_not(lm: LM) -> None:
    rows = [talk.words(3, 1), talk.words(9, 2)]
    favourite = oracle.generate(lm, rows[0], None, 1, NEVER)[0]
    alone = answer(lm, talk.batch(rows[:1]), repetition_penalty=1.3)
    padded = answer(lm, talk.batch(rows, pad=favourite), repetition_penalty=1.3)
    assert alone[0].ids == padded[0].ids
    assert alone[0].ids != answer(lm, talk.batch(rows[:1]))[0].ids


@pytest.mark.parametrize("tiles_at_once", [1, 2, 5, 99])
def test_groups_of_tiles_give_what_all_at_once_give(
    vlm: VLM, tiles_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, pixels = talk.with_images(6, 5), talk.pictures(5)
    assert pixels is not None
    whole, encode, groups, placed = vlm.encode_images(pixels), vlm.encode_images, [], []

    def watched(group: Tensor) -> Tensor:
        groups.append(len(group))
        return encode(group)

    def place(ids: Tensor, features: Tensor) -> Tensor:
        placed.append(features)
        return VLM.place(vlm, ids, features)

    monkeypatch.setattr(vlm, "encode_images", watched)
    monkeypatch.setattr(vlm, "place", place)
    answer(vlm, talk.batch([ids], pixels), tiles_at_once=tiles_at_once)
    assert groups == [
        *[tiles_at_once] * (5 // tiles_at_once),
        *([5 % tiles_at_once] if 5 % tiles_at_once else []),
    ]
    torch.testing.assert_close(placed[0], whole, rtol=0, atol=1e-6)


def test_one_group_of_no_tiles_is_refused(vlm: VLM) -> None:
    with pytest.raises(ConfigError, match="tiles_at_once=0 must be at least 1"):
        answer(vlm, talk.batch([ROWS[2]]), tiles_at_once=0)


@pytest.fixture
def said(lm: LM) -> list[list[int]]:
    """What the rows of `talked` would say if nothing ended them."""
    return ids_of(answer(lm, talked()))


def talked() -> Prompts:
    return talk.batch([talk.words(5, 0), talk.words(8, 4)])


def test_an_end_token_ends_its_row_only_and_is_not_text(lm: LM, said: list[list[int]]) -> None:
    end = next(id_ for id_ in said[0][2:] if id_ not in said[1])
    at = said[0].index(end)
    one, other = answer(lm, talked(), end_ids=frozenset({end, 10_000}))
    assert (one.reason, list(one.ids)) == ("end", said[0][: at + 1])
    assert one.text == letters(said[0][:at])
    assert (other.reason, list(other.ids), other.text) == ("length", said[1], letters(said[1]))


def test_a_stop_string_over_several_tokens_ends_its_row_and_is_not_text(
    lm: LM, said: list[list[int]]
) -> None:
    stop = letters(said[0][4:7])
    cut = letters(said[0]).index(stop)
    assert stop not in letters(said[1])
    one, other = answer(lm, talked(), stop=("never said", stop))
    assert (one.reason, one.text) == ("stop", letters(said[0])[:cut])
    assert list(one.ids) == said[0][: cut + 3]
    assert (other.reason, other.text) == ("length", letters(said[1]))


def test_the_text_held_for_a_stop_string_appears_when_the_answer_is_long_enough(
    lm: LM, said: list[list[int]]
) -> None:
    one, _ = answer(lm, talked(), stop=(letters(said[0][-2:]) + "?",))
    assert (one.reason, one.text) == ("length", letters(said[0]))


def test_no_token_is_drawn_when_all_rows_have_ended(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Tensor] = []
    forward = lm.decoder.forward

    def count(*args: Any) -> Tensor:
        calls.append(args[0])
        return forward(*args)

    monkeypatch.setattr(lm.decoder, "forward", count)
    answer(lm, talked(), end_ids=frozenset(range(talk.VOCAB)))
    assert [tuple(x.shape) for x in calls] == [(2, 8, 22)]
    calls.clear()
    answer(lm, talked(), max_tokens=3)
    assert [tuple(x.shape) for x in calls] == [(2, 8, 22), (2, 1, 22), (2, 1, 22)]


def test_only_the_last_position_of_a_prompt_becomes_logits(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    logits = lm.logits

    def watched(hidden: Tensor) -> Tensor:
        shapes.append(tuple(hidden.shape))
        return logits(hidden)

    monkeypatch.setattr(lm, "logits", watched)
    answer(lm, talked(), max_tokens=2)
    assert shapes == [(2, 1, 22)] * 2


def test_a_prompt_without_padding_needs_no_mask(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Tensor | None] = []
    forward = lm.decoder.forward

    def watched(x: Tensor, positions: Tensor | None, mask: Tensor | None, cache: Any) -> Tensor:
        masks.append(mask)
        return forward(x, positions, mask, cache)

    monkeypatch.setattr(lm.decoder, "forward", watched)
    answer(lm, talk.batch([talk.words(6, 1), talk.words(6, 2)]), max_tokens=3)
    assert masks == [None] * 3
    answer(lm, talked(), max_tokens=3)
    assert all(mask is not None for mask in masks[3:])


def test_an_answer_that_fills_the_context_ends_there_as_in_the_oracle(lm: LM) -> None:
    rows = [talk.words(CONTEXT - 4, 1), talk.words(CONTEXT, 2), talk.words(3, 3)]
    answers = answer(lm, talk.batch(rows), max_tokens=7)
    for row, said, num in zip(rows, answers, (5, 1, 7), strict=True):
        assert (said.reason, list(said.ids)) == ("length", oracle.generate(lm, row, None, num, NEVER))


def test_a_prompt_longer_than_the_context_is_refused(lm: LM) -> None:
    with pytest.raises(DataError, match=r"a prompt of 61 tokens does not fit the model's context of 60: "):
        answer(lm, talk.batch([talk.words(5), talk.words(CONTEXT + 1)]))


def pieces(lm: LM, **options: Any) -> Any:
    return stream(lm, talked(), Sampling(max_tokens=20), end_ids=NEVER, decode=letters, **options)


def test_a_stream_gives_a_piece_for_each_row_and_none_after_its_end(lm: LM, said: list[list[int]]) -> None:
    end = next(id_ for id_ in said[0][2:] if id_ not in said[1])
    at = said[0].index(end)
    steps = list(stream(lm, talked(), Sampling(max_tokens=20), end_ids=frozenset({end}), decode=letters))
    assert [step[1].id for step in steps] == said[1]
    assert [step[1].reason for step in steps] == [None] * 19 + ["length"]
    assert steps[at][0] == Piece(id=end, text="", reason="end")
    assert all(step[0] is None for step in steps[at + 1 :])


def test_closing_a_stream_stops_the_work(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    forward = lm.decoder.forward
    monkeypatch.setattr(lm.decoder, "forward", lambda *args: (calls.append(1), forward(*args))[1])
    steps = pieces(lm)
    next(steps)
    next(steps)
    steps.close()
    assert len(calls) == 2
    assert list(steps) == []


@pytest.mark.parametrize("allowed", [0, 3])
def test_cancelling_is_asked_before_each_token_and_keeps_what_was_said(
    lm: LM, said: list[list[int]], allowed: int
) -> None:
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > allowed

    answers = generate(
        lm, talked(), Sampling(max_tokens=20), end_ids=NEVER, decode=letters, cancelled=cancelled
    )
    assert len(asked) == allowed + 1
    for one, whole in zip(answers, said, strict=True):
        assert (one.reason, list(one.ids)) == ("cancelled", whole[:allowed])
        assert one.text == letters(whole[:allowed])


def test_a_row_that_ended_before_the_cancellation_keeps_its_reason(lm: LM, said: list[list[int]]) -> None:
    end = next(id_ for id_ in said[0][1:] if id_ not in said[1])
    turns = iter([False] * (said[0].index(end) + 2) + [True])
    answers = generate(
        lm,
        talked(),
        Sampling(max_tokens=20),
        end_ids=frozenset({end}),
        decode=letters,
        cancelled=lambda: next(turns),
    )
    assert [one.reason for one in answers] == ["end", "cancelled"]


def test_the_time_of_an_answer_runs_from_its_first_token_to_its_last(lm: LM, said: list[list[int]]) -> None:
    end = next(id_ for id_ in said[0][1:] if id_ not in said[1])
    one, other = answer(lm, talked(), end_ids=frozenset({end}))
    assert one.prefill_s == other.prefill_s > 0
    assert 0 < one.decode_s < other.decode_s


def test_gradients_are_not_recorded_and_the_consumer_is_left_as_it_was(lm: LM) -> None:
    for _ in zip(range(3), pieces(lm), strict=False):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "top_p": 0.9}])
def test_damaged_weights_are_an_error_and_not_an_answer(settings: dict[str, Any]) -> None:
    broken = talk.build(DECODER)
    broken.decoder.norm.weight[3] = torch.nan
    with pytest.raises(DataError, match=r"the logits of row 0 are not finite: the weights are damaged"):
        answer(broken, talked(), **settings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_takes_prompts_as_they_are(dtype: torch.dtype) -> None:
    model = talk.build(SEEING).to(dtype)
    ids, pixels = talk.with_images(4, 2), talk.pictures(2)
    [said] = answer(model, talk.batch([ids], pixels), temperature=0.5)
    assert len(said.ids) == 20


def test_places_tiles_and_pixels_that_disagree_are_refused(lm: LM, vlm: VLM) -> None:
    fits = talk.batch(ROWS[:2], talk.pictures(3))
    for prompts, message in (
        (replace(fits, tiles=(2, 1)), r"prompt 0 has 4 <image> places, its 2 tiles have 4 tokens each: 8"),
        (replace(fits, pixels=talk.pictures(2)), r"tiles=\(1, 2\) do not match pixels of 2 tiles"),
        (replace(fits, pixels=None), r"do not match pixels of 0 tiles"),
        (talk.batch(ROWS[:2], talk.pictures(3), pad=talk.IMAGE), r"prompt 0 has 5 <image> places"),
        (replace(fits, tiles=(3,)), r"2 prompts with tiles=\(3,\)"),
    ):
        with pytest.raises(DataError, match=message):
            answer(vlm, prompts)
    with pytest.raises(DataError, match="bring 3 tiles, and a language model alone has no eyes"):
        answer(lm, fits)


def test_an_empty_prompt_is_refused(lm: LM) -> None:
    prompts = talk.batch([talk.words(3), talk.words(0)])
    with pytest.raises(DataError, match=r"prompts of \[3, 0\] tokens: each needs at least one"):
        answer(lm, prompts)


def test_tokens_can_be_drawn_without_text(lm: LM, said: list[list[int]]) -> None:
    steps = list(draw_tokens(lm, talked(), Sampling(max_tokens=20)))
    assert [list(row) for row in zip(*steps, strict=True)] == said
