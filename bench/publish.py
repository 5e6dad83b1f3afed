"""Write stored figures into README.md; copy those of a demo run, and its picture, into results/ first.

python bench/publish.py [RUN]        RUN: runs/demo
"""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from tailorbird.perf.results import FILES, WAYS, cell
from tailorbird.storage import new_file, read_json, write_json

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def demo_table(result: dict[str, Any]) -> str:
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
    return "\n".join([*lines, "", source(result, "demo.json"), ""])


def loss_gap_table(result: dict[str, Any]) -> str:
    """Split and unsplit side by side."""
    lines = ["| | loss, split | ms | loss, one tile | ms |", "|---|---:|---:|---:|---:|"]
    for way, label in WAYS.items():
        cells = [label]
        for part in (result["split"], result["unsplit"]):
            found, reference = part[way], part["reference"]
            ratio = reference["prepare_s"] / found["prepare_s"]
            cells += [f"{found['loss']:.5f}", f"{1e3 * found['prepare_s']:.0f} ({ratio:.1f}x)"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", source(result, "loss_gap.json"), ""])


def verify_table(result: dict[str, Any]) -> str:
    """One line for each pair of sides."""
    titles = ["policy", "here", "against", "1 step", "5 steps", "full", "largest error of the velocity"]
    lines = ["| " + " | ".join(titles) + " |", "|---|---|---|---:|---:|---:|---:|"]
    for row in result["rows"]:
        pcc = [f"{row[name]:.7f}" for name in ("pcc_1_step", "pcc_5_steps", "pcc_full")]
        cells = [row["model"], row["dtype"], row["against"], *pcc, f"{row['max_abs_error']:.1e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", source(result, "verify.json"), ""])


POLICY = {
    "cameras": "cameras",
    "path": "path",
    "dtype": "in",
    "tier": "tier",
    "ms_p50": "ms",
    "ratio": "times lerobot",
    "ratio_to_float32": "times lerobot in fp32",
    "pcc": "PCC",
    "max_abs_error": "largest error",
    "share_of_floor": "of the floor",
    "reuse_share": "reuse",
    "peak_mib": "MiB",
}
VLM = {
    "stage": "stage",
    "tiles": "tiles",
    "path": "path",
    "tier": "tier",
    "ms_p50": "ms",
    "ratio": "times transformers",
    "pcc": "PCC",
    "share_of_floor": "of the floor",
    "peak_mib": "MiB",
}

TRAIN = {
    "path": "path",
    "tokens_s": "tokens/s",
    "ratio": "times the Trainer",
    "loss": "loss",
    "wait_share": "waits for data",
    "padding": "padding",
    "to_words": "projected to words",
}


def policy_table(result: dict[str, Any]) -> str:
    """With the most cameras; the others are in the file."""
    most = max(row["cameras"] for row in result["rows"])
    rows = [row for row in result["rows"] if row["cameras"] == most]
    return rows_table({**result, "rows": rows}, POLICY, "policy_cpu.json")


def vlm_table(result: dict[str, Any]) -> str:
    return rows_table(result, VLM, "vlm_cpu.json")


def train_table(result: dict[str, Any]) -> str:
    return rows_table(result, TRAIN, "train_throughput.json")


def sight_table(result: dict[str, Any]) -> str:
    """A line for every kind of questions, and for each kind those that were never asked in training."""
    lines = ["| questions about | right | without the picture | number |", "|---|---:|---:|---:|"]
    for kind, found in result["kinds"].items():
        new = {name: one for name, one in found["about"].items() if name.startswith("questions")}
        for name, one in {kind: found, **{f"- {name}": one for name, one in new.items()}}.items():
            shares = f"{one['accuracy']:.0%} | {one['language_only_accuracy']:.0%}"
            lines.append(f"| {name} | {shares} | {one['questions']} |")
    lines += ["", "| way to the picture | loss | right |", "|---|---:|---:|"]
    for way, one in result["loss_gap"].items():
        lines.append(f"| {way} | {one['loss']:.4f} ({one['loss_difference']:+.1e}) | {one['accuracy']:.1%} |")
    return "\n".join([*lines, "", source(result, "train_check.json"), ""])


def rows_table(result: dict[str, Any], columns: dict[str, str], file: str) -> str:
    """A line a row, of each what has a heading here."""
    left = {"path", "dtype", "tier", "stage"}
    rule = ("---" if key in left else "---:" for key in columns)
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "|".join(rule) + "|"]
    for row in result["rows"]:
        lines.append("| " + " | ".join(cell(key, row.get(key)) for key in columns) + " |")
    return "\n".join([*lines, "", source(result, file), ""])


TABLES = {
    "demo": demo_table,
    "loss-gap": loss_gap_table,
    "verify": verify_table,
    "policy": policy_table,
    "vlm": vlm_table,
    "train": train_table,
    "train-check": sight_table,
}


def source(result: dict[str, Any], file: str) -> str:
    what = f"`{result['command']}`, commit {result['commit']}, {result['hardware']}, {result['date'][:10]}"
    return f"{what}: [results/{file}](results/{file})."


def block(name: str) -> str:
    """What stands between the marks of one table, the marks included."""
    result = read_json(ROOT / "results" / FILES.get(name, f"{name.replace('-', '_')}.json"))
    return f"<!-- {name} -->\n{TABLES[name](result)}<!-- /{name} -->"


def write_readme(name: str) -> None:
    text = README.read_text()
    marked = re.compile(rf"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
    with new_file(README) as temporary:
        temporary.write_text(marked.sub(lambda _: block(name), text))


def main() -> None:
    run = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs/demo"
    result = read_json(run / "result.json")
    if result["commit"] == "unknown" or result["commit"].endswith("-dirty"):
        sys.exit(f"{run} was made by commit {result['commit']}: only a committed state is published")
    write_json(ROOT / "results/demo.json", result)
    shutil.copyfile(run / "strip.jpg", ROOT / "results/demo.jpg")
    write_readme("demo")
    print(f"results/demo.json, results/demo.jpg and README.md now tell of {run}")


if __name__ == "__main__":
    main()
