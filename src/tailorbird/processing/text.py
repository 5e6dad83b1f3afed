"""Words to token ids."""

import re
from collections.abc import Iterable, Sequence
from json import dumps, loads
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from tailorbird.errors import DataError

PAD, IMAGE = "<pad>", "<image>"
STRUCTURE = re.compile(  # what a user could type to forge a prompt
    r"<image>|<video>|<fake_token_around_image>|<global-img>|<row_\d+_col_\d+>|<end_of_utterance>"
    r"|<\|im_start\|>|<\|im_end\|>|<\|endoftext\|>"
)
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"  # Unicode's list; that of str.strip has four more


def train_tokenizer(corpus: Iterable[str], vocab: int) -> str:
    """Train a byte-level BPE on a few sentences, and return it as tokenizer.json.

    Any text can be encoded: what was not in the corpus falls apart into bytes. Ids 0 and 1 are padding and
    image.
    """
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[PAD, IMAGE],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(sorted(set(corpus)), trainer)
    return backend.to_str()


class InstructionTokenizer:
    """Encodes instructions as SmolVLA reads them: one newline at the end, padding on the right."""

    def __init__(self, json: str, max_tokens: int) -> None:
        try:
            self._backend = Backend.from_str(json)
        except Exception as error:  # the library raises a bare Exception
            raise DataError(f"tokenizer.json cannot be read: {error}") from error
        self._backend.no_padding()  # which the file may ask for
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True  # "<image>" in an instruction is seven letters
        self.json, self.max_tokens = json, max_tokens
        pad = self._backend.token_to_id(PAD)
        self._pad_id = 0 if pad is None else pad

    def __reduce__(self) -> tuple[type["InstructionTokenizer"], tuple[str, int]]:
        # a pickled backend reads <image> as a token
        return InstructionTokenizer, (self.json, self.max_tokens)

    @property
    def vocab(self) -> int:
        return self._backend.get_vocab_size()

    def __call__(self, tasks: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and validity, both (B, T), T the longest of the batch: padding further changes nothing.

        Raises:
            DataError: an instruction is longer than the policy reads. Cutting it would change what is asked.
        """
        lines = [task if task.endswith("\n") else f"{task}\n" for task in tasks]
        rows = [encoding.ids for encoding in self._backend.encode_batch(lines)]
        for task, row in zip(tasks, rows, strict=True):
            if len(row) > self.max_tokens:
                raise DataError(
                    f"the instruction {task!r} has {len(row)} tokens, "
                    f"the policy reads {self.max_tokens}: shorten it"
                )
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.full((len(rows), int(lengths.max())), self._pad_id)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        return ids, torch.arange(ids.shape[1]) < lengths[:, None]

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode(list(ids))


class Word(NamedTuple):
    """A token of a text, and the characters of it that it covers."""

    id: int
    start: int
    end: int


class ChatTokenizer:
    """Encodes the text of a prompt between two special tokens; nothing in it can become a special token.

    The special tokens are those which tokenizer.json lists as added. They are asked for by name.
    """

    def __init__(self, json: str) -> None:
        try:
            self._backend = Backend.from_str(json)
            self._words = Backend.from_str(dumps(_for_spans(loads(json))))
        except Exception as error:  # the library raises a bare Exception
            raise DataError(f"tokenizer.json cannot be read: {error}. Fetch it again") from error
        self._words.encode_special_tokens = True
        self.json = json
        added = self._backend.get_added_tokens_decoder()  # the file's own ids count only if they leave no gap
        self._ids = {token.content: number for number, token in added.items()}
        self._flags = {token.content: token for token in added.values()}
        for name, token in self._flags.items():
            if STRUCTURE.fullmatch(name) and token.single_word:
                raise DataError(
                    f"tokenizer.json finds {name} only between spaces (single_word), prompts have none: "
                    "set single_word to false"
                )

    def __reduce__(self) -> tuple[type["ChatTokenizer"], tuple[str]]:
        return ChatTokenizer, (self.json,)  # a pickled backend forgets that special tokens are letters

    @property
    def vocab(self) -> int:
        return self._backend.get_vocab_size()

    @property
    def highest_id(self) -> int:
        """The largest id of any token: with gaps in the ids, more than `vocab` - 1."""
        return max(self._backend.get_vocab(with_added_tokens=True).values())

    def has(self, token: str) -> bool:
        return token in self._ids

    def id(self, token: str) -> int:
        """Raises DataError if there is no such special token."""
        if token not in self._ids:
            raise DataError(
                f"the tokenizer has no token {token}: its {len(self._ids)} special tokens are "
                f"{', '.join(list(self._ids)[:8])} ... Take the tokenizer.json that belongs to the model"
            )
        return self._ids[token]

    def span(self, text: str, before: str | None, after: str | None) -> list[Word]:
        """Encode the text between two special tokens, either None at an end of the prompt.

        Tokens flagged lstrip or rstrip swallow white space beside them.
        """
        if after is not None and self._flags[after].lstrip:
            text = text.rstrip(WHITE_SPACE)
        kept = text.lstrip(WHITE_SPACE) if before is not None and self._flags[before].rstrip else text
        shift = len(text) - len(kept)
        if not kept:
            return []
        encoding = self._words.encode(kept, add_special_tokens=False)
        return [
            Word(number, start + shift, end + shift)
            for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
        ]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)


def _for_spans(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a tokenizer that sees a prompt in spans, none of which is its beginning."""
    structure = [
        {**token, "special": True} if STRUCTURE.fullmatch(token["content"]) else token
        for token in settings["added_tokens"]
    ]
    return {
        **settings,
        "added_tokens": structure,
        "post_processor": None,  # GPT-2's takes spaces out of the offsets
        "truncation": None,
        "padding": None,
        "pre_tokenizer": _never_first(settings["pre_tokenizer"]),
    }


def _never_first(step: Any) -> Any:
    """Metaspace can put a space before the beginning of a prompt, and only there."""
    if not isinstance(step, dict):
        return step
    changed = {**step, "prepend_scheme": "never"} if step.get("prepend_scheme") == "first" else dict(step)
    if "pretokenizers" in changed:
        changed["pretokenizers"] = [_never_first(part) for part in changed["pretokenizers"]]
    return changed
