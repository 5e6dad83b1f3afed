"""The action expert: what it reads, and in which order it may look."""

import pytest
import torch
from torch import Tensor

from tailorbird.model.cache import KV, DenseCache
from tailorbird.model.config import DecoderConfig, ExpertConfig
from tailorbird.model.decoder import Decoder, DecoderBlock
from tailorbird.model.expert import CrossBlock, Expert, view_of

B, S, L = 2, 9, 5


@pytest.fixture
def prefix() -> list[KV]:
    return [KV(torch.randn(B, 3, S, 8), torch.randn(B, 3, S, 8)) for _ in range(4)]


@pytest.fixture
def valid() -> Tensor:
    return torch.arange(S) < torch.tensor([[S], [6]])


def expert_of(cfg: DecoderConfig, **fields: object) -> Expert:
    return Expert(cfg, ExpertConfig(**{"width": 18, "mlp_dim": 30, "num_layers": 4} | fields))  # type: ignore[arg-type]


def act(expert: Expert, x: Tensor, layers: list[KV], valid: Tensor) -> Tensor:
    return expert(x, layers, view_of(expert.cfg, valid, x.shape[1]))


@pytest.mark.parametrize(
    ("fields", "cross"),
    [
        ({}, [False, True, False, True]),
        ({"self_attn_every": 3}, [False, True, True, False]),
        ({"self_attn_every": 1}, [False] * 4),
        ({"attention": "self"}, [False] * 4),
        ({"attention": "cross"}, [True] * 4),
        ({"num_layers": 2, "self_attn_every": 4}, [False, True]),
        ({"num_layers": 2, "attention": "cross"}, [True, True]),
    ],
)
def test_the_configuration_says_which_layers_cross(
    decoder_config: DecoderConfig, fields: dict[str, object], cross: list[bool]
) -> None:
    blocks = expert_of(decoder_config, **fields).blocks
    assert [isinstance(block, CrossBlock) for block in blocks] == cross
    assert [isinstance(block, DecoderBlock) for block in blocks] == [not c for c in cross]


def test_an_expert_made_of_the_decoders_own_blocks_continues_the_decoder(
    decoder_config: DecoderConfig,
) -> None:
    decoder = Decoder(decoder_config)
    expert = expert_of(decoder_config, width=22, mlp_dim=26, attention="self")
    own = {name: value for name, value in decoder.state_dict().items() if name != "embed.weight"}
    expert.load_state_dict(own)
    x, cache = torch.randn(B, S + L, 22), DenseCache()
    decoder(x[:, :S], cache=cache)
    everything = torch.ones(B, S, dtype=torch.bool)
    continued = act(expert, x[:, S:], expert.project(cache.layers), everything)
    torch.testing.assert_close(continued, decoder(x)[:, S:], rtol=1e-5, atol=1e-5)


def test_actions_are_placed_right_after_the_words_that_exist(decoder_config: DecoderConfig) -> None:
    decoder = Decoder(decoder_config)
    expert = expert_of(decoder_config, width=22, mlp_dim=26, attention="self")
    expert.load_state_dict({k: v for k, v in decoder.state_dict().items() if k != "embed.weight"})
    x, cache = torch.randn(1, 6 + L, 22), DenseCache()
    padded = torch.cat([x[:, :6], torch.randn(1, 3, 22)], dim=1)  # three places of padding
    decoder(padded, cache=cache)
    valid = torch.arange(S)[None] < 6
    continued = act(expert, x[:, 6:], expert.project(cache.layers), valid)
    torch.testing.assert_close(continued, decoder(x)[:, 6:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["interleaved", "self"])  # without such a layer it sees no other
def test_an_action_sees_no_later_action(
    decoder_config: DecoderConfig, prefix: list[KV], valid: Tensor, attention: str
) -> None:
    expert = expert_of(decoder_config, attention=attention)
    x = torch.randn(B, L, 18)
    changed = x.clone()
    changed[:, 3] += 1
    layers = expert.project(prefix)
    before, after = act(expert, x, layers, valid), act(expert, changed, layers, valid)
    torch.testing.assert_close(before[:, :3], after[:, :3], rtol=0, atol=1e-6)
    assert ((before - after)[:, 3:].abs().amax(-1) > 1e-4).all()


def test_in_a_cross_layer_an_action_sees_the_prefix_but_no_other_action(
    decoder_config: DecoderConfig, prefix: list[KV], valid: Tensor
) -> None:
    block = expert_of(decoder_config).blocks[1]
    assert isinstance(block, CrossBlock)
    x, rope = torch.randn(B, L, 18), (torch.ones(1, 1, L, 8), torch.zeros(1, 1, L, 8))
    mask, read = valid[:, None, None], block.attn.project(prefix[1], torch.float32)
    changed = x.clone()
    changed[:, 2] += 1
    moved = (block(changed, rope, mask, read) - block(x, rope, mask, read)).abs().amax(-1) > 1e-6
    assert moved.tolist() == [[False, False, True, False, False]] * B
    other = block.attn.project(KV(prefix[1].k, prefix[1].v + 1), torch.float32)
    assert ((block(x, rope, mask, other) - block(x, rope, mask, read)).abs().amax(-1) > 1e-4).all()


def test_a_cross_layer_projects_keys_and_values_once_and_does_not_turn_them_again(
    decoder_config: DecoderConfig, prefix: list[KV]
) -> None:
    expert = expert_of(decoder_config)
    block = expert.blocks[1]
    assert isinstance(block, CrossBlock)
    with torch.no_grad():
        block.attn.key.weight.copy_(torch.eye(24))
        block.attn.value.weight.copy_(2 * torch.eye(24))
    read = expert.project(prefix)
    torch.testing.assert_close(read[1].k, prefix[1].k, rtol=0, atol=1e-6)
    torch.testing.assert_close(read[1].v, 2 * prefix[1].v, rtol=0, atol=1e-6)
    assert read[0].k is prefix[0].k
    assert read[0].v is prefix[0].v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_expert_reads_the_prefix_of_a_decoder_of_another_dtype(
    decoder_config: DecoderConfig, prefix: list[KV], valid: Tensor, dtype: torch.dtype
) -> None:
    expert, x = expert_of(decoder_config).to(dtype), torch.randn(B, L, 18)
    exact = expert_of(decoder_config)
    exact.load_state_dict(expert.state_dict())
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    rounded = [KV(kv.k.to(other), kv.v.to(other)) for kv in prefix]
    found = act(expert, x.to(dtype), expert.project(rounded), valid)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), act(exact, x, exact.project(prefix), valid), rtol=0, atol=0.1)


def test_where_all_layers_cross_no_action_sees_another(
    decoder_config: DecoderConfig, prefix: list[KV], valid: Tensor
) -> None:
    expert, x = expert_of(decoder_config, attention="cross"), torch.randn(B, L, 18)
    changed = x.clone()
    changed[:, 2] += 1
    layers = expert.project(prefix)
    moved = (act(expert, changed, layers, valid) - act(expert, x, layers, valid)).abs().amax(-1) > 1e-6
    assert moved.tolist() == [[False, False, True, False, False]] * B


def test_in_cross_layers_actions_count_from_zero_however_long_the_prefix_is(
    decoder_config: DecoderConfig, prefix: list[KV]
) -> None:
    expert = expert_of(decoder_config, self_attn_every=9)  # only layer 0 attends to the actions too
    torch.nn.init.zeros_(expert.blocks[0].attn.out.weight)
    x = torch.randn(B, L, 18)
    twice = [
        KV(kv.k.repeat(1, 1, 2, 1), kv.v.repeat(1, 1, 2, 1)) for kv in prefix
    ]  # weighs each key the same
    short, long = (
        act(expert, x, expert.project(read), torch.ones(B, num, dtype=torch.bool))
        for read, num in ((prefix, S), (twice, 2 * S))
    )
    torch.testing.assert_close(long, short, rtol=1e-4, atol=1e-5)


def test_what_is_padding_in_the_prefix_is_never_read(
    decoder_config: DecoderConfig, prefix: list[KV], valid: Tensor
) -> None:
    expert, x = expert_of(decoder_config), torch.randn(B, L, 18)
    before = act(expert, x, expert.project(prefix), valid)
    for kv in prefix:
        kv.k[1, :, 6:] = 50.0
        kv.v[1, :, 6:] = 50.0
    torch.testing.assert_close(act(expert, x, expert.project(prefix), valid), before, rtol=0, atol=1e-6)
    assert not torch.allclose(act(expert, x, expert.project(prefix), valid | True), before, atol=1e-2)


@pytest.mark.parametrize(("num_layers", "read"), [(4, [0, 1, 2, 3]), (2, [0, 2]), (1, [0])])
def test_expert_layer_i_reads_decoder_layer_i_times_the_stride(
    decoder_config: DecoderConfig, prefix: list[KV], valid: Tensor, num_layers: int, read: list[int]
) -> None:
    expert = expert_of(decoder_config, num_layers=num_layers, self_attn_every=4)
    x = torch.randn(B, L, 18)
    before = act(expert, x, expert.project(prefix), valid)
    matters = []
    for layer in range(4):
        other = [KV(kv.k, kv.v + (i == layer)) for i, kv in enumerate(prefix)]
        if not torch.allclose(act(expert, x, expert.project(other), valid), before, atol=1e-5):
            matters.append(layer)
    assert matters == read
