"""What happened since the last line of the log, in sums that a checkpoint can hold."""

from collections.abc import Sequence

from tailorbird.train.guard import Outcome
from tailorbird.train.lesson import Portion

Sums = dict[str, float]  # tokens, places, and per source loss/NAME and weight/NAME; norm: the last one


def add_step(sums: Sums, portions: Sequence[Portion], outcome: Outcome) -> None:
    sums["norm"] = outcome.norm
    for portion, losses in zip(portions, outcome.losses, strict=True):
        _add(sums, "tokens", portion.tokens)
        _add(sums, "places", portion.places)
        for (source, weight), loss in zip(portion.weights.items(), losses, strict=True):
            _add(sums, f"loss/{source}", loss)
            _add(sums, f"weight/{source}", weight)


def figures_of(sums: Sums) -> dict[str, float]:
    """The gradient's norm, the loss of each source where there are several, and the share of padding."""
    weights = {name[7:]: value for name, value in sums.items() if name.startswith("weight/") and value}
    found = {"norm": sums["norm"]}
    if len(weights) > 1:
        found |= {f"loss/{source}": sums[f"loss/{source}"] / weight for source, weight in weights.items()}
    if sums["places"]:
        found["padding"] = 1 - sums["tokens"] / sums["places"]
    return found


def joined(parts: Sequence[Sums]) -> Sums:
    """The sums of several processes together."""
    sums: Sums = {}
    for part in parts:
        for name, value in part.items():
            if name == "norm":  # is that of all already
                sums[name] = value
            else:
                _add(sums, name, value)
    return sums


def _add(sums: Sums, name: str, value: float) -> None:
    sums[name] = sums.get(name, 0.0) + value
