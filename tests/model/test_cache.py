"""A cache must not be noticed, except in time."""

from dataclasses import replace

import pytest
import torch

from tailorbird.errors import ConfigError
from tailorbird.model.cache import KV, DenseCache, FrozenCache, StaticCache
from tailorbird.model.config import DecoderConfig
from tailorbird.model.decoder import Decoder


@pytest.fixture
def decoder(decoder_config: DecoderConfig) -> Decoder:
    return Decoder(decoder_config)


@pytest.mark.parametrize("splits", [[4, 1, 3, 3], [1] * 11, [10, 1], [11]])
def test_decoding_with_a_cache_equals_one_full_forward(decoder: Decoder, splits: list[int]) -> None:
    x, cache = torch.randn(2, 11, 22), DenseCache()
    parts = [decoder(part, cache=cache) for part in x.split(splits, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), decoder(x), rtol=1e-5, atol=1e-5)


def test_a_dense_cache_grows_by_what_it_is_given(decoder: Decoder) -> None:
    cache = DenseCache()
    assert cache.length == 0
    for num, length in ((4, 4), (1, 5), (3, 8)):
        decoder(torch.randn(2, num, 22), cache=cache)
        assert cache.length == length
    assert [tuple(kv.k.shape) for kv in cache.layers] == [(2, 3, 8, 8)] * 4


@pytest.mark.parametrize("max_length", [11, 17])
@pytest.mark.parametrize("splits", [[4, 1, 3, 3], [1] * 11, [10, 1], [11]])
def test_a_static_cache_gives_what_a_dense_one_gives_bit_for_bit(
    decoder: Decoder, splits: list[int], max_length: int
) -> None:
    static, dense = StaticCache(max_length), DenseCache()
    assert static.length == 0
    for part in torch.randn(2, 11, 22).split(splits, dim=1):
        assert torch.equal(decoder(part, cache=static), decoder(part, cache=dense))
        assert static.length == dense.length
    for ours, theirs in zip(static.layers, dense.layers, strict=True):
        assert torch.equal(ours.k[:, :, :11], theirs.k)
        assert torch.equal(ours.v[:, :, :11], theirs.v)


def test_a_static_cache_keeps_its_memory_and_returns_only_what_is_filled() -> None:
    cache = StaticCache(9)
    first = cache.append(0, torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 8))
    more = cache.append(0, torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8))
    assert first.k.shape == (2, 3, 4, 8)
    assert more.v.shape == (2, 3, 9, 8)
    assert first.k.data_ptr() == more.k.data_ptr()
    assert torch.equal(more.k[:, :, :4], first.k)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_static_cache_has_the_precision_of_what_it_is_given(dtype: torch.dtype) -> None:
    seen = StaticCache(3).append(0, torch.ones(1, 1, 2, 4, dtype=dtype), torch.ones(1, 1, 2, 4, dtype=dtype))
    assert seen.k.dtype == seen.v.dtype == dtype


def test_a_static_cache_that_is_full_says_so_and_stays_as_it_was(decoder: Decoder) -> None:
    cache = StaticCache(6)
    decoder(torch.randn(2, 5, 22), cache=cache)
    with pytest.raises(ConfigError, match=r"max_length=6 positions holds 5 and cannot take 2 more"):
        decoder(torch.randn(2, 2, 22), cache=cache)
    assert cache.length == 5


def test_a_frozen_cache_returns_the_new_positions_last_and_keeps_none() -> None:
    held = [KV(torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)) for _ in range(2)]
    copies = [KV(kv.k.clone(), kv.v.clone()) for kv in held]
    cache = FrozenCache(held)
    for num in (4, 1):
        k, v = torch.randn(2, 3, num, 8), torch.randn(2, 3, num, 8)
        seen = cache.append(1, k, v)
        assert torch.equal(seen.k, torch.cat([copies[1].k, k], dim=2))
        assert torch.equal(seen.v, torch.cat([copies[1].v, v], dim=2))
        seen.k.zero_()
        assert cache.length == 5
    for kv, copy in zip(cache.layers, copies, strict=True):
        assert torch.equal(kv.k, copy.k)
        assert torch.equal(kv.v, copy.v)


def test_a_prompt_continued_many_times_from_a_frozen_cache_equals_the_whole(decoder: Decoder) -> None:
    prompt, endings, cache = torch.randn(2, 6, 22), torch.randn(3, 2, 4, 22), DenseCache()
    decoder(prompt, cache=cache)
    frozen = FrozenCache(cache.layers)
    for ending in endings:
        whole = decoder(torch.cat([prompt, ending], dim=1))
        torch.testing.assert_close(decoder(ending, cache=frozen), whole[:, 6:], rtol=1e-5, atol=1e-5)


def test_padding_on_the_left_with_its_mask_and_positions_changes_nothing(decoder: Decoder) -> None:
    x = torch.randn(1, 5, 22)
    padded = torch.cat([torch.randn(1, 3, 22), x], dim=1)
    valid = torch.arange(8) >= 3
    mask = (valid & torch.ones(8, 8, dtype=torch.bool).tril() | torch.eye(8, dtype=torch.bool))[None, None]
    positions = (valid.cumsum(0) - 1).clamp(min=0)[None]
    torch.testing.assert_close(decoder(padded, positions, mask)[:, 3:], decoder(x), rtol=1e-5, atol=1e-5)


def test_the_rotary_base_is_the_configured_one(decoder: Decoder, decoder_config: DecoderConfig) -> None:
    other = Decoder(replace(decoder_config, rope_theta=10.0))
    other.load_state_dict(decoder.state_dict())
    x = torch.randn(1, 5, 22)
    assert not torch.allclose(decoder(x), other(x), atol=1e-4)
