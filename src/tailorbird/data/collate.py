"""From packed samples to the batch that a VLM learns from."""

from collections.abc import Sequence

import torch

from tailorbird.data.config import RowsConfig
from tailorbird.data.encode import Encoded
from tailorbird.types import Rows

MULTIPLE = 64  # of which the length of a row is, if no lengths are given


def collate(rows: Sequence[Sequence[Encoded]], cfg: RowsConfig, pad_id: int) -> Rows:
    """Rows of samples to one batch, padded on the right; pixels stay uint8 until they are moved."""
    shape = (len(rows), padded_length(max(sum(len(one.ids) for one in row) for row in rows), cfg))
    ids, positions = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.int64)
    segment, learned = torch.full(shape, -1), torch.zeros(shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        start = 0
        for number, one in enumerate(row):
            here = slice(start, start + len(one.ids))
            ids[i, here], learned[i, here] = torch.from_numpy(one.ids), torch.from_numpy(one.learned)
            positions[i, here], segment[i, here] = torch.arange(len(one.ids)), number
            start = here.stop
    levels = [one.levels for row in rows for one in row if one.levels is not None]
    return Rows(
        ids=ids,
        positions=positions,
        segment=segment,
        learned=learned,
        pixels=torch.cat(levels) if levels else None,
        tiles=tuple(sum(one.num_tiles for one in row) for row in rows),
        names=tuple(tuple(one.name for one in row) for row in rows),
        sources=tuple(tuple(one.source for one in row) for row in rows),
    )


def padded_length(longest: int, cfg: RowsConfig) -> int:
    if cfg.lengths:
        return min(length for length in cfg.lengths if length >= longest)
    return min(-(-longest // MULTIPLE) * MULTIPLE, cfg.tokens)


def padding_share(batches: Sequence[Rows]) -> float:
    """Of all places, those that hold no token."""
    free = sum(int((rows.segment < 0).sum()) for rows in batches)
    return free / sum(rows.segment.numel() for rows in batches)
