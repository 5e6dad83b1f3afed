"""tailorbird report"""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Report:
    """Make one self-contained HTML page of a run: success, films, learning, actions, latency, settings."""

    run: tyro.conf.Positional[Path] = Path("runs/demo")
    """Folder that `demo` or `rollout` wrote."""

    def __call__(self) -> None:
        from tailorbird.evals.report import write_report
        from tailorbird.progress import console

        console.print(f"report: {write_report(self.run)}")
