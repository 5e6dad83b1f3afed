"""The user's own data, in all forms that are read."""

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shown import picture, plain, video
from tailorbird.data.sample import BadSample
from tailorbird.data.sources.own import own
from tailorbird.data.sources.readers import open_source
from tailorbird.errors import DataError

IMAGE, VIDEO = "Describe this image in detail.", "Describe this video in detail."
WHAT = [["user", 10, "What?"], ["assistant", "It"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """pics/1.png of level 10, pics/2.png of 20, clip.mp4 of 3 frames."""
    (tmp_path / "pics").mkdir()
    for number in (1, 2):
        (tmp_path / f"pics/{number}.png").write_bytes(picture(10 * number))
    (tmp_path / "clip.mp4").write_bytes(video(3))
    return tmp_path


def read(folder: Path, *rows: dict[str, Any], name: str = "my.jsonl") -> list[Any]:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = own(folder / name)
    return [plain(source[i]) for i in range(len(source))]


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def content(*items: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*items]}, {"role": "assistant", "content": "It"}]


TEXT = {"type": "text", "text": "What?"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": content({"type": "image", "path": "pics/1.png"}, TEXT)}, WHAT),
        ({"messages": content({"type": "image", "image": "pics/1.png"}, TEXT)}, WHAT),
        ({"messages": content({"type": "image"}, TEXT), "images": ["pics/1.png"]}, WHAT),
        ({"messages": content(TEXT), "image": "pics/1.png"}, WHAT),
        ({"image": "pics/1.png", "conversations": turns("<image>\nWhat?", "It")}, WHAT),
        ({"images": ["pics/1.png"], "conversation": turns("What?", "It")}, WHAT),
        ({"image": "pics/1.png", "texts": [{"user": "What?", "assistant": "It"}]}, WHAT),
        ({"image": "pics/1.png", "question": "What?", "answer": "It"}, WHAT),
        ({"image": "./pics/../pics/1.png", "prompt": "What?", "completion": "It", "id": 7}, WHAT),
        ({"question": "How many?", "answer": 3}, [["user", "How many?"], ["assistant", "3"]]),
        ({"file_name": "pics/1.png", "text": "A dot."}, [["user", 10, IMAGE], ["assistant", "A dot."]]),
        ({"video": "clip.mp4", "caption": "Dusk."}, [["user", "frames: 3", VIDEO], ["assistant", "Dusk."]]),
        (
            {"system": "Be short.", "instruction": "Add.", "input": "1, 2", "output": "3"},
            [["system", "Be short."], ["user", "Add.\n1, 2"], ["assistant", "3"]],
        ),
        (
            {"image": "pics/2.png", "video": "clip.mp4", "conversations": turns("<video> or <image>?", "It")},
            [["user", "frames: 3", " or ", 20, "?"], ["assistant", "It"]],
        ),
    ],
)
def test_a_row_of_any_form_is_a_conversation(folder: Path, row: dict[str, Any], expected: Any) -> None:
    assert read(folder, row) == [expected]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "unknown form"),
        ({"caption": "A dot."}, "unknown form"),
        ({"question": "What?"}, "unknown form"),
        ({"image": "pics/3.png", "question": "What?", "answer": "It"}, "missing file"),
        ({"image": "/etc/hostname", "question": "What?", "answer": "It"}, "outside the folder"),
        ({"image": "http://x/1.png", "question": "What?", "answer": "It"}, "missing file"),
        ({"messages": content({"type": "image", "path": "../1.png"}, TEXT)}, "outside the folder"),
        ({"messages": content({"type": "image"}, TEXT)}, "media count"),
        ({"messages": []}, "empty conversation"),
        ({"messages": "[1"}, "damaged row"),
        ({"question": "What?", "answer": ["It"]}, "damaged row"),
        ({"texts": [5]}, "damaged row"),
        ({"image": {"bytes": None}, "question": "What?", "answer": "It"}, "missing file"),
    ],
)
def test_a_row_that_cannot_be_used_is_a_bad_sample_with_a_reason(
    folder: Path, row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BadSample) as refused:
        read(folder, row)
    assert refused.value.reason == reason
    assert re.match(r"my\.jsonl:0\b", str(refused.value)), "it says where"


def test_media_may_lie_in_another_folder_that_is_named(folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows/my.json"
    rows.parent.mkdir()
    rows.write_text(json.dumps([{"image": str(folder / "pics/1.png"), "question": "What?", "answer": "It"}]))
    with pytest.raises(BadSample, match="does not lie in"):
        open_source(rows)[0]
    assert plain(open_source(rows, folder)[0]) == WHAT


def test_pictures_may_lie_in_a_zip_beside_the_rows(folder: Path) -> None:
    with zipfile.ZipFile(folder / "pics.zip", "w") as archive:
        archive.write(folder / "pics/1.png", "pics/1.png")
    shutil.rmtree(folder / "pics")
    row = {"image": "pics/1.png", "question": "What?", "answer": "It"}
    assert read(folder, row) == [WHAT]
    (folder / "deeper").mkdir()
    (folder / "pics.zip").rename(folder / "deeper/pics.zip")
    with pytest.raises(BadSample, match="as a file or in its 0 archives"):
        read(folder, row)
    assert plain(open_source(folder)[0]) == WHAT, "a folder that is given is looked through"


def test_parquet_may_hold_the_pictures_or_their_names(folder: Path) -> None:
    rows = [
        {"images": [{"bytes": picture(10), "path": "x"}], "question": "What?", "answer": "It"},
        {"images": [{"bytes": None, "path": "pics/1.png"}], "question": "What?", "answer": "It"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "my.parquet")
    source = open_source(folder / "my.parquet")
    assert [plain(source[i]) for i in range(2)] == [WHAT, WHAT]
    message = [{"role": "user", "content": [{"type": "image", "text": None}, TEXT]}]
    messages = [*message, {"role": "assistant", "content": [{"type": "text", "text": "It"}]}]
    pq.write_table(
        pa.Table.from_pylist([{"messages": messages, "image": picture(10)}]), folder / "my.parquet"
    )
    assert plain(open_source(folder / "my.parquet")[0]) == WHAT


def test_csv_may_name_one_medium_or_a_list_and_leave_cells_empty(folder: Path) -> None:
    (folder / "my.csv").write_text(
        "image,video,question,answer\n"
        "pics/1.png,,What?,It\n"
        '"[""pics/1.png"", ""pics/2.png""]",,Which?,Both\n'
        ",clip.mp4,When?,Now\n"
    )
    source = open_source(folder / "my.csv")
    assert [plain(source[i]) for i in range(3)] == [
        WHAT,
        [["user", 10, 20, "Which?"], ["assistant", "Both"]],
        [["user", "frames: 3", "When?"], ["assistant", "Now"]],
    ]
    assert source[2].name == "my.csv:2"


def test_a_folder_of_pictures_and_videos_takes_the_texts_beside_them(folder: Path) -> None:
    (folder / "pics/1.txt").write_text("A dot.")
    (folder / "pics/2.json").write_text(json.dumps({"question": "What?", "answer": "It"}))
    source = open_source(folder)
    assert len(source) == 3
    with pytest.raises(BadSample, match=r"has no clip\.txt and no clip\.json beside it") as refused:
        source[0]
    assert refused.value.reason == "no text"
    assert plain(source[1]) == [["user", 10, IMAGE], ["assistant", "A dot."]]
    assert plain(source[2]) == [["user", 20, "What?"], ["assistant", "It"]]
    assert [source[i].name for i in (1, 2)] == ["pics/1.png:0", "pics/2.png:0"]
    before = source.fingerprint
    (folder / "pics/1.txt").write_text("A dog.")
    assert open_source(folder).fingerprint != before


def test_a_folder_of_files_of_rows_is_read_in_order(folder: Path) -> None:
    for name in ("b", "a"):
        row = {"image": "../pics/1.png", "question": f"{name}?", "answer": "It"}
        (folder / "rows").mkdir(exist_ok=True)
        (folder / f"rows/{name}.jsonl").write_text(json.dumps(row))
    (folder / "all.json").write_text(json.dumps([{"image": "pics/2.png", "caption": "Dots."}]))
    source = open_source(folder)
    assert [source[i].name for i in range(3)] == ["rows/a.jsonl:0", "rows/b.jsonl:0", "all.json:0"]
    assert plain(source[0]) == [["user", 10, "a?"], ["assistant", "It"]]


def test_what_holds_no_rows_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no rows: give a file of \.jsonl"):
        open_source(tmp_path)
    (tmp_path / "a.docx").write_bytes(b"PK")
    with pytest.raises(DataError, match="is no file of rows"):
        open_source(tmp_path / "a.docx")
