"""The tokens that a VLM has and its text model has not, in the released order."""

import json
from dataclasses import dataclass

from tailorbird.errors import ConfigError
from tailorbird.processing.pieces import AROUND, WHOLE
from tailorbird.processing.text import IMAGE, ChatTokenizer

GRID = 6  # rows and columns of tiles that have names
END = "<end_of_utterance>"
AT_LEAST, MULTIPLE = 128, 64  # new tokens; of the vocabulary, which tensor cores like


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A tokenizer with the new tokens at its end.

    num_words: tokens that it had before. size: all, and rows of the embedding.
    """

    tokenizer: ChatTokenizer
    num_words: int
    size: int

    @property
    def image_id(self) -> int:
        return self.tokenizer.id(IMAGE)

    @property
    def end_id(self) -> int:
        return self.tokenizer.id(END)


def add_markers(words: str, num_rows: int) -> Vocabulary:
    """Add the tokens of pictures and turns to the tokenizer.json of a text model.

    From the first free id on: `<global-img>`, 36 `<row_r_col_c>`, `<fake_token_around_image>`, `<image>`,
    then reserved ones, and `<end_of_utterance>` last: 128 tokens, and more reserved ones until the vocabulary
    is a multiple of 64. 49152 words give 49152 to 49279, the ids of the release.

    Args:
        num_rows: of the text model's embedding. Rows without a word are padding, and are taken.
    Raises:
        ConfigError: the tokenizer has one of these already, ids without a token, or more tokens than rows.
    """
    from tokenizers import AddedToken, Tokenizer

    old = ChatTokenizer(words)
    if taken := [name for name in (WHOLE, AROUND, IMAGE, END) if old.has(name)]:
        raise ConfigError(f"the text model's tokenizer has {taken} already: name a text model, not a VLM's")
    backend = Tokenizer.from_str(words)
    highest = old.highest_id if old.vocab else -1
    if highest + 1 != old.vocab or old.vocab > num_rows:
        raise ConfigError(
            f"the text model's tokenizer has {old.vocab} tokens with ids up to {highest}, its embedding "
            f"{num_rows} rows: name a model whose ids have no holes and all have a row"
        )
    size = -(-max(old.vocab + AT_LEAST, num_rows) // MULTIPLE) * MULTIPLE
    grid = range(1, GRID + 1)
    first = [WHOLE, *(f"<row_{row}_col_{col}>" for row in grid for col in grid), AROUND, IMAGE]
    num_reserved = size - old.vocab - len(first) - 1
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(num_reserved)]
    new = [*first, *reserved, END]
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in new])
    if [backend.token_to_id(name) for name in new] != list(range(old.vocab, size)):
        raise ConfigError(
            "the text model's tokenizer has some of <row_r_col_c> or <|reserved_special_token_i|> already: "
            "name a text model, not a VLM's"
        )
    return Vocabulary(tokenizer=ChatTokenizer(_compact(backend.to_str())), num_words=old.vocab, size=size)


def _compact(tokenizer: str) -> str:
    """One form whatever the library's version prints."""
    return json.dumps(json.loads(tokenizer), ensure_ascii=False)
