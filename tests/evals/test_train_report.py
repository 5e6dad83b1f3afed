"""The page of a training run, whatever was trained and however much of it there is."""

import json
import re
from pathlib import Path

import pytest

from tailorbird.errors import DataError
from tailorbird.evals.train_report import write_train_report
from tailorbird.storage import write_json
from tailorbird.train.log import Metrics, count_unusable


def test_a_policys_run_without_a_checkpoint_has_its_curves_and_its_bad_steps(tmp_path: Path) -> None:
    with Metrics(tmp_path, 0, ()) as metrics:
        metrics.add(0, learned_parameters=1700, frozen_parameters=30)
        for step in range(1, 5):
            metrics.add(step, loss=1 / step, lr=1e-3, samples_s=9.0)
        metrics.add(4, held_out_loss=0.375, action_error=0.01)
    write_json(tmp_path / "bad_step.json", [{"step": 3, "why": "the loss is <inf>", "parts": []}])
    page = write_train_report(tmp_path).read_text()
    for shown in ("<b>0.375</b>", "<b>1,700</b>", "held-out error of an action", "the loss is &lt;inf&gt;"):
        assert shown in page
    assert "tokens a second" not in page
    assert "Nothing that the log knows of" in page


def test_what_a_model_or_a_file_says_is_text_on_the_page_and_never_markup(tmp_path: Path) -> None:
    with Metrics(tmp_path, 0, ()) as metrics:
        metrics.add(1, **{"loss": 1.0, "loss/<b>x</b>": 1.0, "dropped/<i>a/b</i>/no picture": 2.0})
    said = "</td><script>alert(1)</script>"
    question = {"name": said, "expected": said, "shown": [{"text": said}]}
    answers = {"questions": [question], "answers": [{"step": 0, "said": [said]}]}
    write_json(tmp_path / "answers.json", answers)
    (tmp_path / "checkpoints/step-000001").mkdir(parents=True)
    facts = {"commit": said, "versions": {"torch": said}, "settings": {"x": said}, "seconds": 60.0}
    (tmp_path / "checkpoints/step-000001/train.json").write_text(json.dumps(facts))
    page = write_train_report(tmp_path).read_text()
    assert "<script" not in page
    assert "<b>x</b>" not in page
    assert page.count("alert(1)") == 7
    assert re.search(r"&lt;i&gt;a/b&lt;/i&gt;</td><td>no picture</td><td>dropped</td>", page)


def test_a_source_may_be_named_like_a_formula(tmp_path: Path) -> None:
    with Metrics(tmp_path, 0, ()) as metrics:
        metrics.add(1, **{"loss/a$\\x$": 1.0, "loss/b": 2.0})
    assert ">loss/a$\\x$</" in write_train_report(tmp_path).read_text()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no metrics\.jsonl"):
        write_train_report(tmp_path)


def test_the_last_counts_are_those_of_the_run_the_most_first() -> None:
    rows = [
        {"step": 1, "dropped/a/too long": 1, "shortened/a/fewer tiles": 3},
        {"step": 2, "dropped/a/too long": 2, "dropped/b/no picture": 5, "loss/a": 1},
    ]
    assert count_unusable(rows) == [
        ("dropped", "b", "no picture", 5),
        ("dropped", "a", "too long", 2),
        ("shortened", "a", "fewer tiles", 3),
    ]
