"""`tailorbird data list`, `check` and `preview`."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from released import write_released
from shown import picture, video
from tailorbird.data.sources.known import KNOWN

Typed = Callable[..., tuple[int | str | None, str]]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Ten rows: three bad in themselves, two whose media are damaged."""
    (tmp_path / "good.png").write_bytes(picture(99))
    (tmp_path / "cut.png").write_bytes(picture(99)[:45])
    (tmp_path / "good.mp4").write_bytes(video(5))
    (tmp_path / "cut.mp4").write_bytes(video(5)[:400])
    asked = {"question": "What is <b>it</b>?", "answer": "A & B"}
    lines = [json.dumps({"image": "good.png", **asked})] * 4
    lines += [json.dumps({"video": "good.mp4", **asked})]
    lines += [json.dumps({"image": "none.png", **asked}), '{"image": ', json.dumps({"messages": []})]
    lines += [json.dumps({"image": "cut.png", **asked}), json.dumps({"video": "cut.mp4", **asked})]
    (tmp_path / "my.jsonl").write_text("\n".join(lines))
    return tmp_path / "my.jsonl"


def test_the_list_has_every_set_with_its_size_and_licence(typed: Typed) -> None:
    ended, printed = typed("data", "list")
    assert ended == 0
    lines = printed.splitlines()
    assert len(lines) == 2 * len(KNOWN)
    for known, first, second in zip(KNOWN, lines[::2], lines[1::2], strict=True):
        assert first.startswith(f"{known.name}: {known.stage} stage")
        assert first.endswith(known.hub)
        assert second.endswith(f"licence: {known.licence}")
    assert "docmatix: vision stage, 553 GB, 1,273,215 rows, open, HuggingFaceM4/Docmatix" in lines
    assert "finevideo: video stage, 600 GB, 43,751 rows, terms to accept, HuggingFaceFV/finevideo" in lines


def test_check_counts_what_would_be_dropped_and_names_it(typed: Typed, rows: Path) -> None:
    ended, printed = typed("data", "check", rows)
    assert ended == 0
    assert "7 of 10 rows can be used: 14 turns, 5 pictures, 2 videos" in printed
    for reason in ("missing file", "damaged row", "empty conversation"):
        assert f"dropped 1 (10.0%): {reason}" in printed
    assert "  my.jsonl:5: there is no none.png in" in printed
    ended, printed = typed("data", "check", rows, "--open")
    assert "5 of 10 rows can be used" in printed
    assert "dropped 1 (10.0%): damaged video" in printed
    assert re.search(r"dropped 1 \(10.0%\): damaged picture\n  my.jsonl:8: ", printed)
    ended, printed = typed("data", "check", rows, "--rows", "2")
    assert "1 of 2 rows can be used" in printed, "rows 0 and 5"


def test_preview_is_one_page_with_pictures_texts_and_tokens(typed: Typed, rows: Path, tmp_path: Path) -> None:
    write_released(tmp_path / "model")
    ended, printed = typed(
        "data", "preview", rows, "--out", tmp_path / "page.html", "--model", tmp_path / "model"
    )
    assert ended == 0
    assert "5 of the rows shown cannot be used" in printed
    page = (tmp_path / "page.html").read_text()
    assert page.count("What is &lt;b&gt;it&lt;/b&gt;?") == 7
    assert "<b>" not in page
    assert "<script" not in page
    assert "dropped (missing file): my.jsonl:5: there is no none.png in" in page
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    levels = [Image.open(io.BytesIO(base64.b64decode(one))).convert("L").getpixel((2, 2)) for one in pictures]
    assert levels == pytest.approx([99, 99, 99, 99, 20], abs=3)
    assert page.count("7 x 5 px") == 4
    assert "video, 24 x 16 px, 5 frames at 10 a second" in page
    assert len(re.findall(r"\d+ tokens: \d+ text, \d+ image, \d+ marker; \d+ learned, \d+ tiles", page)) == 4


def test_a_source_that_is_not_there_is_refused_in_one_line(typed: Typed, tmp_path: Path) -> None:
    ended, _ = typed("data", "check", tmp_path / "none.jsonl")
    assert str(ended).startswith("error: ")
    assert "NAME:FOLDER for a published set" in str(ended)
