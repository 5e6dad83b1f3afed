"""Norm, rotary positions and attention, each against a slow and obvious version."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tailorbird.model.config import DecoderConfig
from tailorbird.model.layers import GatedMLP, RMSNorm, SelfAttention, attend, rotary, rotate


def slow_rotate(x: Tensor, positions: list[int], theta: float) -> Tensor:
    """Multiply each pair (i, i + D/2), read as a complex number, by exp(i * position * frequency)."""
    half = x.shape[-1] // 2
    out = torch.empty_like(x)
    for place, position in enumerate(positions):
        for i in range(half):
            turn = torch.polar(torch.tensor(1.0), torch.tensor(position * theta ** (-i / half)))
            turned = torch.complex(x[..., place, i], x[..., place, i + half]) * turn
            out[..., place, i], out[..., place, i + half] = turned.real, turned.imag
    return out


def slow_attention(attn: SelfAttention, x: Tensor, cfg: DecoderConfig, theta: float) -> Tensor:
    """One query, head and row at a time."""
    num, size = x.shape[1], cfg.head_dim
    q, k, v = attn.qkv(x).split([n * size for n in (cfg.num_heads, cfg.num_kv_heads, cfg.num_kv_heads)], -1)
    rows = []
    for row in range(len(x)):
        heads = []
        for head in range(cfg.num_heads):
            group = head // (cfg.num_heads // cfg.num_kv_heads)
            mine, theirs = slice(head * size, (head + 1) * size), slice(group * size, (group + 1) * size)
            queries = slow_rotate(q[row, :, mine], list(range(num)), theta)
            keys = slow_rotate(k[row, :, theirs], list(range(num)), theta)
            out = []
            for i in range(num):
                scores = torch.stack([queries[i] @ keys[j] / math.sqrt(size) for j in range(i + 1)])
                out.append(scores.softmax(0) @ v[row, : i + 1, theirs])
            heads.append(torch.stack(out))
        rows.append(torch.cat(heads, dim=-1))
    return attn.out(torch.stack(rows))


@pytest.fixture
def attn(decoder_config: DecoderConfig) -> SelfAttention:
    return SelfAttention(decoder_config, 22)


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    norm = RMSNorm(2, eps=0.0)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 10.0]))
    expected = torch.tensor([2 * 3, 10 * 4]) / math.sqrt((9 + 16) / 2)
    torch.testing.assert_close(norm(torch.tensor([[3.0, 4.0]])), expected[None], rtol=1e-6, atol=0)


def test_rms_norm_of_zeros_is_zero_and_not_a_division_by_zero() -> None:
    assert torch.equal(RMSNorm(3, eps=1e-5)(torch.zeros(1, 3)), torch.zeros(1, 3))


def test_rms_norm_of_bf16_takes_its_statistics_in_fp32() -> None:
    norm, x = RMSNorm(300, eps=1e-5).bfloat16(), torch.randn(7, 300).bfloat16()
    wide = x.float()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    narrow = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
    got = norm(x)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, exact.bfloat16())
    assert not torch.equal(got, narrow)


def test_rotary_turns_pairs_of_the_two_halves_like_complex_numbers() -> None:
    x, positions = torch.randn(2, 3, 5, 8), [0, 1, 4, 7, 30]
    turned = rotate(x, rotary(torch.tensor([positions]), 8, 100.0))
    torch.testing.assert_close(turned, slow_rotate(x, positions, 100.0), rtol=1e-5, atol=1e-5)


def test_rotary_leaves_position_zero_as_it_is() -> None:
    x = torch.randn(2, 3, 1, 8)
    assert torch.equal(rotate(x, rotary(torch.tensor([[0]]), 8, 100.0)), x)


def test_rotary_scores_depend_only_on_the_distance() -> None:
    q, k, positions = torch.randn(1, 1, 5, 8), torch.randn(1, 1, 5, 8), torch.arange(5)[None]

    def scores(shift: int) -> Tensor:
        rope = rotary(positions + shift, 8, 100.0)
        return rotate(q, rope) @ rotate(k, rope).transpose(-1, -2)

    torch.testing.assert_close(scores(0), scores(37), rtol=1e-4, atol=1e-4)
    apart = rotate(q, rotary(positions + 1, 8, 100.0)) @ rotate(k, rotary(positions, 8, 100.0)).mT
    assert not torch.allclose(scores(0), apart, atol=1e-2)


def test_rotary_angles_tell_far_positions_apart_in_any_dtype() -> None:
    cos, sin = rotary(torch.tensor([[8190, 8191]]), 64, 100_000.0)
    assert cos.dtype == sin.dtype == torch.float32
    exact = [math.cos(8190), math.cos(8191)]  # the first pair turns by one radian a position
    torch.testing.assert_close(cos[0, 0, :, 0], torch.tensor(exact), rtol=0, atol=1e-5)


def test_attention_equals_one_head_and_query_at_a_time(
    attn: SelfAttention, decoder_config: DecoderConfig
) -> None:
    x, theta = torch.randn(2, 5, 22), decoder_config.rope_theta
    fast = attn(x, rotary(torch.arange(5)[None], 8, theta), None, None, 0)
    torch.testing.assert_close(fast, slow_attention(attn, x, decoder_config, theta), rtol=1e-5, atol=1e-5)


def test_grouped_queries_equal_full_attention_with_repeated_keys_and_values(
    attn: SelfAttention, decoder_config: DecoderConfig
) -> None:
    full = SelfAttention(replace(decoder_config, num_kv_heads=6), 22)
    q, k, v = attn.qkv.weight.split([48, 24, 24])
    k, v = (part.unflatten(0, (3, 8)).repeat_interleave(2, dim=0).flatten(0, 1) for part in (k, v))
    full.load_state_dict({"qkv.weight": torch.cat([q, k, v]), "out.weight": attn.out.weight})
    x, rope = torch.randn(2, 5, 22), rotary(torch.arange(5)[None], 8, 100.0)
    torch.testing.assert_close(
        attn(x, rope, None, None, 0), full(x, rope, None, None, 0), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_query_of_sixteen_bits_attends_as_each_head_alone_to_one_rounding(
    dtype: torch.dtype, masked: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    for length in (1, 7, 84, 513):
        q, k, v = (
            torch.randn(2, heads, num, 8, generator=generator).to(dtype)
            for heads, num in ((6, 1), (3, length), (3, length))
        )
        mask = torch.rand(2, 1, 1, length, generator=generator) < 0.7
        mask[..., -1] = True
        chosen = mask if masked else None
        whole = F.scaled_dot_product_attention(q, k, v, attn_mask=chosen, enable_gqa=True)
        found = attend(q, k, v, chosen)
        assert found.shape == whole.shape == (2, 6, 1, 8)
        torch.testing.assert_close(found, whole, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


def test_without_a_mask_nothing_sees_the_future(attn: SelfAttention) -> None:
    x, rope = torch.randn(2, 5, 22), rotary(torch.arange(5)[None], 8, 100.0)
    changed = x.clone()
    changed[:, 3] += 1
    before, after = attn(x, rope, None, None, 0), attn(changed, rope, None, None, 0)
    torch.testing.assert_close(before[:, :3], after[:, :3], rtol=0, atol=1e-6)
    assert ((before - after)[:, 3:].abs().amax(-1) > 1e-3).all()


def test_a_mask_says_exactly_who_sees_whom(attn: SelfAttention) -> None:
    x, rope = torch.randn(1, 4, 22), rotary(torch.arange(4)[None], 8, 100.0)
    mask = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]], dtype=torch.bool)[
        None, None
    ]
    before = attn(x, rope, mask, None, 0)
    for place in range(4):
        changed = x.clone()
        changed[:, place] += 1
        moved = (attn(changed, rope, mask, None, 0) - before).abs().amax(-1)[0] > 1e-4
        assert moved.tolist() == mask[0, 0, :, place].tolist()


def test_the_gated_mlp_is_down_of_silu_of_gate_times_up() -> None:
    mlp = GatedMLP(1, 2)
    mlp.load_state_dict(
        {
            "gate.weight": torch.tensor([[1.0], [0.0]]),
            "up.weight": torch.tensor([[3.0], [5.0]]),
            "down.weight": torch.tensor([[10.0, 100.0]]),
        }
    )
    silu = 2 / (1 + math.exp(-2))
    assert mlp(torch.tensor([[2.0]])).item() == pytest.approx(10 * silu * 6, rel=1e-6)
