"""What who watches a training sees where there is no terminal."""

import logging
import re

from gh_downstream.training.metrics import MetricsLog, read_metrics

RECALLS = {f"{of}/image_to_text_R@{k}": 10.0 * k for of in ("source", "target") for k in (1, 5, 10)}


def test_a_line_of_the_log_says_how_fast_how_long_and_how_much_memory(tmp_path, caplog):
    caplog.set_level(logging.INFO, "gh_downstream")
    with MetricsLog(tmp_path, 0, 20) as log:
        log.write(10, {"total": 1.5, "grad_norm": 3.0})
    (line,) = [record.message for record in caplog.records]
    assert re.fullmatch(r"step 10/20  total 1\.5  \([\d.e+]+ steps/s, \d+:\d\d:\d\d left, [1-9]?\d*\.\d GiB\)", line), (
        line
    )
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 10, "total": 1.5, "grad_norm": 3.0}]


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
