"""Small files in the layout of each published set, read back."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shown import picture, plain, video, write_tar, write_zip
from tailorbird.data.sample import BadSample
from tailorbird.data.sources.known import KNOWN
from tailorbird.data.sources.readers import READERS, open_source
from tailorbird.errors import DataError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURNS = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))
DESCRIBE = "Describe this video in detail."


def image(level: int) -> dict[str, Any]:
    return {"bytes": picture(level), "path": None}


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def write_parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=2)


def write_text(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        "".join(json.dumps(row) + "\n" for row in content) if path.suffix == ".jsonl" else json.dumps(content)
    )
    path.write_text(lines)


def image_texts(path: Path, rows: list[dict[str, Any]], *more: tuple[str, pa.DataType]) -> None:
    text = pa.struct([("user", pa.string()), ("assistant", pa.string()), ("source", pa.string())])
    fields = [("images", pa.list_(IMAGE)), ("texts", pa.list_(text)), *more]
    write_parquet(path, rows, pa.schema(fields))


def said(user: str, assistant: str) -> dict[str, str]:
    return {"user": user, "assistant": assistant, "source": "AI2D"}


def cauldron(root: Path) -> list[Any]:
    image_texts(
        root / "ai2d/train-00000-of-00002-2ce340398c113b79.parquet",
        [
            {"images": [image(10)], "texts": [said("Which?", "A"), said("And?", "B")]},
            {"images": [image(20), image(30)], "texts": [said("Alike?", "No")]},
        ],
    )
    image_texts(
        root / "ai2d/train-00001-of-00002-4a7d5f9a8ad9cd41.parquet",
        [{"images": [], "texts": [said("Two and two?", "Four")]}],
    )
    image_texts(
        root / "vqav2/train-00000-of-00001.parquet", [{"images": [image(40)], "texts": [said("What?", "It")]}]
    )
    return [
        [["user", 10, "Which?"], ["assistant", "A"], ["user", "And?"], ["assistant", "B"]],
        [["user", 20, 30, "Alike?"], ["assistant", "No"]],
        [["user", "Two and two?"], ["assistant", "Four"]],
        [["user", 40, "What?"], ["assistant", "It"]],
    ]


def docmatix(root: Path) -> list[Any]:
    pages = [image(level) for level in (50, 60, 70)]
    image_texts(
        root / "data/train-00000-of-01106.parquet", [{"images": pages, "texts": [said("Who?", "She")]}]
    )
    pdf = pa.schema([("pdf", pa.binary())])
    write_parquet(root / "pdf/train-00000-of-00019.parquet", [{"pdf": b"%PDF"}], pdf)
    return [[["user", 50, 60, 70, "Who?"], ["assistant", "She"]]]


def finevision(root: Path) -> list[Any]:
    row = {"images": [image(80)], "texts": [said("What?", "It")], "source": "ai2d", "relevance_ratings": [5]}
    more = [("source", pa.string()), ("relevance_ratings", pa.list_(pa.int64()))]
    image_texts(root / "ai2d_merged/train-00000-of-00001.parquet", [row], *more)
    return [[["user", 80, "What?"], ["assistant", "It"]]]


def onevision(root: Path) -> list[Any]:
    schema = pa.schema(
        [("id", pa.string()), ("image", IMAGE), ("conversations", TURNS), ("data_source", pa.string())]
    )
    rows = [
        {"id": "1", "image": image(90), "conversations": turns("<image>\nWhat?", "It"), "data_source": "x"},
        {"id": "2", "image": None, "conversations": turns("Two and two?", "Four"), "data_source": "x"},
    ]
    write_parquet(root / "ai2d(cauldron,llava_format)/train-00000-of-00001.parquet", rows, schema)
    return [
        [["user", 90, "What?"], ["assistant", "It"]],
        [["user", "Two and two?"], ["assistant", "Four"]],
    ]


def mammoth(root: Path) -> list[Any]:
    one = {
        "id": "1",
        "image": "a/1.png",
        "conversations": turns("<image>\nWhy?", 'As "\\" \u4e2d'),
        "source": "x",
    }
    several = {
        "id": "2",
        "image": ["a/1.png", "b/2.png"],
        "conversations": turns("<image><image>\nAlike?", "No"),
    }
    clip = {"id": "3", "video": "c/3.mp4", "conversations": turns("<video>\nWhen?", "Now")}
    write_text(root / "mammoth_ov_2M.json", [several, clip])
    write_text(root / "mammoth_si_10M.json", [one])
    write_tar(root / "single_image_data/shard_1.tar", {"a/1.png": picture(100)})
    write_tar(root / "multi_image_data/shard_1.tar", {"b/2.png": picture(110)})
    write_tar(root / "video_data/shard_1.tar", {"c/3.mp4": video(3)})
    return [
        [["user", 100, 110, "Alike?"], ["assistant", "No"]],
        [["user", "frames: 3", "When?"], ["assistant", "Now"]],
        [["user", 100, "Why?"], ["assistant", 'As "\\" \u4e2d']],
    ]


def m4(root: Path) -> list[Any]:
    row = {
        "sample_id": "nlvr2_0",
        "conversations": turns("Left: <image>\nRight: <image>\nSame?", "Yes"),
        "image": ["nlvr2/l.png", "nlvr2/r.png"],
        "choice_list": None,
        "metadata": {"dataset": "nlvr2", "split": "train"},
    }
    write_text(root / "m4_instruct_annotations.json", [row])
    write_zip(root / "nlvr2.zip", {"nlvr2/l.png": picture(120), "nlvr2/r.png": picture(130)})
    return [[["user", "Left: ", 120, "Right: ", 130, "Same?"], ["assistant", "Yes"]]]


def llava_video(root: Path) -> list[Any]:
    part = "0_30_s_academic_v0_1"
    names = {"caption": "cap", "open_ended": "oe", "multi_choice": "mc"}
    for kind in ("cap", "oe_v0_1_qa", "mc_v0_1_qa"):
        row = {
            "id": kind,
            "conversations": turns(f"<image>\n{kind}?", "Yes"),
            "data_source": part,
            "video": "academic_source/Charades/3.mp4",
        }
        write_text(root / f"{part}/{part}_{kind}_processed.json", [row])
    assert len(names) == 3
    write_tar(root / f"{part}/{part}_videos_1.tar", {"academic_source/Charades/3.mp4": video(3)})
    return [
        [["user", "frames: 3", f"{kind}?"], ["assistant", "Yes"]]
        for kind in ("cap", "mc_v0_1_qa", "oe_v0_1_qa")
    ]


def finevideo(root: Path) -> list[Any]:
    asked = pa.list_(pa.struct([("answer", pa.string()), ("question", pa.string())]))
    content = pa.struct([("description", pa.string()), ("fps", pa.float64()), ("qAndA", asked)])
    about = pa.struct([("content_fine_category", pa.string()), ("content_metadata", content)])
    rows = [
        {
            "mp4": video(frames),
            "json": {
                "content_fine_category": "Chemistry",
                "content_metadata": {"description": said, "fps": 10.0, "qAndA": questions},
            },
        }
        for frames, said, questions in (
            (3, "A lab.", [{"answer": "Salt", "question": "What is it?"}]),
            (4, None, [{"answer": "No", "question": "Is it?"}]),
            (5, "A street.", []),
        )
    ]
    write_parquet(
        root / "data/train-00000-of-01357.parquet", rows, pa.schema([("mp4", pa.binary()), ("json", about)])
    )
    return [
        [
            ["user", "frames: 3", DESCRIBE],
            ["assistant", "A lab."],
            ["user", "What is it?"],
            ["assistant", "Salt"],
        ],
        [["user", "frames: 4", "Is it?"], ["assistant", "No"]],
        [["user", "frames: 5", DESCRIBE], ["assistant", "A street."]],
    ]


def video_star(root: Path) -> list[Any]:
    row = {"id": "1", "video": "4.mp4", "conversations": turns("<video>\nScore?", "8.5")}
    write_text(root / "ft_json/finediving_tune_.json", [row])
    (root / "FineDiving").mkdir()
    (root / "FineDiving/4.mp4").write_bytes(video(4))
    return [[["user", "frames: 4", "Score?"], ["assistant", "8.5"]]]


def vript(root: Path) -> list[Any]:
    caption = {"shot_type": "Close-up", "camera_movement": "", "content": "A cake.", "scene_title": "Cake"}
    data = {
        "video_id": "339dXVNQXac",
        "clip_id": "339dXVNQXac-Scene-001",
        "caption": caption,
        "voiceover": ["Hi"],
    }
    meta = {"video_id": "339dXVNQXac", "num_clips": 1, "integrity": True}
    write_text(root / "vript_captions/vript_long_videos_captions.jsonl", [{"meta": meta, "data": data}])
    clips = {
        "339dXVNQXac/339dXVNQXac-Scene-001.mp4": video(5),
        "339dXVNQXac/339dXVNQXac_cut_meta.json": b"{}",
    }
    write_zip(root / "vript_long_videos_clips/clips_1_of_1095.zip", clips)
    question = "Describe this clip in detail, with the type of shot and the movement of the camera."
    return [[["user", "frames: 5", question], ["assistant", "A cake.\nShot: Close-up"]]]


def vista(root: Path) -> list[Any]:
    row = {"id": 1, "image": "6.mp4", "conversations": turns("Which came first?", "B")}
    write_text(root / "event_relationship_mcq.json", [row])
    write_tar(root / "event_relationship_mcq/event_relationship_mcq_1.tar", {"6.mp4": video(6)})
    return [[["user", "frames: 6", "Which came first?"], ["assistant", "B"]]]


def moviechat(root: Path) -> list[Any]:
    for number in (1, 2):
        row = {
            "info": {"video_path": f"{number}.mp4", "fps": 24, "num_frame": 9},
            "caption": "A forest.",
            "global": [{"question": "Day?", "answer": "Yes"}],
            "breakpoint": [{"time": 4, "question": "Now?", "answer": "No"}],
        }
        write_text(root / f"jsons/{number}.json", row)
        (root / "raw_videos").mkdir(exist_ok=True)
        (root / f"raw_videos/{number}.mp4").write_bytes(video(6 + number))
    return [
        [
            ["user", f"frames: {n}", DESCRIBE],
            ["assistant", "A forest."],
            ["user", "Day?"],
            ["assistant", "Yes"],
        ]
        for n in (7, 8)
    ]


def sharegpt4video(root: Path) -> list[Any]:
    captions = [{"idx": "0", "content": "First a dog."}, {"idx": "-1", "content": "A dog runs."}]
    row = {
        "video_id": "x",
        "video_path": "panda/x.mp4",
        "zip_folder": "panda_videos_1.zip",
        "captions": captions,
    }
    write_text(root / "sharegpt4video_40k.jsonl", [row])
    write_zip(root / "zip_folder/panda/panda_videos_1.zip", {"x.mp4": video(9)})
    return [[["user", "frames: 9", DESCRIBE], ["assistant", "A dog runs."]]]


WRITERS: dict[str, Callable[[Path], list[Any]]] = {
    "cauldron": cauldron,
    "docmatix": docmatix,
    "finevision": finevision,
    "onevision": onevision,
    "mammoth-vl": mammoth,
    "m4-instruct": m4,
    "llava-video": llava_video,
    "finevideo": finevideo,
    "video-star": video_star,
    "vript": vript,
    "vista": vista,
    "moviechat": moviechat,
    "sharegpt4video": sharegpt4video,
}


def test_every_known_set_has_its_reader_and_its_layout_here() -> None:
    assert WRITERS.keys() == READERS.keys() == {known.name for known in KNOWN}


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_in_its_published_layout_is_read(name: str, tmp_path: Path) -> None:
    expected = WRITERS[name](tmp_path)
    source = open_source(f"{name}:{tmp_path}")
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 (our own; as a loader's worker has it)
    assert [plain(copy[i]) for i in range(len(copy))] == expected
    assert {source[i].source for i in range(len(source))} == {name}
    assert len({source[i].name for i in range(len(source))}) == len(expected)
    with pytest.raises(IndexError):
        source[len(expected)]


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_without_the_set_says_what_there_should_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"tailorbird data download {name}"):
        open_source(f"{name}:{tmp_path}")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("cauldron/vqav2", ["vqav2/train-00000-of-00001.parquet:0"]),
        (
            "onevision/ai2d(cauldron,llava_format)",
            ["ai2d(cauldron,llava_format)/train-00000-of-00001.parquet:0"],
        ),
        ("mammoth-vl/si", ["mammoth_si_10M.json:0"]),
    ],
)
def test_one_configuration_can_be_read_alone(words: str, names: list[str], tmp_path: Path) -> None:
    WRITERS[words.partition("/")[0]](tmp_path)
    source = open_source(f"{words}:{tmp_path}")
    assert source[0].name == names[0]
    assert source.name == words
    with pytest.raises(DataError, match="holds nothing of"):
        open_source(f"{words}x:{tmp_path}")


def test_a_set_is_told_by_what_is_in_it_not_by_where_it_lies(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        cauldron(tmp_path / folder)
    first, second = (open_source(f"cauldron:{tmp_path / folder}") for folder in ("a", "b"))
    assert first.fingerprint == second.fingerprint
    image_texts(
        tmp_path / "b/vqav2/train-00000-of-00001.parquet", [{"images": [], "texts": [said("?", "!")]}]
    )
    assert open_source(f"cauldron:{tmp_path / 'b'}").fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"images": [image(1)], "texts": []}, "empty conversation"),
        ({"images": [image(1)], "texts": None}, "damaged row"),
        ({"images": [image(1)], "texts": [said("What?", " ")]}, "empty conversation"),
        ({"images": [image(1)], "texts": [{"user": "What?", "assistant": None}]}, "empty conversation"),
        ({"images": [{"bytes": None, "path": "a.png"}], "texts": [said("What?", "It")]}, "missing file"),
        ({"images": [None], "texts": [said("What?", "It")]}, "missing file"),
    ],
)
def test_a_bad_row_of_parquet_is_a_bad_sample(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    image_texts(tmp_path / "a/train-0.parquet", [row])
    with pytest.raises(BadSample) as refused:
        open_source(f"cauldron:{tmp_path}")[0]
    assert refused.value.reason == reason
    assert "a/train-0.parquet:0" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"video": "../../../etc/passwd"}, "outside the folder"),
        ({"video": "none.mp4"}, "missing file"),
        ({"video": 5}, "damaged row"),
        ({"video": [None]}, "damaged row"),
        ({"video": ["4.mp4", "4.mp4"]}, "media count"),
        ({"conversations": None}, "damaged row"),
        ({"conversations": []}, "empty conversation"),
    ],
)
def test_a_bad_row_of_json_is_a_bad_sample(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    video_star(tmp_path)
    path = tmp_path / "ft_json/finediving_tune_.json"
    path.write_text(json.dumps([{**json.loads(path.read_text())[0], **change}]))
    with pytest.raises(BadSample) as refused:
        open_source(f"video-star:{tmp_path}")[0]
    assert refused.value.reason == reason


def test_a_name_that_is_no_set_and_no_file_is_explained() -> None:
    with pytest.raises(DataError, match=r"NAME one of cauldron, docmatix"):
        open_source("no/such/file.jsonl")
    with pytest.raises(DataError, match=r"cauldrons is no known set: there are cauldron, docmatix"):
        open_source("cauldrons:/tmp")
