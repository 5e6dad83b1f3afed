"""tailorbird finetune"""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from tailorbird.cli.on_conversations import OnConversations
from tailorbird.recipes.vlm_config import VLMRunConfig, tune


@dataclass(frozen=True, kw_only=True)
class Finetune(OnConversations):
    """Teach a vision-language model from your own rows. What it learned is in OUT/model.

    Example: tailorbird finetune HuggingFaceTB/SmolVLM2-256M-Video-Instruct --data my.jsonl --out runs/mine

    A row of my.jsonl: {"image": "cat.jpg", "question": "What is this?", "answer": "A cat."}, the picture
    beside the file. `data preview my.jsonl` shows what is read, `data check my.jsonl` what cannot be.

    Low-rank updates learn (--learn.lora.rank; 0 learns all weights themselves), some rows are held out, and
    the best weights by these are kept: merged, in the hub's layout, with the updates alone in
    OUT/model/adapter for `peft`. On a GPU, --train.precision bfloat16 is faster.

    Ctrl-C saves; the same command goes on from there.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Folder of a model, or its id on the hub."""
    settings: Annotated[VLMRunConfig, tyro.conf.arg(name="")] = field(default_factory=tune)
    usual_steps: tyro.conf.Suppress[int] = tune().train.steps

    def __call__(self) -> None:
        self.teach(self.model)
