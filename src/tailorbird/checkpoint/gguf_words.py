"""The tokenizer that a GGUF file carries, as tokenizer.json."""

from typing import Any

from tailorbird.checkpoint.gguf_file import GgufFile
from tailorbird.errors import CheckpointError

FIELD = "tokenizer.ggml."
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # what a token is, as ggml numbers it
CUTS_DIGITS = {"gpt-2": False, "smollm": True}  # before GPT-2's own expression cuts words
SUPPORTED = f"byte-level BPE (gpt2) split as {' or '.join(CUTS_DIGITS)}"


def read_tokenizer(file: GgufFile) -> str:
    """The file's byte-level BPE as tokenizer.json, with every token at its id.

    SmolLM cuts digits off first, as its release and llama.cpp do. The GGUF reader of transformers 5.23 leaves
    that out, and differs where several blanks precede a digit (tests/parity/test_gguf.py).
    No token is put in front of a text: the chat format spells its own markers.

    Raises:
        CheckpointError: another kind of tokenizer, or a damaged one.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    cuts_digits = _cuts_digits(file)
    tokens, merges, kinds = _parts(file)
    try:
        backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    except Exception as error:  # the library raises a bare Exception
        raise CheckpointError(f"{file.path}: its tokenizer is damaged ({error}). Convert it again") from error
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words]) if cuts_digits else words
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (CONTROL, USER_DEFINED):
            special = kind == CONTROL
            backend.add_tokens([AddedToken(token, normalized=False, special=special)])
    return str(backend.to_str())


def _cuts_digits(file: GgufFile) -> bool:
    kind, split = file.metadata.get(FIELD + "model"), file.metadata.get(FIELD + "pre", "gpt-2")
    if kind != "gpt2" or split not in CUTS_DIGITS:
        raise CheckpointError(
            f"{file.path} has a tokenizer of kind {kind!r} split as {split!r}; {SUPPORTED} can be read: "
            "give the model in hub layout, with its tokenizer.json"
        )
    return CUTS_DIGITS[split]


def _parts(file: GgufFile) -> tuple[list[str], list[tuple[str, str]], list[int]]:
    """Tokens by id, merges, and what each token is."""
    tokens: Any = file.metadata.get(FIELD + "tokens")
    merges: Any = file.metadata.get(FIELD + "merges")
    if not _texts(tokens) or not _texts(merges) or len(set(tokens)) != len(tokens):
        raise CheckpointError(f"{file.path}: its tokenizer lacks tokens or merges. Convert it again")
    kinds: Any = file.metadata.get(FIELD + "token_type") or [NORMAL] * len(tokens)
    if (
        not isinstance(kinds, list)
        or len(kinds) != len(tokens)
        or set(kinds) - {NORMAL, CONTROL, USER_DEFINED, UNUSED}
    ):
        raise CheckpointError(
            f"{file.path}: the types of its {len(tokens)} tokens are {str(kinds)[:40]}; a byte-level "
            f"BPE has one of {(NORMAL, CONTROL, USER_DEFINED, UNUSED)} for each. Convert it again"
        )
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    if any(not left or not right or " " in right for left, right in pairs):
        raise CheckpointError(f"{file.path}: a merge is not two tokens. Convert it again")
    return tokens, pairs, kinds


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
