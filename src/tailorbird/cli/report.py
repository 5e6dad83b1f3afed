"""tailorbird report"""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Report:
    """Make one self-contained HTML page of a run.

    Of a training run: curves, answers before and after, what was dropped, settings. Of a rollout or the demo:
    success, films, learning, actions, latency, settings.

    Example: tailorbird report runs/mine
    """

    run: tyro.conf.Positional[Path] = Path("runs/demo")
    """Folder that `train`, `finetune`, `demo` or `rollout` wrote."""

    def __call__(self) -> None:
        from tailorbird.progress import console

        if (self.run / "metrics.jsonl").exists():
            from tailorbird.evals.train_report import write_train_report

            console.print(f"report: {write_train_report(self.run)}")
        else:
            from tailorbird.evals.report import write_report

            console.print(f"report: {write_report(self.run)}")
