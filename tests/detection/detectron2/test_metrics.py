"""What is read of metrics.json, as Detectron2's own writer writes it."""

import pytest

pytest.importorskip("detectron2.engine", reason="needs Detectron2", exc_type=ImportError)

from detectron2.utils.events import EventStorage, JSONWriter

from gh_downstream.detection.detectron2.metrics import drop_iterations, read_metrics


def write(path, iterations, last, base, killed=False):
    """What is written every 2 iterations of a training that evaluates after the fourth and the last."""
    with EventStorage(iterations.start) as storage:
        writer = JSONWriter(str(path))
        for storage.iter in iterations:
            storage.put_scalar("total_loss", 2.5)
            storage.put_scalar("gh/cosine", base + storage.iter + 1, smoothing_hint=False)
            if storage.iter == 3:
                storage.put_scalar("bbox/AP50", base + 4, smoothing_hint=False)
            if storage.iter % 2:
                writer.write()
        if not killed:
            # As in after_train: one more than the last iteration, two where a finished training is called again.
            storage.iter = last
            storage.put_scalar("bbox/AP50", base + last, smoothing_hint=False)
            writer.write()
        writer.close()


def test_a_step_is_the_number_of_iterations_done(tmp_path):
    write(tmp_path / "metrics.json", range(8), 8, base=100)
    lines = read_metrics(tmp_path / "metrics.json")
    assert [(line["step"], line["gh/cosine"]) for line in lines] == [(2, 102), (4, 104), (6, 106), (8, 108)]
    # The last evaluation comes after the last iteration, under a number of its own.
    assert [(line["step"], line["bbox/AP50"]) for line in lines if "bbox/AP50" in line] == [(4, 104), (8, 108)]


def test_a_resumed_training_replaces_what_it_does_again(tmp_path):
    path = tmp_path / "metrics.json"
    write(path, range(6), 6, base=100, killed=True)
    write(path, range(4, 8), 8, base=200)
    write(path, range(8, 8), 9, base=300)  # finished already: evaluated once more
    lines = read_metrics(path)
    assert [(line["step"], line["gh/cosine"]) for line in lines] == [(2, 102), (4, 104), (6, 206), (8, 208)]
    assert [(line["step"], line["bbox/AP50"]) for line in lines if "bbox/AP50" in line] == [(4, 104), (8, 309)]


def test_a_line_that_a_kill_cut_off_is_skipped(tmp_path):
    path = tmp_path / "metrics.json"
    write(path, range(6), 6, base=100, killed=True)
    path.write_text(path.read_text()[:-20])
    assert [line["step"] for line in read_metrics(path)] == [2, 4]
    write(path, range(4, 8), 8, base=200)
    assert [line["step"] for line in read_metrics(path)] == [2, 4, 8]


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    write(tmp_path / "metrics.json", range(4), 4, base=float("nan"))
    assert read_metrics(tmp_path / "metrics.json") == [{"step": k, "total_loss": 2.5} for k in (2, 4)]


@pytest.mark.parametrize("cut", [0, 1, 20], ids="{} bytes lost".format)
def test_what_a_resumed_training_writes_again_is_dropped_first(tmp_path, cut):
    """While the writer of the resumed training has the file open, as Detectron2 has it."""
    path, whole = tmp_path / "metrics.json", tmp_path / "whole.json"
    write(whole, range(8), 8, base=100)
    write(path, range(6), 6, base=100, killed=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
    with path.open("a") as file:
        drop_iterations(path, 4)
        assert [line["step"] for line in read_metrics(path)] == [2, 4]
        assert path.read_bytes() == whole.read_bytes()[: path.stat().st_size]
        file.write('{"iteration": 4, "total_loss": 1.0}\n')
    assert [line["step"] for line in read_metrics(path)] == [2, 4, 5]
    drop_iterations(path, 0)
    assert path.read_bytes() == b""


def test_there_may_be_no_metrics_yet(tmp_path):
    drop_iterations(tmp_path / "metrics.json", 4)
    assert not list(tmp_path.iterdir())
