"""What who watches a training sees where there is no terminal."""

import logging
import re

from gh_downstream.training.metrics import MetricsLog, read_metrics

RECALLS = {f"{of}/image_to_text_R@{k}": 10.0 * k for of in ("source", "target") for k in (1, 5, 10)}


def test_a_line_of_the_log_says_how_fast_how_long_and_how_much_memory(tmp_path, caplog):
    caplog.set_level(logging.INFO, "gh_downstream")
    with MetricsLog(tmp_path, None, 20) as log:
        for step in range(1, 11):
            log.advance(step, images=8)
        log.write(10, {"total": 1.5, "grad_norm": 3.0})
    (line,) = [record.message for record in caplog.records]
    speed = r"[\d.e+]+ steps/s, [\d.e+]+ images/s"
    assert re.fullmatch(rf"step 10/20  total 1\.5  \({speed}, \d+:\d\d:\d\d left, [1-9]?\d*\.\d GiB\)", line), line
    (logged,) = read_metrics(tmp_path / "metrics.jsonl")
    assert logged.pop("images_per_second") > 0
    assert logged == {"step": 10, "total": 1.5, "grad_norm": 3.0}


def test_images_a_second_are_of_the_time_since_the_last_line_without_evaluations(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "gh_downstream")
    now = 100.0
    monkeypatch.setattr("gh_downstream.training.metrics.time.monotonic", lambda: now)
    with MetricsLog(tmp_path, None, 20) as log:
        now += 50  # an evaluation before the first step
        log.write_evaluation(0, RECALLS)
        for step in range(1, 9):
            now += 2
            log.advance(step, images=12 if step < 5 else 6)
            if step in (4, 8):
                log.write(step, {"total": 1.0})
            if step == 6:
                now += 50
                log.write_evaluation(step, RECALLS)
    rates = {line["step"]: line.get("images_per_second") for line in read_metrics(tmp_path / "metrics.jsonl")}
    assert rates == {0: None, 4: 6.0, 6: None, 8: 3.0}
    assert "(0.5 steps/s, 6 images/s, " in caplog.text


def test_a_line_without_steps_of_this_process_has_no_speed(tmp_path, caplog):
    """That of a step before, whose evaluation is made up for; and images that nobody counts."""
    caplog.set_level(logging.INFO, "gh_downstream")
    with MetricsLog(tmp_path, 9, 20) as log:
        log.write(10, {"total": 1.5})
        log.advance(11, images=0)
        log.write(11, {"total": 1.5})
    assert "images" not in caplog.text + (tmp_path / "metrics.jsonl").read_text()
    assert ["steps/s" in record.message for record in caplog.records] == [False, True]


def test_an_evaluation_is_a_table_with_a_column_for_each_data_set(tmp_path, caplog):
    caplog.set_level(logging.INFO, "gh_downstream")
    with MetricsLog(tmp_path, 0, 20) as log:
        log.write_evaluation(20, RECALLS | {"target/mAP": 1.234})
    title, _, names, _, *rows = caplog.records[-1].message.splitlines()
    assert title == "evaluation at step 20"
    assert names.split() == ["source", "target"]
    assert [row.split() for row in rows] == [
        ["image_to_text_R@1", "10.00", "10.00"],
        ["image_to_text_R@5", "50.00", "50.00"],
        ["image_to_text_R@10", "100.00", "100.00"],
        ["mAP", "–", "1.23"],
    ]
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 20} | RECALLS | {"target/mAP": 1.234}]
