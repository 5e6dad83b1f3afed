"""Rename tables: which tensors of a released checkpoint are which of ours, read in both directions."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tailorbird.errors import CheckpointError, ConfigError


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The tensors named `theirs`, one below the other along dim 0, are our tensor `ours`.

    A `*` in a name stands for a layer number, until `each` writes the numbers out.
    """

    theirs: tuple[str, ...]
    ours: str | None  # None: dropped, if it is there at all
    rows: tuple[int, ...] = ()  # of a stack: the length of each of theirs along dim 0
    repeats: str | None = None  # of a drop: the key of theirs that it has to equal
    why: str = ""  # of a drop: why nothing is lost

    def __post_init__(self) -> None:
        if len(self.theirs) != 1 and len(self.theirs) != len(self.rows):
            raise ConfigError(
                f"{self.ours!r} is made of {self.theirs} but {self.rows=}: give one number each"
            )


def same(theirs: str, ours: str) -> Rule:
    return Rule(theirs=(theirs,), ours=ours)


def affine(theirs: str, ours: str) -> list[Rule]:
    """Weight and bias of one module."""
    return [same(f"{theirs}.{part}", f"{ours}.{part}") for part in ("weight", "bias")]


def stack(*theirs: str, ours: str, rows: tuple[int, ...]) -> Rule:
    """Several of theirs make one of ours, in this order; `rows` is how it comes apart again."""
    return Rule(theirs=theirs, ours=ours, rows=rows)


def drop(theirs: str, *, why: str, repeats: str | None = None) -> Rule:
    """A key that may be there. With `repeats` it is refused unless it equals that other key."""
    return Rule(theirs=(theirs,), ours=None, repeats=repeats, why=why)


def inside(rules: Iterable[Rule], theirs: str, ours: str) -> list[Rule]:
    """The same rules one level down: the names of each side get their prefix."""
    return [_renamed(rule, lambda key: theirs + key, lambda name: ours + name) for rule in rules]


def each(layers: Iterable[int], rules: list[Rule]) -> list[Rule]:
    """The rules once per layer, with its number for every `*`."""

    def numbered(layer: int) -> Callable[[str], str]:
        return lambda name: name.replace("*", str(layer))

    return [_renamed(rule, numbered(layer), numbered(layer)) for layer in layers for rule in rules]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which keys of theirs become our tensors, settled from names and shapes, before any value is read."""

    kept: dict[str, Rule]  # our name -> the rule that makes it
    repeats: tuple[Rule, ...]  # drops that are there and have to equal another key

    def shapes(self, theirs: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """What our tensors will look like."""
        return {
            name: (sum(rule.rows), *theirs[rule.theirs[0]][1:])
            if rule.rows
            else tuple(theirs[rule.theirs[0]])
            for name, rule in self.kept.items()
        }


def plan(theirs: Mapping[str, Sequence[int]], rules: Iterable[Rule]) -> Plan:
    """Settle what becomes of a checkpoint whose tensors have these shapes.

    Raises:
        CheckpointError: a key is missing or unknown, two rules use it, or a tensor is not what its rule says.
    """
    kept, dropped = _parted(rules)
    needed = [key for rule in kept.values() for key in rule.theirs]
    _require("the checkpoint", theirs.keys(), needed, dropped.keys())
    repeats = tuple(rule for key, rule in dropped.items() if key in theirs and rule.repeats is not None)
    for rule in repeats:
        if list(theirs[rule.theirs[0]]) != list(theirs[str(rule.repeats)]):
            raise differing(rule)
    for name, rule in kept.items():
        shapes = [tuple(theirs[key]) for key in rule.theirs]
        if rule.rows and (found := tuple(shape[0] if shape else 0 for shape in shapes)) != rule.rows:
            raise CheckpointError(
                f"{rule.theirs} have {found} rows, {name} is made of {rule.rows}: "
                "the checkpoint belongs to a model of another size"
            )
        if len({shape[1:] for shape in shapes}) > 1:
            raise CheckpointError(
                f"{rule.theirs} have shapes {shapes}, which do not stack to {name}: "
                "the checkpoint belongs to a model of another size"
            )
    return Plan(kept=kept, repeats=repeats)


def differing(rule: Rule) -> CheckpointError:
    """For a drop that does not equal the key that it should repeat."""
    return CheckpointError(
        f"{rule.theirs[0]} differs from {rule.repeats}, which it should repeat ({rule.why}): "
        "the checkpoint belongs to a configuration that keeps both"
    )


def convert(theirs: Mapping[str, Tensor], rules: Iterable[Rule]) -> dict[str, Tensor]:
    """Their names to ours. Stacks are copies, all else stays the same tensor; meta tensors will do.

    Raises:
        CheckpointError: as `plan`, or a dropped tensor does not equal the one that it should repeat.
    """
    settled = plan({key: value.shape for key, value in theirs.items()}, rules)
    for rule in settled.repeats:
        if not _equal(theirs[rule.theirs[0]], theirs[str(rule.repeats)]):
            raise differing(rule)
    return {
        name: torch.cat([theirs[key] for key in rule.theirs]) if rule.rows else theirs[rule.theirs[0]]
        for name, rule in settled.kept.items()
    }


def revert(ours: Mapping[str, Tensor], rules: Iterable[Rule]) -> dict[str, Tensor]:
    """Our names to theirs, without the keys that `convert` drops. The parts of a stack are views of it.

    Raises:
        CheckpointError: a name is missing or unknown, two rules use it, or a stack has other rows.
    """
    kept, _ = _parted(rules)
    _require("the model", ours.keys(), kept.keys(), ())
    theirs: dict[str, Tensor] = {}
    for name, rule in kept.items():
        value = ours[name]
        if rule.rows and value.shape[0] != sum(rule.rows):
            raise CheckpointError(
                f"{name} has {value.shape[0]} rows, {rule.theirs} have {rule.rows}: "
                "make the table from the configuration that these weights belong to"
            )
        theirs.update(zip(rule.theirs, value.split(rule.rows) if rule.rows else [value], strict=True))
    return theirs


def _renamed(rule: Rule, theirs: Callable[[str], str], ours: Callable[[str], str]) -> Rule:
    return replace(
        rule,
        theirs=tuple(map(theirs, rule.theirs)),
        ours=None if rule.ours is None else ours(rule.ours),
        repeats=None if rule.repeats is None else theirs(rule.repeats),
    )


def _parted(rules: Iterable[Rule]) -> tuple[dict[str, Rule], dict[str, Rule]]:
    """What is kept, by our name, and what is dropped, by theirs; each name in one rule only."""
    rules = list(rules)
    kept = [(rule.ours, rule) for rule in rules if rule.ours is not None]
    for side in ([key for rule in rules for key in rule.theirs], [name for name, _ in kept]):
        if twice := [name for name, count in Counter(side).items() if count > 1]:
            raise CheckpointError(f"{len(twice)} names are in two rules of the table, first: {twice[:3]}")
    return dict(kept), {rule.theirs[0]: rule for rule in rules if rule.ours is None}


def _require(what: str, found: Iterable[str], needed: Iterable[str], optional: Iterable[str]) -> None:
    found, needed = set(found), set(needed)
    missing, unknown = sorted(needed - found), sorted(found - needed - set(optional))
    if missing or unknown:
        raise CheckpointError(
            f"{what} lacks {len(missing)} tensors of the table {missing[:3]} and has {len(unknown)} in no "
            f"rule {unknown[:3]}: it belongs to a model of another size or kind"
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    """Meta tensors have no values to compare."""
    return a.shape == b.shape and (a.is_meta or b.is_meta or torch.equal(a, b))
