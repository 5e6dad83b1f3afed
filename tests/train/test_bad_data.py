"""A set of which much cannot be used: training goes on with the rest and counts, or stops and names."""

import io
import json
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from released import CFG, write_released
from tailorbird.checkpoint.vlm import read_vlm
from tailorbird.data.config import RowsConfig
from tailorbird.data.sample import BadSample
from tailorbird.data.sources.readers import open_source
from tailorbird.errors import DataError
from tailorbird.evals.train_report import write_train_report
from tailorbird.recipes.vlm import teach
from tailorbird.recipes.vlm_config import VLMRunConfig
from tailorbird.recipes.vlm_data import divided, open_parts
from tailorbird.train.config import VLMTrainConfig
from tailorbird.train.log import read_metrics

NUM, IN_PARQUET = 180, 20
BAD = {  # how many rows of NUM; a file that is cut is one more
    "damaged picture": 10,
    "empty conversation": 4,
    "missing file": 3,
    "picture too large": 2,
    "absurd size": 1,
}
CONFIG = VLMRunConfig(
    when_dry="drop",
    answers=0,
    rows=RowsConfig(tokens=200, lanes=1, workers=2, bad_share=0.2, bad_after=60),
    train=VLMTrainConfig(
        **{"steps": 400, "log_every": 25, "eval_every": 400, "save_every": 400},
        **{"lr": 1e-3, "warmup": 2, "ema": 0.0, "threads": 1, "log": ()},
    ),
)


@dataclass(frozen=True)
class Broken:
    """A set, a model, and the reasons of the rows that are bad, by their names."""

    root: Path
    reasons: dict[str, str]

    @property
    def data(self) -> list[str]:
        return [str(self.root / "set")]

    def why(self, source: Any, row: int) -> str | None:
        try:
            return self.reasons.get(source[row].name)
        except BadSample as error:  # found before its picture is opened
            return error.reason


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    root = tmp_path_factory.mktemp("broken")
    (root / "set").mkdir()
    write_released(root / "tiny", replace(CFG, decoder=replace(CFG.decoder, max_positions=200, num_layers=2)))
    reasons = spoilt(np.random.default_rng(3).permutation(NUM).tolist())
    rows = [write_row(root / "set", i, reasons.get(i)) for i in range(NUM)]
    (root / "set/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stored = [{"image": {"bytes": jpeg(i), "path": f"{i}.jpg"}, **said(i)} for i in range(IN_PARQUET)]
    pq.write_table(pa.Table.from_pylist(stored), root / "set/whole.parquet")
    whole = (root / "set/whole.parquet").read_bytes()
    (root / "set/cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield Broken(root, {f"rows.jsonl:{i}": reason for i, reason in reasons.items()})


def spoilt(rows: list[int]) -> dict[int, str]:
    words = [reason for reason, num in BAD.items() for _ in range(num)]
    return dict(zip(rows, words, strict=False))


def write_row(folder: Path, number: int, reason: str | None) -> dict[str, Any]:
    picture = folder / f"{number}.jpg"
    match reason:
        case "damaged picture":
            whole = jpeg(number)
            picture.write_bytes(whole[: len(whole) // 2])
        case "picture too large":
            picture.write_bytes(bomb())
        case "absurd size":
            Image.new("RGB", (5000, 1)).save(picture)
        case "missing file":
            pass
        case _:
            picture.write_bytes(jpeg(number))
    if reason == "empty conversation":
        return {"image": picture.name, "messages": [{"role": "user", "content": "what do you see?"}]}
    return {"image": picture.name, **said(number)}


def said(number: int) -> dict[str, str]:
    return {"question": "what do you see?", "answer": f"a bird sews {'two small ' * (number % 4)}leaves"}


def jpeg(number: int) -> bytes:
    file = io.BytesIO()
    levels = np.random.default_rng(number).integers(0, 256, (20, 30 + number % 9, 3), np.uint8)
    Image.fromarray(levels).save(file, "JPEG")
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of some hundred bytes that says that it has 3600 million px."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(bytes(9000)), b"IEND": b""}
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_training_goes_on_and_the_log_and_the_report_count_every_bad_row_by_its_reason(
    broken: Broken, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = teach(CONFIG, broken.root / "tiny", broken.data, broken.root / "run")
    said = capsys.readouterr().out
    assert re.search(r"its rows are left out: .*cut\.parquet is cut or damaged", said)
    assert f"the data have ended after {trained.step} of 400 steps" in said
    _, (apart,) = divided(open_parts(broken.data, None), CONFIG)
    measured = Counter(broken.why(apart, row) for row in range(len(apart)))
    expected = {reason: num - measured[reason] for reason, num in [*BAD.items(), ("damaged file", 1)]}
    rows = [row for row in read_metrics(broken.root / "run") if "loss" in row]
    assert len(rows) > 1
    assert {name: num for name, num in rows[-1].items() if name.startswith("dropped/")} == {
        f"dropped/set/{reason}": num for reason, num in expected.items() if num
    }
    page = write_train_report(broken.root / "run").read_text()
    for reason, num in expected.items():
        assert (f'<td>{reason}</td><td>dropped</td><td class="num">{num}</td>' in page) == (num > 0)
        assert (f"dropped {num} of set: {reason}" in said) == (num > 0)
    read_vlm(broken.root / "run/model")


def test_more_than_the_stated_share_stops_the_run_and_names_the_first_ten(broken: Broken) -> None:
    cfg = replace(CONFIG, rows=replace(CONFIG.rows, bad_share=0.05, bad_after=150))
    with pytest.raises(
        DataError, match=r"\d+ of \d+ conversations cannot be used, more than 5%: repair"
    ) as stopped:
        teach(cfg, broken.root / "tiny", broken.data, broken.root / "strict")
    named = re.findall(r"\n  draw (\d+), ([a-z ]+): (.*)", str(stopped.value))
    mixture, _ = divided(open_parts(broken.data, None), cfg)
    (part,) = mixture.parts
    assert mixture.length is not None
    reasons = {draw: broken.why(part.source, mixture.at(draw).row) for draw in range(mixture.length)}
    first = [(str(draw), reason) for draw, reason in reasons.items() if reason is not None][:10]
    assert [(draw, reason) for draw, reason, _ in named] == first
    assert all(re.search(r"rows\.jsonl:\d+|\d+\.jpg|cut\.parquet", message) for _, _, message in named)


def test_a_set_of_damaged_files_alone_is_refused(broken: Broken, tmp_path: Path) -> None:
    cut = (broken.root / "set/cut.parquet").read_bytes()
    for name in ("a.parquet", "b.parquet"):
        (tmp_path / name).write_bytes(cut)
    with pytest.raises(DataError, match=r"a\.parquet is cut or damaged .*; nor can 1 others"):
        open_parts([str(tmp_path)], None)
    with pytest.raises(DataError, match=r"b\.parquet is cut or damaged"):
        open_parts([str(tmp_path / "b.parquet")], None)


def test_a_published_set_is_read_without_a_file_of_it_that_is_cut(tmp_path: Path) -> None:
    (tmp_path / "ai2d").mkdir()
    row = {"images": [{"bytes": jpeg(0), "path": None}], "texts": [{"user": "What?", "assistant": "It"}]}
    pq.write_table(pa.Table.from_pylist([row] * 3), tmp_path / "ai2d/b.parquet")
    whole = (tmp_path / "ai2d/b.parquet").read_bytes()
    (tmp_path / "ai2d/a.parquet").write_bytes(whole[:-9])
    source = open_source(f"cauldron/ai2d:{tmp_path}")
    assert (len(source), source[1].name) == (4, "ai2d/b.parquet:0")
    with pytest.raises(BadSample, match=r"a\.parquet is cut or damaged") as caught:
        source[0]
    assert caught.value.reason == "damaged file"
