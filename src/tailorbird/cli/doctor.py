"""tailorbird doctor"""

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check this machine (GPU, video codecs, off-screen OpenGL, disk, versions) and say what to install."""

    out: Path = Path("runs")
    """Where runs will be written: its disk is looked at."""

    def __call__(self) -> None:
        from tailorbird.perf.machine import examine, table
        from tailorbird.progress import console

        findings = examine(self.out)
        console.print(table(findings))
        if any(finding.state == "missing" for finding in findings):
            sys.exit(1)
