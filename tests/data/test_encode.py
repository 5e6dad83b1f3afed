"""What a VLM learns from of one sample."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conversing import TILE, TOKENS, asked, noise, said, sample, small_processor

from tailorbird.data.config import ShowConfig
from tailorbird.data.encode import Encoded, Encoder
from tailorbird.data.sample import BadSample, Sample
from tailorbird.data.video import encode as encode_video
from tailorbird.errors import ConfigError
from tailorbird.processing.chat import CHATML, ImageItem, TextItem, VideoItem
from tailorbird.processing.tiles import LEVELS
from tailorbird.types import Rows

PROCESSOR = small_processor()
SQUARE = ImageItem(noise(9, 9))  # 5 tiles
MANY = 10_000


def encoder(
    *, tokens: int = MANY, tiles: int = 200, seed: int = 0, processor: Any = None, **show: Any
) -> Encoder:
    cfg = ShowConfig(**show)
    return Encoder(processor=processor or PROCESSOR, cfg=cfg, tokens=tokens, tiles=tiles, seed=seed)


def text(one: Encoded, *, learned: bool = False) -> str:
    ids = one.ids[one.learned] if learned else one.ids
    words = PROCESSOR.tokenizer.decode(ids.tolist(), skip_special=False)
    return words.replace("<image>" * TOKENS, "#")


WHOLE = "<fake_token_around_image><global-img>#<fake_token_around_image>"


def small(one: Sample, **options: Any) -> Encoded:
    """With pictures of one tile."""
    processor = replace(PROCESSOR, tiles=replace(PROCESSOR.tiles, split=False))
    return encoder(processor=processor, **options).encode(one, 0)


def test_without_options_the_tokens_are_those_of_the_prompt_and_its_answer() -> None:
    one = encoder().encode(asked(SQUARE, "What?"), 0)
    row = PROCESSOR.row(
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": noise(9, 9)}, {"type": "text", "text": "What?"}],
            },
            {"role": "assistant", "content": "a boat"},
        ],
        reply=False,
    )
    assert one.ids.tolist() == [token.id for token in row.tokens]
    assert one.learned.tolist() == [token.learned for token in row.tokens]
    assert text(one, learned=True) == " a boat<end_of_utterance>"
    assert (one.name, one.source, one.draw, one.fitted) == ("s", "set", 0, ())


@pytest.mark.parametrize("fast", [False, True])
def test_levels_become_the_pixels_of_the_processor_to_the_bit(fast: bool) -> None:
    processor = replace(PROCESSOR, fast=fast)
    conversation = [
        {"role": "user", "content": [{"type": "image", "image": noise(h, w)}]} for h, w in ((9, 9), (5, 20))
    ]
    row = processor.row(conversation, reply=False)
    levels, expected = processor.levels(row), processor.collate([row]).pixels
    assert levels is not None
    assert levels.dtype == torch.uint8
    assert levels.shape == (8, 3, TILE, TILE)
    nothing = torch.zeros(1, 1, dtype=torch.int64)
    rows = Rows(
        ids=nothing,
        positions=nothing,
        segment=nothing,
        learned=nothing > 0,
        pixels=levels,
        tiles=(8,),
        names=(),
        sources=(),
    )
    pixels = rows.to("cpu").pixels
    assert expected is not None
    torch.testing.assert_close(pixels, expected, rtol=0, atol=2e-7 if fast else 0)
    assert rows.to("cpu", torch.bfloat16).pixels.dtype == torch.bfloat16
    all_levels = replace(rows, pixels=torch.arange(256, dtype=torch.uint8)).to("cpu").pixels
    assert all_levels is not None
    assert np.array_equal(all_levels.numpy(), LEVELS)


def test_a_system_prompt_stands_before_conversations_that_bring_none() -> None:
    own = sample(said("system", "Mine."), said("user", "Hi"), said("assistant", "Ho"))
    assert text(small(asked("Hi"), system="Look.")).startswith(
        "<|im_start|>System: Look.<end_of_utterance>\nUser: Hi"
    )
    assert text(small(own, system="Look.")).startswith(
        "<|im_start|>System: Mine.<end_of_utterance>\nUser: Hi"
    )
    assert text(small(asked("Hi"))).startswith("<|im_start|>User: Hi")


def test_words_go_round_what_is_shown_as_in_the_published_recipe() -> None:
    words = {"image_intro": "Here are some images: ", "outro": "Now answer: "}
    assert text(small(asked(SQUARE, SQUARE, "What?"), **words)) == (
        f"<|im_start|>User: Here are some images: {WHOLE}{WHOLE}Now answer: What?<end_of_utterance>\n"
        "Assistant: a boat<end_of_utterance>\n"
    )
    assert "User: See ##it" not in text(small(asked("See ", SQUARE, "it"), **words))
    assert f"User: See {WHOLE}Now answer: it" in text(small(asked("See ", SQUARE, "it"), **words))
    assert text(small(asked("Hi"), **words)).startswith("<|im_start|>User: Hi<end")
    assert f"images: {WHOLE}<end_of_utterance>" in text(small(asked(SQUARE), **words))  # nothing to answer
    twice = sample(
        said("user", SQUARE, "Is?"),
        said("assistant", "Yes"),
        said("user", SQUARE, "Was?"),
        said("assistant", "No"),
    )
    shown = text(small(twice, **words))
    assert f"User: Here are some images: {WHOLE}Is?" in shown
    assert f"User:{WHOLE}Now answer: Was?" in shown
    assert text(small(twice, **words), learned=True) == " Yes<end_of_utterance> No<end_of_utterance>"


def test_a_video_is_announced_by_its_own_words() -> None:
    frames = VideoItem(np.stack([noise(8, 6)] * 4), fps=2.0)
    shown = text(small(asked(frames, "What?"), image_intro="Pictures: ", outro="Answer: "))
    assert "Pictures" not in shown
    assert "You are provided the following series of four frames" in shown
    assert "\n\nAnswer: What?" in shown


@pytest.mark.parametrize("at", [0, 1])
def test_no_place_of_an_image_is_ever_learned(at: int) -> None:
    shows = [said("user", "Draw."), said("assistant", "Here ", SQUARE, " it is")]
    one = encoder().encode(sample(*shows, said("user", SQUARE, "?"), said("assistant", "Paris")), at)
    images = one.ids == PROCESSOR.tokenizer.id("<image>")
    assert images.sum() == 2 * 5 * TOKENS
    assert not one.learned[images].any()
    assert not one.learned[0]
    assert text(one, learned=True) == " Here  it is<end_of_utterance> Paris<end_of_utterance>"


def test_tiles_on_the_long_side_are_drawn_with_the_chances_given_and_only_from_the_number_of_the_draw() -> (
    None
):
    ours = encoder(long_side=(0.0, 0.4, 0.3, 0.2, 0.1), seed=1)
    drawn = [ours._long_edges(draw)[0] // TILE for draw in range(4000)]
    shares = np.bincount(drawn, minlength=6) / 4000
    np.testing.assert_allclose(shares, [0, 0, 0.4, 0.3, 0.2, 0.1], atol=0.03)
    assert [ours._long_edges(draw)[0] // TILE for draw in range(4000)] == drawn
    one = ours.encode(asked(SQUARE, "What?"), 11)
    assert one.num_tiles == drawn[11] ** 2 + 1
    assert (one.ids == PROCESSOR.tokenizer.id("<image>")).sum() == one.num_tiles * TOKENS
    assert encoder(long_side=(0.0, 1.0), seed=2).encode(asked(SQUARE), 5).num_tiles == 5
    assert encoder(long_side=(1.0,)).encode(asked(SQUARE), 5).num_tiles == 1


def test_pictures_that_do_not_fit_a_row_are_shown_with_fewer_tiles() -> None:
    pair = asked(SQUARE, SQUARE, "What?")
    whole = encoder(long_side=(0.0, 0.0, 1.0)).encode(pair, 0)
    assert (whole.num_tiles, whole.fitted) == (20, ())
    by_tokens = encoder(long_side=(0.0, 0.0, 1.0), tokens=len(whole.ids) - 1).encode(pair, 0)
    assert (by_tokens.num_tiles, by_tokens.fitted) == (10, ("fewer tiles",))
    by_tiles = encoder(long_side=(0.0, 0.0, 1.0), tiles=9).encode(pair, 0)
    assert (by_tiles.num_tiles, by_tiles.fitted) == (2, ("fewer tiles",))
    for one in (by_tokens, by_tiles):
        assert text(one, learned=True) == " a boat<end_of_utterance>"
    with pytest.raises(BadSample, match="s: 2 of them, and a row has 1 tiles") as caught:
        encoder(tiles=1).encode(pair, 0)
    assert caught.value.reason == "too many pictures"


def test_what_is_too_long_all_the_same_is_cut_at_its_end_or_dropped() -> None:
    long = asked(SQUARE, "What?", answer="Paris and a boat " * 20)
    whole = small(long)
    cut = small(long, tokens=len(whole.ids) - 7)
    assert cut.ids.tolist() == whole.ids[:-7].tolist()
    assert cut.fitted == ("cut at the end",)
    assert cut.learned[-1]
    with pytest.raises(BadSample, match=f"{len(whole.ids)} tokens, and a row has 50") as caught:
        small(long, tokens=50, too_long="drop")
    assert caught.value.reason == "too long"
    with pytest.raises(BadSample, match="no answer is left of it in 15 tokens") as caught:
        small(long, tokens=15)
    assert caught.value.reason == "too long"


@pytest.mark.parametrize("num_frames", [3, 18, 40, 400])
def test_frames_are_spread_over_all_of_a_video(num_frames: int, tmp_path: Path) -> None:
    """A window of its middle was a bug of a published sampler."""
    ramp = np.linspace(0, 250, num_frames).astype(np.uint8)
    clip = VideoItem(np.broadcast_to(ramp[:, None, None, None], (num_frames, 12, 12, 3)), fps=10.0)
    one = encoder(max_frames=9).encode(asked(clip, "What?"), 0)
    wanted = min(max(round(num_frames / 10 * 2), 1), 9)
    assert one.num_tiles == wanted
    levels = one.levels.float().mean((1, 2, 3))
    if wanted > 1:
        skipped = 250 / 4 if num_frames == 400 else 1  # a second at both ends of a long one
        assert levels[0] <= skipped
        assert levels[-1] >= 250 - skipped
        steps = levels.diff()
        assert steps.max() - steps.min() < 250 / (num_frames - 1) + 3


def test_a_video_shows_as_many_frames_as_fit() -> None:
    clip = VideoItem(np.stack([noise(12, 12)] * 18), fps=2.0)
    whole = encoder(max_frames=9).encode(asked(clip, "What?"), 0)
    assert (whole.num_tiles, whole.fitted) == (9, ())
    assert encoder(max_frames=4).encode(asked(clip, "What?"), 0).num_tiles == 4
    assert encoder(max_frames=4).encode(asked(clip, clip, "What?"), 0).num_tiles == 4
    by_tiles = encoder(tiles=5).encode(asked(clip, "What?"), 0)
    assert (by_tiles.num_tiles, by_tiles.fitted) == (5, ("fewer frames",))
    shown = set()
    for tokens in range(len(whole.ids) - 1, len(whole.ids) - 100, -7):
        fewer = encoder(tokens=tokens, max_frames=9, outro="So: ").encode(asked(clip, "What?"), 0)
        assert len(fewer.ids) <= tokens
        assert text(fewer, learned=True) == " a boat<end_of_utterance>"
        assert fewer.fitted == ("fewer frames",)
        shown.add(fewer.num_tiles)
    assert len(shown) > 3


def test_a_video_file_and_pictures_share_a_row(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(encode_video(np.full((20, 16, 24, 3), 90, np.uint8), 5))
    one = encoder(tiles=13, long_side=(0.0, 1.0)).encode(asked(SQUARE, VideoItem(path), "What?"), 0)
    assert one.num_tiles == 5 + 8
    few = encoder(tiles=4, long_side=(0.0, 1.0)).encode(asked(SQUARE, VideoItem(path), "What?"), 0)
    assert few.fitted == ("fewer frames", "fewer tiles")
    assert few.num_tiles == 1 + 3


def bad_pictures(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 50)
    (tmp_path / "words.jpg").write_text("no picture")
    return {
        "missing picture": ImageItem(str(tmp_path / "none.png")),
        "no picture": ImageItem(tmp_path / "words.jpg"),
        "damaged picture": ImageItem(tmp_path / "cut.png"),
        "absurd size": ImageItem(np.zeros((1, 101, 3), np.uint8)),
        "missing video": VideoItem(str(tmp_path / "none.mp4")),
        "unreadable video": VideoItem(tmp_path / "words.jpg"),
    }


def test_what_cannot_be_used_is_refused_with_a_reason_to_count(tmp_path: Path) -> None:
    found = {}
    for reason, item in bad_pictures(tmp_path).items():
        with pytest.raises(BadSample, match=r"^row 7: ") as caught:
            encoder().encode(replace(asked(item, "What?"), name="row 7"), 0)
        found[reason] = caught.value.reason
    assert found == {reason: reason for reason in found}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ((), "empty conversation"),
        ((said("user", "Hi"),), "empty conversation"),
        ((said("user", "Hi"), said("assistant", " \n")), "empty conversation"),
        ((said("user"), said("assistant", "Ho")), "malformed conversation"),
        ((said("user", "half \ud800"), said("assistant", "Ho")), "malformed conversation"),
    ],
)
def test_conversations_without_an_answer_or_form_are_refused(messages: Any, reason: str) -> None:
    with pytest.raises(BadSample) as caught:
        encoder().encode(sample(*messages), 0)
    assert caught.value.reason == reason


def test_words_alone_are_learned_by_a_language_model_too() -> None:
    words = replace(PROCESSOR, chat=CHATML, tokens_per_tile=0)
    one = encoder(processor=words).encode(asked("Hi"), 0)
    assert one.levels is None
    assert one.num_tiles == 0
    with pytest.raises(BadSample, match="to a language model, which sees none"):
        encoder(processor=words).encode(asked(SQUARE), 0)


def test_tiles_cannot_be_drawn_for_pictures_that_are_shown_whole() -> None:
    with pytest.raises(ConfigError, match="needs pictures in tiles"):
        small(asked(SQUARE), long_side=(0.5, 0.5))
    with pytest.raises(ConfigError, match="chances that sum to 1"):
        ShowConfig(long_side=(0.5, 0.4))


def test_a_sample_is_not_changed_by_what_is_done_to_it() -> None:
    one = asked(SQUARE, "What?")
    encoder(system="S", image_intro="I", outro="O").encode(one, 0)
    assert one.messages[0].items[1] == TextItem("What?")
    assert one.messages[0].items[0] is SQUARE
