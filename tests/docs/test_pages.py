"""What the pages of docs/ show is what happens."""

import json
import re
from pathlib import Path

import pytest
import tyro

from shown import picture, plain, video
from tailorbird.__main__ import Command
from tailorbird.data.sources.known import KNOWN
from tailorbird.data.sources.readers import open_source

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DATA = (ROOT / "docs/data.md").read_text()


def test_the_table_of_published_sets_is_what_the_program_knows() -> None:
    rows = re.findall(
        r"^\| \[`(.+?)`\]\(https://huggingface.co/datasets/(.+?)\) \| (.+?) \| .+ "
        r"\| (.*?) \| (.*?) \| (.+?) \|$",
        DATA,
        re.MULTILINE,
    )
    told = [
        (
            one.name,
            one.hub,
            one.stage,
            "" if one.gb is None else f"{one.gb:,g}",
            "" if one.rows is None else f"{one.rows:,}",
            one.licence + (", terms to accept" if one.gated else ""),
        )
        for one in KNOWN
    ]
    assert rows == told


def test_every_form_of_a_row_that_is_shown_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [json.loads(one) for one in re.findall(r"^\| [\w, ]+ \| `(\{.+\})` \|$", DATA, re.MULTILINE)]
    for name in ("cat.jpg", "1.png", "2.png"):
        (tmp_path / name).write_bytes(picture(9))
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/1.mp4").write_bytes(video(3))
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(tmp_path / "my.jsonl")
    cat = [["user", 9, "What is this?"], ["assistant", "A cat."]]
    described = [["user", "frames: 3", "Describe this video in detail."], ["assistant", "A dog runs."]]
    alike = [["user", 9, 9, "Alike?"], ["assistant", "No."]]
    assert [plain(source[i]) for i in range(len(rows))] == [cat, described, cat, cat, alike]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_every_option_that_a_page_names_exists(capsys: pytest.CaptureFixture[str]) -> None:
    helped = ""
    for words in ("finetune", "launch", "train tune", "train vision", "merge", "data check", "data download"):
        with pytest.raises(SystemExit):
            tyro.cli(Command, args=[*words.split(), "--help"])
        helped += capsys.readouterr().out
    known = set(re.findall(r"--[a-z][\w.-]*", helped))
    others = {"--nproc-per-node", "--requeue"}  # of torchrun and Slurm
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", page.read_text()))
        assert not named - known - others, page.name
