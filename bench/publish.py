"""Copy the figures and the picture of a demo run into results/, and the figures into README.md.

python bench/publish.py [RUN]        RUN: runs/demo
"""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from tailorbird.storage import new_file, read_json, write_json

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- demo -->\n).*?(<!-- /demo -->)", re.DOTALL)


def figures(result: dict[str, Any]) -> str:
    """The README's table."""
    rate, (low, high) = result["success_rate"], result["success_interval"]
    minutes = result["minutes"]
    rows = {
        f"success over {result['episodes']} unseen situations": f"**{rate:.0%}** ({low:.0%} to {high:.0%})",
        **{
            f"- {task.removesuffix('-v3')}": f"{value:.0%}"
            for task, value in result["success_by_task"].items()
        },
        "told another task's instruction": f"{result['shuffled_instruction_success_rate']:.0%}",
        "shown black pictures": f"{result['black_images_success_rate']:.0%}",
        "before training": f"{result['untrained_success_rate']:.0%}",
        "a chunk of actions, median, a simulator beside it": f"{result['chunk_ms_p50']:.0f} ms",
        "control rate by the wall clock": f"{result['control_hz']:.1f} Hz",
        "parameters": f"{result['parameters']:,}",
        "minutes": ", ".join(f"{stage} {value:.1f}" for stage, value in minutes.items()),
    }
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    source = f"`{result['command']}`, commit {result['commit']}, {result['hardware']}, {result['date'][:10]}"
    return "\n".join([*lines, "", f"{source}: [results/demo.json](results/demo.json).", ""])


def main() -> None:
    run = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs/demo"
    result = read_json(run / "result.json")
    if result["commit"] == "unknown" or result["commit"].endswith("-dirty"):
        sys.exit(f"{run} was made by commit {result['commit']}: only a committed state is published")
    write_json(ROOT / "results/demo.json", result)
    shutil.copyfile(run / "strip.jpg", ROOT / "results/demo.jpg")
    readme = ROOT / "README.md"
    text = BLOCK.sub(lambda found: found[1] + figures(result) + found[2], readme.read_text())
    with new_file(readme) as temporary:
        temporary.write_text(text)
    print(f"results/demo.json, results/demo.jpg and README.md now tell of {run}")


if __name__ == "__main__":
    main()
