"""A VLM from components: what is kept, what is new and at which scale, and that the reference loads it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    SmolVLMForConditionalGeneration,
)

from small_gguf import CONFIG, TOKENS, Gguf
from tailorbird.checkpoint.gguf import read_gguf
from tailorbird.checkpoint.vlm import read_vlm
from tailorbird.cli.init import Init
from tailorbird.errors import CheckpointError, ConfigError, DataError
from tailorbird.model.init import NEAR_MEAN, draw_rows, resize_positions, rms
from tailorbird.processing.chat import SMOLVLM
from tailorbird.recipes.assemble import Assembled, assemble, init
from tailorbird.recipes.markers import add_markers
from tailorbird.recipes.parts import Parts

NUM_WORDS = len(TOKENS)
NUM_NEW = 183  # 265 + 128 = 393, up to 448


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 x 8 patches."""
    folder = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=48,
        patch_size=6,
    )
    model = SiglipVisionModel(config)
    torch.nn.init.normal_(model.post_layernorm.weight, 5, 3)  # trained towers are far from one, and uneven
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Llama in hub layout."""
    folder = tmp_path_factory.mktemp("text")
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=36,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=NUM_WORDS,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=True,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight, 0.05, 0.2)
    model.save_pretrained(folder)
    words = read_gguf(Gguf().write(folder / "words.gguf")).tokenizer
    (folder / "tokenizer.json").write_text(words, encoding="utf-8")
    return folder


@pytest.fixture
def parts(vision: Path, text: Path) -> Parts:
    return Parts(vision=str(vision), text=str(text), shuffle=2)


@pytest.fixture(scope="module")
def made(vision: Path, text: Path) -> Assembled:
    return assemble(Parts(vision=str(vision), text=str(text), shuffle=2))


def test_what_was_learned_is_kept_bit_for_bit(made: Assembled, vision: Path, text: Path) -> None:
    ours = made.model.state_dict()
    eyes, words = load_file(vision / "model.safetensors"), load_file(text / "model.safetensors")
    assert torch.equal(ours["vision.norm.weight"], eyes["post_layernorm.weight"])
    assert torch.equal(ours["vision.positions.weight"], eyes["embeddings.position_embedding.weight"])
    assert torch.equal(ours["decoder.blocks.1.mlp.up.weight"], words["model.layers.1.mlp.up_proj.weight"])
    embedding = words["model.embed_tokens.weight"]
    assert torch.equal(ours["decoder.embed.weight"][:NUM_WORDS], embedding)
    assert torch.equal(ours["head.weight"][:NUM_WORDS], embedding)  # the tied head begins as a copy
    assert not made.model.cfg.decoder.tied


def test_the_words_are_predicted_as_before_but_for_the_share_of_the_new_tokens(
    made: Assembled, text: Path
) -> None:
    """Old logits do not change, so the KL divergence is the logarithm of what the new tokens leave."""
    reference = LlamaForCausalLM.from_pretrained(text).eval()
    ids = torch.randint(3, NUM_WORDS, (4, 17), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before, after = reference(ids).logits, made.model(ids)
    torch.testing.assert_close(after[..., :NUM_WORDS], before, rtol=1e-5, atol=1e-5)
    told = before.log_softmax(-1)  # (B, T, V)
    divergence = (told.exp() * (told - after.log_softmax(-1)[..., :NUM_WORDS])).sum(-1)  # (B, T)
    assert divergence.max() < 1.1 * torch.tensor(1 + NUM_NEW / NUM_WORDS).log()
    assert divergence.mean() > 0.1 * torch.tensor(1 + NUM_NEW / NUM_WORDS).log()  # and they can be reached


def test_rows_near_the_mean_get_less_than_their_share_in_any_context() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(2000, 40, generator=generator) * torch.linspace(0.1, 2, 40) + 0.3
    rows = draw_rows(table, 100, NEAR_MEAN, generator)
    hidden = torch.randn(50, 40, generator=generator)
    old, new = (hidden @ table.T).exp().sum(-1), (hidden @ rows.T).exp().sum(-1)  # (T)
    assert (new / (old + new)).max() < 100 / 2100


def test_drawn_rows_have_the_mean_and_covariance_of_the_table() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(500, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 3
    rows = draw_rows(table, 40_000, 0.5, generator)
    scale = table.std()
    torch.testing.assert_close(rows.mean(0), table.mean(0), rtol=0, atol=0.02 * float(scale))
    torch.testing.assert_close(4 * rows.T.cov(), table.T.cov(), rtol=0.05, atol=0.05 * float(scale) ** 2)


def test_the_turn_ends_where_the_text_model_ended_it(made: Assembled) -> None:
    end, ended = made.processor.end_id, made.processor.tokenizer.id("<|im_end|>")
    assert made.end_ids == {end, ended}
    weights = made.model.state_dict()
    for name in ("decoder.embed.weight", "head.weight"):
        assert torch.equal(weights[name][end], weights[name][ended])


def test_new_words_are_as_large_as_old_ones_and_all_different(made: Assembled) -> None:
    table = made.model.decoder.embed.weight
    old, new = table[:NUM_WORDS], table[NUM_WORDS:]
    assert 0.8 < rms(new) / rms(old) < 1.25
    assert torch.cdist(new, new).fill_diagonal_(1).min() > 0.1 * torch.cdist(old, old).median()


def test_the_new_tokens_stand_in_the_released_order(made: Assembled) -> None:
    token = made.processor.tokenizer.id
    assert token("<global-img>") == NUM_WORDS
    rows = [token(f"<row_{row}_col_{col}>") for row in range(1, 7) for col in range(1, 7)]
    assert rows == list(range(NUM_WORDS + 1, NUM_WORDS + 37))
    assert token("<fake_token_around_image>") == NUM_WORDS + 37
    assert token("<image>") == NUM_WORDS + 38 == made.model.cfg.image_token_id
    assert token("<|reserved_special_token_0|>") == NUM_WORDS + 39
    assert token("<end_of_utterance>") == 447 == made.model.cfg.decoder.vocab - 1
    assert made.processor.tokenizer.vocab == 448


def test_a_text_model_of_49152_words_gets_the_released_ids() -> None:
    words = json.loads(read_tokenizer())
    for number in range(len(words["model"]["vocab"]), 49152):
        words["model"]["vocab"][f"word{number}"] = number
    grown = add_markers(json.dumps(words), 49152)
    assert grown.size == 49280
    names = ("<global-img>", "<row_1_col_1>", "<row_6_col_6>", "<fake_token_around_image>", "<image>")
    ids = [
        grown.tokenizer.id(name) for name in (*names, "<|reserved_special_token_87|>", "<end_of_utterance>")
    ]
    assert ids == [49152, 49153, 49188, 49189, 49190, 49278, 49279]
    assert grown.tokenizer.decode([0, 1, 2], skip_special=False) == "<|endoftext|><|im_start|><|im_end|>"


def read_tokenizer() -> str:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return read_gguf(Gguf().write(Path(folder) / "a.gguf")).tokenizer


def test_padding_of_the_embedding_is_taken_for_the_new_tokens() -> None:
    grown = add_markers(read_tokenizer(), 500)
    assert (grown.num_words, grown.size) == (NUM_WORDS, 512)
    assert grown.end_id == 511


@pytest.mark.parametrize("taken", ["<image>", "<row_2_col_3>"])
def test_a_tokenizer_that_has_the_tokens_already_is_refused(taken: str) -> None:
    words = json.loads(read_tokenizer())
    words["added_tokens"].append(words["added_tokens"][0] | {"id": NUM_WORDS, "content": taken})
    with pytest.raises(ConfigError, match="already: name a text model"):
        add_markers(json.dumps(words), NUM_WORDS + 1)


def test_a_tokenizer_that_cannot_speak_the_format_is_refused(
    parts: Parts, text: Path, tmp_path: Path
) -> None:
    words = (text / "tokenizer.json").read_text(encoding="utf-8").replace("<|im_start|>", "<|begin|>")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((text / name).read_bytes())
    (tmp_path / "tokenizer.json").write_text(words, encoding="utf-8")
    with pytest.raises(DataError, match=r"has no token <\|im_start\|>"):
        assemble(replace(parts, text=str(tmp_path)))


def test_a_tokenizer_larger_than_the_embedding_is_refused() -> None:
    with pytest.raises(ConfigError, match="265 tokens with ids up to 264, its embedding 200 rows"):
        add_markers(read_tokenizer(), 200)


def test_a_tokenizer_whose_ids_have_holes_is_refused() -> None:
    words = json.loads(read_tokenizer())
    words["model"]["vocab"]["far"] = 400
    with pytest.raises(ConfigError, match="266 tokens with ids up to 400, its embedding 500 rows"):
        add_markers(json.dumps(words), 500)


def other_pictures(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    ramp = torch.linspace(-1, 1, size).expand(3, size, size)
    return torch.stack([ramp, torch.rand(3, size, size, generator=generator) * 2 - 1, torch.zeros_like(ramp)])


def test_image_tokens_enter_as_large_as_words(made: Assembled) -> None:
    words = rms(made.model.decoder.embed.weight[:NUM_WORDS])
    with torch.inference_mode():
        for tokens in made.model.encode_images(other_pictures(48)):
            assert 0.7 < rms(tokens) / words < 1.4


def test_the_same_parts_give_the_same_model_and_another_seed_another(made: Assembled, parts: Parts) -> None:
    again, other = assemble(parts), assemble(replace(parts, seed=1))
    weights, seeded = made.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())
    assert {name for name, value in weights.items() if not torch.equal(value, seeded[name])} == {
        "connector.proj.weight",
        "decoder.embed.weight",
        "head.weight",
    }


@pytest.mark.parametrize("shuffle", [1, 2, 4, 8])
def test_every_ratio_that_divides_the_grid_works(shuffle: int, parts: Parts) -> None:
    made = assemble(replace(parts, shuffle=shuffle))
    assert made.processor.tokens_per_tile == made.model.cfg.tokens_per_image == (8 // shuffle) ** 2
    with torch.inference_mode():
        assert made.model.encode_images(other_pictures(48)).shape == (3, (8 // shuffle) ** 2, 36)


def test_a_ratio_that_does_not_divide_is_refused_with_those_that_do(parts: Parts) -> None:
    expected = (
        r"--shuffle 3 does not divide the grid of 8 x 8 .*take one of 1 \(64 tokens\), 2 \(16 tokens\), 4"
    )
    with pytest.raises(ConfigError, match=expected):
        assemble(replace(parts, shuffle=3))


def test_a_wrong_ratio_is_refused_before_a_fresh_tower_is_drawn(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        pytest.fail("a tower was drawn")

    monkeypatch.setattr("tailorbird.recipes.assemble.initialise_vision", never)
    monkeypatch.setattr("tailorbird.recipes.assemble.Vision", never)
    with pytest.raises(ConfigError, match="--shuffle 3 does not divide the grid of 32 x 32"):
        assemble(replace(parts, vision="fresh", shuffle=3))
    with pytest.raises(ConfigError, match="is smaller than one patch"):
        assemble(replace(parts, vision="fresh", image_size=8))


def test_size_ratio_theta_and_context_can_all_be_chosen(parts: Parts) -> None:
    made = assemble(replace(parts, image_size=36, shuffle=3, rope_theta=273e3, context=128))
    cfg = made.model.cfg
    assert (cfg.vision.image_size, cfg.vision.grid, cfg.shuffle, cfg.tokens_per_image) == (36, 6, 3, 4)
    assert (cfg.decoder.rope_theta, cfg.decoder.max_positions) == (273e3, 128)
    assert (made.processor.tiles.tile, made.processor.tiles.longest_edge) == (36, 144)
    with torch.inference_mode():
        assert made.model.encode_images(other_pictures(36)).shape == (3, 4, 36)
    said = "\n".join(made.notes)
    for loud in (
        "NOTE: the position embedding of 8 x 8 patches (48 px) was interpolated bicubically to 6 x 6 (36 px)",
        "NOTE: RoPE theta is 273000, the text model learned 5000",
        "NOTE: a context of 128 tokens, the text model learned 64",
    ):
        assert loud in said


def test_nothing_is_noted_that_was_not_changed(made: Assembled) -> None:
    assert "NOTE" not in "\n".join(made.notes)


def test_positions_on_the_same_grid_stay_and_a_ramp_stays_a_ramp() -> None:
    positions = torch.randn(25, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resize_positions(positions, 5), positions, rtol=1e-6, atol=1e-6)
    ramp = torch.arange(8.0).repeat(8)[:, None]  # (64, 1), grows along a row
    wide = resize_positions(ramp, 16).view(16, 16)
    torch.testing.assert_close(wide[3], wide[11])
    torch.testing.assert_close(wide[0, 4:12].diff(), torch.full((7,), 0.5), rtol=0, atol=1e-5)


def test_a_gguf_file_is_a_text_model_too(parts: Parts, tmp_path: Path) -> None:
    path = Gguf(cfg=replace(CONFIG, tied=False)).write(tmp_path / "a.gguf")
    made, tower = assemble(replace(parts, text=str(path))), read_gguf(path)
    assert tower.model.head is not None
    assert made.model.head is not None
    assert torch.equal(made.model.head.weight[:NUM_WORDS], tower.model.head.weight)
    assert "head its own" in "\n".join(made.notes)


def test_a_fresh_tower_says_that_it_is_random(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailorbird.recipes.assemble.VisionConfig", small_base)
    made = assemble(replace(parts, vision="fresh", image_size=64))
    assert "NOTE: the image tower is random" in "\n".join(made.notes)
    again = assemble(replace(parts, vision="fresh", image_size=64))
    weights = made.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())


def small_base(image_size: int = 512) -> object:
    from tailorbird.model.config import VisionConfig

    return VisionConfig(image_size=image_size, width=24, num_layers=1, num_heads=2, mlp_dim=32)


def test_the_reference_loads_what_is_saved_and_gives_the_same_logits(parts: Parts, tmp_path: Path) -> None:
    out = tmp_path / "vlm"
    init(replace(parts, dtype="float32"), out)
    read = read_vlm(out)
    assert read.processor.chat == SMOLVLM
    reference, report = SmolVLMForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report
    prompt = [
        {"role": "user", "content": [{"type": "image", "image": frame()}, {"type": "text", "text": "he?"}]}
    ]
    prompts = read.processor.encode([prompt])
    assert prompts.pixels is not None
    with torch.inference_mode():
        expected = reference.eval()(input_ids=prompts.ids, pixel_values=prompts.pixels[None]).logits
        torch.testing.assert_close(read.model(prompts.ids, prompts.pixels), expected, rtol=1e-5, atol=1e-5)


def frame() -> object:
    from PIL import Image

    return Image.linear_gradient("L").resize((40, 20))


def test_the_command_saves_in_bfloat16_and_says_what_it_made(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "vlm"
    words = ["--vision", parts.vision, "--text", parts.text, "--out", str(out), "--shuffle", "4"]
    tyro.cli(Init, args=words)()
    said = capsys.readouterr().out
    for expected in ("4 tokens per tile", "183 tokens, 265 to 447; vocabulary 448", f"model: {out}"):
        assert expected in said
    assert read_vlm(out).model.decoder.embed.weight.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="is not empty: choose another --out"):
        tyro.cli(Init, args=words)()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shuffle": 0}, "shuffle=0 must be at least 1"),
        ({"image_size": -1}, "image_size=-1 must be at least 1"),
        ({"image_size": 10**9}, "image_size=1000000000 must be at most 8192"),
        ({"context": 2**28 + 1}, "context=268435457 must be at most 268435456"),
        ({"rope_theta": 0.0}, "must be positive"),
        ({"seed": -1}, "must be in"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float], message: str, parts: Parts) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(parts, **wrong)


def test_nothing_is_left_behind_when_a_part_is_missing(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder here"):
        init(replace(parts, text="no/such/folder/here"), tmp_path / "vlm")
    assert list(tmp_path.iterdir()) == []
