"""Words to token ids."""

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from tailorbird.errors import DataError

PAD, IMAGE = "<pad>", "<image>"


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
    """Encodes instructions as SmolVLA reads them: a newline at the end, padding on the right."""

    def __init__(self, json: str, max_tokens: int) -> None:
        try:
            self._backend = Backend.from_str(json)
        except Exception as error:  # the library raises a bare Exception
            raise DataError(f"tokenizer.json cannot be read: {error}") from error
        self._backend.encode_special_tokens = True  # "<image>" in an instruction is seven letters
        self.json, self.max_tokens = json, max_tokens
        pad = self._backend.token_to_id(PAD)
        self._pad_id = 0 if pad is None else pad

    @property
    def vocab(self) -> int:
        return self._backend.get_vocab_size()

    def __call__(self, tasks: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and validity, both (B, T), T the longest of the batch: padding further changes nothing.

        Raises:
            DataError: an instruction is longer than the policy reads. Cutting it would change what is asked.
        """
        rows = [encoding.ids for encoding in self._backend.encode_batch([f"{task}\n" for task in tasks])]
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
