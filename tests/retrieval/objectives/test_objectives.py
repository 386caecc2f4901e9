"""The losses of retrieval against other implementations of their formulas."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from gh_downstream.adaptation import coral, mmd
from gh_downstream.retrieval.objectives import (
    Alignment,
    AlignmentTermConfig,
    SideFeatures,
    TaskConfig,
    TripletConfig,
    contrastive_loss,
    gather_with_gradient,
    positive_pairs,
    sigmoid_loss,
    triplet_loss,
)
from tests.retrieval.toy_encoder import ToyEncoder, terms


def features(n, seed, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    x = normalize(torch.randn(n, 8, generator=generator, dtype=torch.float64), dim=1)
    return x.requires_grad_(requires_grad)


SCALE = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
BIAS = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)


def assert_same_loss(ours, theirs, inputs):
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_one_caption_for_each_image_is_the_loss_of_open_clip():
    loss = pytest.importorskip("open_clip.loss").ClipLoss()
    images, texts = features(6, 0), features(6, 1)
    ours = contrastive_loss(images, texts, torch.eye(6, dtype=torch.bool), SCALE)
    assert_same_loss(ours, loss(images, texts, SCALE.exp()), (images, texts, SCALE))


def test_one_caption_for_each_image_is_the_sigmoid_loss_of_open_clip():
    loss = pytest.importorskip("open_clip.loss").SigLipLoss()
    images, texts = features(6, 0), features(6, 1)
    ours = sigmoid_loss(images, texts, torch.eye(6, dtype=torch.bool), SCALE, BIAS)
    assert_same_loss(ours, loss(images, texts, SCALE.exp(), BIAS), (images, texts, SCALE, BIAS))


# Image 5 is there twice, image 9 has no text, and the text of image 4 has no image.
GROUPS, TEXT_GROUPS = [5, 7, 5, 9], [7, 5, 5, 7, 7, 4]


def test_several_captions_share_the_target_of_the_contrastive_loss():
    images, texts = features(4, 0), features(6, 1)
    similarity = [[SCALE.exp() * (x * y).sum() for y in texts] for x in images]

    def direction(rows, columns, entry):
        loss = 0.0
        for i, group in enumerate(rows):
            partition = torch.stack([entry(i, j) for j in range(len(columns))]).exp().sum()
            positive = [j for j, other in enumerate(columns) if other == group]
            for j in positive:
                loss = loss - (entry(i, j) - partition.log()) / len(positive) / len(rows)
        return loss

    naive = 0.5 * (
        direction(GROUPS, TEXT_GROUPS, lambda i, j: similarity[i][j])
        + direction(TEXT_GROUPS, GROUPS, lambda j, i: similarity[i][j])
    )
    ours = contrastive_loss(images, texts, positive_pairs(torch.tensor(GROUPS), torch.tensor(TEXT_GROUPS)), SCALE)
    assert_same_loss(ours, naive, (images, texts, SCALE))


def test_pairs_go_by_what_an_image_belongs_to():
    positives = positive_pairs(torch.tensor([[0, 9], [1, 9], [2, -1]]), torch.tensor([9, 1, 9, 2, 5]))
    assert positives.tolist() == [
        [True, False, True, False, False],
        [True, True, True, False, False],
        [False, False, False, True, False],
    ]


def test_sigmoid_loss_is_the_double_loop_of_the_paper():
    images, texts = features(4, 0), features(6, 1)
    naive = 0.0
    for i, x in enumerate(images):
        for j, y in enumerate(texts):
            sign = 1 if GROUPS[i] == TEXT_GROUPS[j] else -1
            naive = naive - torch.sigmoid(sign * (SCALE.exp() * (x * y).sum() + BIAS)).log() / 4
    positives = positive_pairs(torch.tensor(GROUPS), torch.tensor(TEXT_GROUPS))
    assert_same_loss(sigmoid_loss(images, texts, positives, SCALE, BIAS), naive, (images, texts, SCALE, BIAS))


@pytest.mark.parametrize("margin", [0.01, 0.2, 3.0])
@pytest.mark.parametrize(("groups", "text_groups"), [(GROUPS, TEXT_GROUPS), (range(5), range(5))])
def test_triplet_loss_is_the_hinge_of_each_pair_on_its_hardest_negatives(groups, text_groups, margin):
    images, texts = features(len(groups), 0), features(len(text_groups), 1)
    naive, pairs = 0.0, 0
    for x, group in zip(images, groups, strict=True):
        for y, text_group in zip(texts, text_groups, strict=True):
            if group == text_group:
                pairs += 1
                hardest_text = max(x @ other for other, g in zip(texts, text_groups, strict=True) if g != group)
                hardest_image = max(other @ y for other, g in zip(images, groups, strict=True) if g != group)
                for hardest in (hardest_text, hardest_image):
                    naive = naive + torch.relu(margin + hardest - x @ y)
    positives = positive_pairs(torch.tensor(groups), torch.tensor(text_groups))
    assert_same_loss(triplet_loss(images, texts, positives, margin), naive / pairs, (images, texts))


def test_a_triplet_without_negative_adds_nothing():
    images, texts = features(3, 0), features(4, 1)
    # Every text belongs to image 0, so that it has no negative text, and text 3 to every image.
    positives = torch.zeros(3, 4, dtype=torch.bool)
    positives[0], positives[:, 3] = True, True
    s = images @ texts.T
    hinges = [2.0 + s[1:, j].max() - s[0, j] for j in range(3)]  # Image 0 with texts 0 to 2: against the other images.
    hinges += [2.0 + s[i, :3].max() - s[i, 3] for i in (1, 2)]  # Text 3 with images 1 and 2: against the other texts.
    assert_same_loss(triplet_loss(images, texts, positives, 2.0), sum(hinges) / 6, (images, texts))
    for of_all in (True, False):  # No negatives at all, and no pairs at all.
        loss = triplet_loss(images, texts, torch.full((3, 4), of_all), 0.2)
        assert loss == 0
        assert all((g == 0).all() for g in torch.autograd.grad(loss, (images, texts)))


def test_under_autocast_the_losses_stay_in_float32():
    images, texts, scale = features(6, 0).float(), features(6, 1).float(), torch.tensor(4.0)
    positives = torch.eye(6, dtype=torch.bool)

    def losses():
        yield contrastive_loss(images, texts, positives, scale)
        yield sigmoid_loss(images, texts, positives, scale, scale)
        yield triplet_loss(images, texts, positives, 0.2)

    expected = list(losses())
    with torch.autocast("cpu", torch.bfloat16):
        assert list(losses()) == expected


def test_gather_is_the_identity_in_a_single_process():
    x = features(3, 0)
    assert gather_with_gradient(x) is x


@pytest.mark.parametrize(("name", "distance"), [("mmd", mmd), ("coral", coral)])
def test_discrepancies_are_those_of_the_adaptation_package(name, distance):
    source, target = features(6, 0), features(5, 1)
    losses = Alignment(ToyEncoder(), terms(name, weight=0.5))({"image": SideFeatures(source, target)})
    assert losses.keys() == {f"loss_{name}_image"}
    torch.testing.assert_close(losses[f"loss_{name}_image"], 0.5 * distance(source, target))


def test_the_adversary_learns_to_tell_the_domains_apart_and_the_features_to_confuse_it():
    alignment = Alignment(ToyEncoder(), terms("domain")).double()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 32, 8, generator=generator, dtype=torch.float64)
    shift = torch.nn.functional.one_hot(torch.tensor(0), 8)
    source, target = (normalize(x, dim=1).requires_grad_() for x in (noise[0] + shift, noise[1] - shift))

    def loss():
        return alignment({"image": SideFeatures(source, target)})["loss_domain_image"]

    assert loss().item() == pytest.approx(math.log(2), abs=0.1)
    optimizer = torch.optim.Adam(alignment.parameters(), lr=0.01)
    for _ in range(50):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    learnt = loss()
    assert learnt.item() < 0.3
    step = [x - 0.1 * g for x, g in zip((source, target), torch.autograd.grad(learnt, (source, target)), strict=True)]
    with torch.no_grad():
        assert alignment({"image": SideFeatures(*step)})["loss_domain_image"] > learnt


def test_distillation_is_the_divergence_from_the_similarities_of_the_starting_model():
    learnt, start, others = features(4, 0), features(4, 1, False), features(6, 2, False)
    encoder = ToyEncoder().double()
    alignment = Alignment(encoder, terms("distillation"))
    with torch.no_grad():
        scale = encoder.logit_scale.exp()
        encoder.logit_scale.fill_(3.0)  # The scale is the starting model's, whatever is learnt.
    found = alignment({"image": SideFeatures(learnt, None, start, others)})["loss_distillation_image"]
    p, q = (torch.softmax(scale * x @ others.T, dim=1) for x in (start, learnt))
    torch.testing.assert_close(found, (p * (p / q).log()).sum(dim=1).mean())
    same = alignment({"image": SideFeatures(start, None, start, others)})["loss_distillation_image"]
    assert same.item() == pytest.approx(0, abs=1e-12)


def test_a_term_of_weight_zero_is_not_there():
    alignment = Alignment(ToyEncoder(), terms("domain", "distillation", on="both", weight=0.0))
    assert not alignment.sides
    assert not alignment.state_dict()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: TaskConfig("clip"), "contrastive, sigmoid, got 'clip'"),
        (lambda: TaskConfig(max_logit_scale=0.5), "max_logit_scale must be at least 1"),
        (lambda: AlignmentTermConfig(-1.0), "weight must be at least 0"),
        (lambda: AlignmentTermConfig(1.0, "images"), "side is one of image, text, both, got 'images'"),
        (lambda: AlignmentTermConfig(1.0, noise=0.0), "noise must be above 0, got 0.0"),
        (lambda: TripletConfig(-1.0), "weight must be at least 0"),
        (lambda: TripletConfig(1.0, 0.0), "margin must be above 0"),
        (lambda: Alignment(ToyEncoder(), terms("mmd", "mdd")), "alignment has mdd, but its terms are mmd"),
        (
            lambda: Alignment(ToyEncoder(), terms("consistency", on="both")),
            "consistency .* has to be image, got 'both'",
        ),
        (lambda: Alignment(ToyEncoder(), terms("mmd", noise=0.3)), "alignment.mmd takes no noise"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_settings_fit_into_a_structured_configuration():
    omegaconf = pytest.importorskip("omegaconf")
    schema = omegaconf.OmegaConf.structured({"task": TaskConfig, "alignment": AlignmentTermConfig})
    values = {"task": {"name": "sigmoid", "triplet": {"weight": 1}}, "alignment": {"weight": 1, "side": "both"}}
    found = omegaconf.OmegaConf.to_object(omegaconf.OmegaConf.merge(schema, values))
    assert found["task"] == TaskConfig("sigmoid", triplet=TripletConfig(1.0, 0.2))
    assert found["alignment"] == AlignmentTermConfig(1.0, "both")
    assert found["alignment"].sides == ("image", "text")
