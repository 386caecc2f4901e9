"""The detectors without regions."""

import pytest

from tests.detection.detectron2.adaptive_models import losses_of, model_of, plain_of, source, target


def test_pseudo_labels_leave_the_mean_that_the_losses_are_divided_by():
    model, plain = model_of("retinanet"), plain_of("retinanet")
    losses_of(model, source() + target(2, pseudo=True))
    losses_of(plain, source())
    assert model.loss_normalizer == plain.loss_normalizer


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_the_mean_that_the_losses_are_divided_by_is_in_the_checkpoint(kind):
    model, other = model_of(kind), model_of(kind)
    other.load_state_dict(model.state_dict())
    assert not hasattr(other, "loss_normalizer")  # Before the first step there is none.
    losses_of(model, source() + target())
    other.load_state_dict(model.state_dict())
    assert other.loss_normalizer == pytest.approx(model.loss_normalizer)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_a_dense_detector_has_no_regions(kind, monkeypatch):
    keys = r"set DA.IMAGE_INSTANCE.INSTANCE_WEIGHT and DA.IMAGE_INSTANCE.CONSISTENCY_WEIGHT to 0\.0"
    if kind == "retinanet":
        with pytest.raises(ValueError, match=f"DomainAdaptiveRetinaNet has no features of regions to align: {keys}"):
            model_of(kind, instance_weight=1.0)
    else:
        monkeypatch.setattr("tests.detection.detectron2.adaptive_models.IMAGE_ONLY", {})
        with pytest.raises(ValueError, match=f"DomainAdaptiveFCOS has no features of regions to align: {keys}"):
            model_of(kind)
