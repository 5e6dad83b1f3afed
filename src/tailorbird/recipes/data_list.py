"""The published sets, two lines each."""

from tailorbird.data.sources.known import KNOWN, Known
from tailorbird.progress import console


def show_known() -> None:
    """Sizes and rows as the cards say; `download` asks the hub for the true ones."""
    for known in KNOWN:
        console.print(_lines(known))


def _lines(known: Known) -> str:
    gb = "size unpublished" if known.gb is None else f"{known.gb:,g} GB"
    rows = "rows uncounted" if known.rows is None else f"{known.rows:,} rows"
    gate = "terms to accept" if known.gated else "open"
    return (
        f"{known.name}: {known.stage} stage, {gb}, {rows}, {gate}, {known.hub}\n"
        f"  {known.about}; licence: {known.licence}"
    )
