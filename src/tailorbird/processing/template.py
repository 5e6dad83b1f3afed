"""Which chat format a stranger's template prints: found by trying it, after nothing is left in it to fear."""

from collections.abc import Iterator
from typing import Any

from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tailorbird.errors import DataError
from tailorbird.processing.chat import FORMATS, SMOLVLM, ChatFormat, Role, read_messages

LONGEST = 100_000  # characters
MOST_NODES, MOST_DEPTH, MOST_LOOPS = 2_000, 40, 2  # the released templates have up to 80, 10 and 2
HARMLESS = {
    *("Template", "TemplateData", "Output", "For", "If", "CondExpr", "Name", "Const", "Getitem", "Getattr"),
    *("Filter", "Test", "Compare", "Operand", "And", "Or", "Not", "Add", "Concat"),
}
FILTERS = {"capitalize", "lower", "title", "trim", "upper"}
TESTS = {"defined", "iterable", "mapping", "none", "sequence", "string", "undefined"}


def find_format(template: str, source: str) -> ChatFormat:
    """The format that prints what a template prints, tried on conversations of words and images.

    source: where the template is from, for the error.

    Raises:
        DataError: it prints something else, does more than such templates need, or is no template.
    """
    if len(template) > LONGEST:
        raise DataError(
            f"the chat template of {source} has {len(template)} characters, {LONGEST} are read: "
            "replace it by that of a released SmolVLM or SmolLM2-Instruct"
        )
    for known in FORMATS:
        if template == known.template:
            return known
    failures = []
    for known in FORMATS:
        try:
            if _prints_the_same(template, known):
                return known
        except Exception as error:  # a template is code: it can raise anything
            kind = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
            failures.append(f"{kind}{error}".splitlines()[0][:200])
    reason = failures[0] if len(failures) == len(FORMATS) else "it prints another prompt"
    raise DataError(
        f"the chat template of {source} is none of {', '.join(known.name for known in FORMATS)} ({reason}): "
        "replace it by that of a released SmolVLM or SmolLM2-Instruct if the model was trained with theirs"
    )


def _prints_the_same(template: str, known: ChatFormat) -> bool:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    tree = environment.parse(template)
    _check_harmless(tree)  # before anything is compiled: the compiler already works out 'a' * 10 ** 10
    compiled = environment.from_string(tree)
    unknown = {name: f"<the {name}>" for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    for probe in _probes(seeing=known is SMOLVLM):
        for reply in (False, True):
            printed, expected = "", known.render(read_messages(probe), reply=reply)
            for part in compiled.generate(messages=probe, add_generation_prompt=reply, **unknown):
                printed += part
                if len(printed) > len(expected):
                    return False
            if printed != expected:
                return False
    return True


def _check_harmless(tree: nodes.Template) -> None:
    """Refuse whatever could take long or grow large: what is left is linear in the template.

    Raises:
        DataError: it holds a node, filter, test or shape that no format here needs.
    """
    left: list[tuple[nodes.Node, int, int]] = [(tree, 0, 0)]
    num_nodes = 0
    while left:
        node, depth, loops = left.pop()
        num_nodes += 1
        loops += isinstance(node, nodes.For)
        if num_nodes > MOST_NODES or depth > MOST_DEPTH or loops > MOST_LOOPS:
            raise DataError(f"line {node.lineno} is where it becomes longer or deeper than they are")
        if type(node).__name__ not in HARMLESS or not _is_plain(node):
            raise DataError(f"line {node.lineno} holds a {type(node).__name__} that none of them needs")
        left += [(child, depth + 1, loops) for child in node.iter_child_nodes()]


def _is_plain(node: nodes.Node) -> bool:
    match node:
        case nodes.For():
            things = (nodes.Name, nodes.Getitem, nodes.Getattr)
            return (
                isinstance(node.iter, things) and isinstance(node.target, nodes.Name) and not node.recursive
            )
        case nodes.Getitem():
            return isinstance(node.arg, nodes.Const)
        case nodes.Filter():
            return node.name in FILTERS and node.node is not None and not _has_arguments(node)
        case nodes.Test():
            return node.name in TESTS and not _has_arguments(node)
        case _:
            return True


def _has_arguments(node: nodes.Filter | nodes.Test) -> bool:
    return bool(node.args or node.kwargs or node.dyn_args or node.dyn_kwargs)


def _probes(*, seeing: bool) -> Iterator[list[dict[str, Any]]]:
    """Conversations with what templates are known to treat in their own way: borders, roles, white space.

    seeing: write content as items, with images; else as a string, as templates of language models want it.
    """

    def say(role: Role, *items: str) -> dict[str, Any]:
        if not seeing:
            return {"role": role, "content": "".join(items)}
        image = {"type": "image", "image": b""}
        content = [image if item == "<image>" else {"type": "text", "text": item} for item in items]
        return {"role": role, "content": content}

    yield [say("user", "what?")]
    yield [say("system", " be brief\n"), say("user", "  why \n\n"), say("assistant", "\tso <it> is & 'was'")]
    yield [say("user", "a"), say("assistant", "b"), say("system", "c"), say("user", "d", "e")]
    if seeing:
        yield [say("user", "<image>", "what?"), say("assistant", "that", "<image>")]
        yield [say("system", "s"), say("user", "one ", "<image>", "<image>", " two"), say("user", "<image>")]
