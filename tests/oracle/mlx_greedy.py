"""Answer with `mlx-vlm` from a folder that Tailorbird wrote, and compare: the same prompts, the same words.

    python tests/oracle/mlx_greedy.py OUT

OUT is what mlx_folder.py beside it wrote. Runs on Linux too, on the CPU. It needs an environment of its own:
mlx.txt beside it. Prints a line per comparison; exits with 1 if anything differs.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_vlm import load, stream_generate


def compare(model: Any, processor: Any, out: Path, case: dict[str, Any]) -> bool:
    image = [str(out / "picture.png")] * case["pictures"]
    content = [{"type": "image"}] * case["pictures"] + [{"type": "text", "text": "what do you see?"}]
    talk = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    num = len(case["answer"])
    pieces = stream_generate(model, processor, prompt, image, max_tokens=num, temperature=0.0)
    tokens = [piece.token for piece in pieces][:num]
    given = processor(text=[prompt], images=image or None)["input_ids"].tolist()[0]
    same = (given == case["prompt"], tokens == case["answer"])
    told = ["the same" if one else "NOT the same" for one in same]
    print(f"{case['pictures']} pictures: {len(given)} ids {told[0]}, {num} greedy words {told[1]}")
    return all(same)


def main() -> None:
    logging.disable(logging.WARNING)
    mx.set_default_device(mx.cpu)
    out = Path(sys.argv[1])
    model, processor = load(str(out / "model"))
    cases = json.loads((out / "answers.json").read_text())
    same = [compare(model, processor, out, case) for case in cases]
    sys.exit(0 if all(same) else 1)


if __name__ == "__main__":
    main()
