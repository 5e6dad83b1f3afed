"""tailorbird verify"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tailorbird.evals.config import VerifyConfig


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Say how far a policy is from the truth in simulated scenes, and whether it heeds pictures and words.

    Example: tailorbird verify runs/demo/policy --dtype bfloat16 --plot verify.png

    Ends with 1 if a limit is not kept.
    """

    policy: tyro.conf.Positional[str]
    """Folder of a policy, or its id on the hub."""
    json: bool = False
    """Print one line of JSON instead of the table."""
    plot: Path | None = None
    """Draw the actions of both sides into this PNG."""
    save: Path | None = None
    """Keep what the policy did in this file, for --against elsewhere."""
    settings: Annotated[VerifyConfig, tyro.conf.arg(name="")] = field(default_factory=VerifyConfig)

    def __call__(self) -> None:
        import json
        import sys

        from tailorbird.evals.course import save_course
        from tailorbird.evals.verify import verify
        from tailorbird.evals.verify_report import check_plot, draw, table
        from tailorbird.progress import console

        if self.plot is not None:
            check_plot(self.plot)
        found = verify(self.policy, self.settings)
        if self.save is not None:
            save_course(self.save, found.tested)
        if self.plot is not None:
            draw(found, self.plot)
        console.print(json.dumps(found.row(), allow_nan=False) if self.json else table(found))
        if not found.passed:
            sys.exit(1)
