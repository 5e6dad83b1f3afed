"""What int8 costs each layer, for the terminal."""

from collections.abc import Sequence

from rich.table import Table

from tailorbird.infer.quant import LayerError


def table(found: Sequence[LayerError], shown: int = 8) -> Table:
    """The layers that lose most, for the terminal."""
    small = sum(layer.num_weights for layer in found if layer.is_int8)
    share = small / sum(layer.num_weights for layer in found)
    title = (
        f"int8: {sum(layer.is_int8 for layer in found)} of {len(found)} layers, {share:.1%} of their weights"
    )
    rows = Table("layer", "error", "weights", title=title)
    for layer in found[:shown]:
        rows.add_row(layer.name, f"{layer.error:.2%}", "int8" if layer.is_int8 else "float")
    if len(found) > shown:
        rows.add_row(f"{len(found) - shown} others", f"at most {found[shown].error:.2%}", "")
    return rows
