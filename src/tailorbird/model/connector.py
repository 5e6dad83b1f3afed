"""From image patches to text tokens: fold blocks of patches into channels, then project."""

from torch import Tensor, nn


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """Fold each factor x factor block of patches into one token.

    Args:
        x: (N, P, C), a square grid of patches row by row.
    Returns:
        (N, P / factor^2, C * factor^2); inside a token the channels run block row, block column, channel.
    Source: Idefics3 and SmolVLM, arXiv:2504.05299; checked by tests/parity/test_smolvlm.py.
    """
    side = int(x.shape[1] ** 0.5) // factor
    blocks = x.unflatten(1, (side, factor, side, factor))  # (N, side, factor, side, factor, C)
    return blocks.transpose(2, 3).flatten(3).flatten(1, 2)  # (N, side^2, C * factor^2)


class Connector(nn.Module):
    def __init__(self, vision_width: int, text_width: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.proj = nn.Linear(vision_width * factor**2, text_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, P, vision width). Returns (N, P / factor^2, text width)."""
        return self.proj(pixel_shuffle(x, self.factor))
