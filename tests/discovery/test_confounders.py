import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snellen.audit.engine import loader_for
from snellen.audit.executor import BatchSize, SampleView
from snellen.data.dataset import Dataset
from snellen.demo.digits import demo_images
from snellen.discovery import confounders
from snellen.discovery._concept_bank import ConceptBank, drop_concept, erasing_matrix, fit_concept_bank
from snellen.discovery._concept_logic import EntropyLinear, LinearHead, LogicHead, holds, read_rule, simplify
from snellen.discovery._confounders_report import suspects
from snellen.discovery._evidence import find_patterns, gradcam_evidence, match_patterns, suspicion
from snellen.discovery._rewriting import forbidden, influence, residual_leak, rewrite, train_head
from snellen.discovery.confounders import ConfounderDiscovery
from snellen.errors import InvalidInput
from snellen.explain._layers import last_spatial_layer
from snellen.explain.cam import class_activation_map
from snellen.models.loading import load_model
from snellen.probe import Context, function_methods, rows
from snellen.randomness import SampleRandom

PROBE = ConfounderDiscovery()


# ------------------------------------------------------------------------------------------------------- the probe


def demo_data(seed, count=1200, masked=True):
    drawn = demo_images("test", count, seed)
    masks = drawn.masks.view(count, 32, 32) > 127
    return Dataset.from_arrays(
        drawn.images, drawn.labels, drawn.class_names, drawn.attributes, drawn.ids, "d", masks if masked else None
    )


def examine(model, data, order=None, batch_size=128, probe=PROBE):
    order = np.arange(len(data)) if order is None else order
    view = SampleView(loader_for(model, data), order, BatchSize(3, 32, 32, batch_size))
    table = probe.run(model, view, {}, SampleRandom(0, probe.name))
    context = Context(model.spec, data.table, data.attributes, 0)
    return table, probe.findings(table, context), probe.exhibits(table, context)


@pytest.fixture(scope="module")
def faulty():
    return load_model("demo").model


@pytest.mark.parametrize("seed", [21, 22])
def test_both_shortcuts_of_the_demo_are_found_and_nothing_else(faulty, seed):
    _table, findings, exhibits = examine(faulty, demo_data(seed))
    named = {f.subject["answer"]: f for f in findings}
    assert set(named) == {"1", "4"}
    assert named["1"].subject["tag"] == "red"
    assert named["4"].subject["background"] == "stripes"
    for finding in findings:
        assert finding.kind == "shortcut"
        assert finding.effect > 0.2
        assert finding.p_value < 0.01
        assert finding.ci[0] <= finding.value <= finding.ci[1] < finding.baseline
        assert "pattern" in finding.measured
    (gallery,) = exhibits
    assert len(gallery.items) == 8
    assert np.asarray(gallery.items[0].heat_maps[0][1]).shape == (8, 8)


@pytest.mark.parametrize("seed", [31, 32, 33])
def test_a_healthy_model_gets_no_finding(seed):
    _table, findings, exhibits = examine(load_model("demo:healthy").model, demo_data(seed))
    assert findings == []
    assert exhibits == []


def test_it_costs_one_pass_each_way_and_one_image_to_find_the_layer(faulty):
    before = faulty.ledger.totals
    examine(faulty, demo_data(1, 120))
    after = faulty.ledger.totals
    assert after.forward - before.forward == 121
    assert after.backward - before.backward == PROBE.cost(120).backward + 1 == 121


def test_neither_order_nor_batch_size_matters(faulty):
    data = demo_data(23, 400)
    one, _, _ = examine(faulty, data)
    two, _, _ = examine(faulty, data, np.random.default_rng(0).permutation(400), 37)
    for name in ("id", "half", "pattern", "predicted"):
        assert one[name].to_pylist() == two[name].to_pylist()
    np.testing.assert_allclose(one["on_object"].to_numpy(), two["on_object"].to_numpy(), atol=1e-3)


def test_evidence_ids_are_wrong_answers_of_the_confirmation_half_with_the_cause(faulty):
    data = demo_data(24)
    table, findings, _ = examine(faulty, data)
    rows_of = {row["id"]: row for row in table.drop_columns(["heat"]).to_pylist()}
    tag = dict(zip(data.ids, data.table["tag"].to_pylist(), strict=True))
    finding = next(f for f in findings if f.subject["answer"] == "1")
    assert len(finding.evidence) == 12
    assert all(rows_of[i]["half"] == "confirmation" for i in finding.evidence)
    assert all(rows_of[i]["label"] != 1 == rows_of[i]["predicted"] for i in finding.evidence)
    assert np.mean([tag[i] == "red" for i in finding.evidence]) > 0.9


def test_without_masks_or_with_few_images_it_says_nothing_or_that_it_cannot(faulty):
    assert examine(faulty, demo_data(1, 60, masked=False)) == (pa.table({}), [], [])
    _table, (finding,), exhibits = examine(faulty, demo_data(1, 60))
    assert not finding.enough_data
    assert "needs about 40" in finding.title
    assert exhibits == []
    assert PROBE.needs_masks


def table_of(rng, n, wrong_here, heat_here):
    """One answer, two patterns; the first is less right or has its heat off the object, as asked."""
    pattern = rng.integers(0, 2, n)
    right = rng.random(n) < np.where(pattern == 0, 1 - wrong_here, 0.9)
    heat = rng.normal(np.where(pattern == 0, heat_here, 0.7), 0.15)
    return rows(
        [f"s{i:04}" for i in range(n)],
        half=np.where(rng.random(n) < 0.5, "discovery", "confirmation").tolist(),
        label=np.where(right, 0, 1),
        predicted=np.zeros(n, dtype=np.int64),
        pattern=pattern,
        on_object=heat,
        even=np.full(n, 0.3),
    )


@pytest.mark.parametrize(("wrong", "heat", "level"), [(0.1, 0.1, 0.05), (0.6, 0.7, 0.05)])
def test_both_halves_of_the_claim_must_hold(wrong, heat, level):
    rng = np.random.default_rng(0)
    runs = [suspects(table_of(rng, 160, wrong, heat), 10, rng) for _ in range(60)]
    assert sum(any(s.p_value <= level for s in run) for run in runs) <= 6


def test_a_planted_pattern_is_suspected():
    rng = np.random.default_rng(0)
    (found,) = suspects(table_of(rng, 400, 0.6, 0.1), 10, rng)
    assert found.pattern == 0
    assert found.p_value < 0.01
    assert 0.3 < found.drop < 0.7
    assert found.on_object < found.even < found.elsewhere


@pytest.mark.parametrize("setting", [{"min_count": 4}, {"min_effect": 1.0}, {"min_effect": -0.1}])
def test_bad_settings_are_refused(setting):
    with pytest.raises(InvalidInput, match=next(iter(setting))):
        ConfounderDiscovery(**setting)


# -------------------------------------------------------------------------------------------- evidence and patterns


def test_the_heat_is_that_of_grad_cam(faulty):
    pixels = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    layer = last_spatial_layer(faulty, pixels)
    seen = gradcam_evidence(faulty, pixels, layer)
    maps, logits = class_activation_map(faulty, pixels)
    enlarged = F.interpolate(seen.heat.unsqueeze(1), size=(32, 32), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(enlarged, maps, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen.logits, logits)
    torch.testing.assert_close(seen.vectors.norm(dim=1), torch.ones(8))


def clustered(rng, n, spread=0.05):
    truth = rng.integers(0, 3, n)
    vectors = np.eye(3, 12)[truth] + spread * rng.normal(size=(n, 12))
    return truth, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_planted_patterns_are_recovered_also_on_samples_that_were_not_fitted():
    rng = np.random.default_rng(0)
    truth, vectors = clustered(rng, 300)
    fitted = np.arange(300) < 150
    found = find_patterns(vectors, fitted, 10, rng)
    assert len(found.centres) == 3
    pairs = set(zip(truth.tolist(), found.codes.tolist(), strict=True))
    assert len(pairs) == 3


def test_small_patterns_are_merged():
    rng = np.random.default_rng(0)
    truth, vectors = clustered(rng, 300)
    kept = (truth != 2) | (np.cumsum(truth == 2) <= 3)
    found = find_patterns(vectors[kept], np.ones(int(kept.sum()), dtype=np.bool_), 5, rng)
    assert np.bincount(found.codes).min() >= 5


def test_too_few_or_equal_vectors_have_no_patterns():
    rng = np.random.default_rng(0)
    _, vectors = clustered(rng, 30)
    assert find_patterns(vectors, np.arange(30) < 9, 5, rng) is None
    assert find_patterns(np.ones((30, 4), dtype=np.float32) / 2, np.ones(30, dtype=np.bool_), 5, rng) is None


def test_patterns_are_matched_over_classes_only():
    centres = np.array([[1, 0, 0], [0.999, 0.04, 0], [0, 1, 0], [0.998, 0.06, 0]], dtype=np.float32)
    one, two, three, four = match_patterns(centres, np.array([0, 1, 0, 1])).tolist()
    assert one == two == four != three
    apart = match_patterns(centres[:2], np.array([0, 0]))
    assert apart[0] != apart[1]


def test_without_masks_the_score_of_a_classs_own_shape_is_that_of_a_confounder():
    """The card has the score alone find confounders; only the place of the heat tells them from content."""
    labels = np.repeat([0, 1, 2], 100)
    np.testing.assert_allclose(suspicion(labels, labels), np.log(3) / 3)
    on_object = np.where(labels == 1, 0.1, 0.9)
    assert suspicion(labels, labels, on_object).argmax() == 1


def test_shuffling_labels_within_a_cluster_cannot_test_its_share():
    """The card's null as it is worded leaves the statistic as it is; shuffled over all samples it moves."""
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 3, 300), rng.integers(0, 4, 300)
    within = labels.copy()
    for group in range(4):
        within[groups == group] = rng.permutation(within[groups == group])
    np.testing.assert_allclose(suspicion(groups, within), suspicion(groups, labels))
    assert not np.allclose(suspicion(groups, rng.permutation(labels)), suspicion(groups, labels))


# ---------------------------------------------------------------------------------------------------------- concepts


def exemplars(rng, n=50, dims=8, shift=3.0):
    found = {}
    for k, name in enumerate(("ruler", "hair", "spots")):
        present, absent = (torch.from_numpy(rng.normal(size=(n, dims))).float() for _ in range(2))
        present[:, k] += shift
        found[name] = (present, absent)
    return found


@pytest.fixture(scope="module")
def bank():
    return fit_concept_bank(exemplars(np.random.default_rng(0)))


def test_concepts_are_found_along_their_directions(bank):
    assert bank.names == ("ruler", "hair", "spots")
    assert min(bank.accuracies) > 0.8
    assert (bank.vectors.diagonal() > 0.7).all()
    torch.testing.assert_close(bank.vectors.norm(dim=1), torch.ones(3))


def test_a_vector_scores_one_on_itself_and_scores_are_linear():
    generator = torch.Generator().manual_seed(0)
    bank = ConceptBank(("a", "b"), 3 * torch.randn(2, 6, generator=generator), (1.0, 1.0))
    torch.testing.assert_close(bank.scores(bank.vectors).diagonal(), torch.ones(2))
    x, y = torch.randn(2, 5, 6, generator=generator)
    torch.testing.assert_close(bank.scores(2 * x - y), 2 * bank.scores(x) - bank.scores(y))


def test_a_concept_at_chance_or_with_few_exemplars_is_refused_by_name():
    rng = np.random.default_rng(0)
    with pytest.raises(InvalidInput, match=r"'ruler'.*held out"):
        fit_concept_bank(exemplars(rng, shift=0.0))
    with pytest.raises(InvalidInput, match="'ruler' needs at least 10"):
        fit_concept_bank(exemplars(rng, n=9))
    with pytest.raises(InvalidInput, match="at least one"):
        fit_concept_bank({})


def test_after_the_drop_moving_along_the_concept_changes_no_output(bank):
    torch.manual_seed(0)
    x = torch.randn(20, 8)
    dropped = drop_concept(bank, "ruler")
    assert dropped.names == ("hair", "spots")
    moved = x + 5 * bank.vectors[0]
    assert (bank.scores(moved) - bank.scores(x))[:, 0].abs().min() > 1
    head = LogicHead(2, 3)
    torch.testing.assert_close(head(dropped.scores(moved)), head(dropped.scores(x)), atol=1e-5, rtol=1e-5)


def test_the_eraser_takes_out_what_a_normal_alone_does_not_know():
    rng = np.random.default_rng(0)
    present = rng.random(2000) < 0.5
    x = rng.normal(size=(2000, 4)) @ rng.normal(size=(4, 4)) + np.outer(present, [2.0, 1.0, -1.0, 0.5])
    features, flags = torch.from_numpy(x).float(), torch.from_numpy(present)
    eraser = erasing_matrix(features, flags)
    torch.testing.assert_close(eraser @ eraser, eraser, atol=1e-4, rtol=1e-3)
    erased = features - (features - features.mean(dim=0)) @ eraser.T
    torch.testing.assert_close(erased[flags].mean(0), erased[~flags].mean(0), atol=1e-4, rtol=0)

    bank = ConceptBank(("c", "a", "b"), torch.eye(4)[:3], (1.0,) * 3)
    scores = [drop_concept(bank, "c", e).scores(features) for e in (None, eraser)]
    gaps = [(s[flags].mean(0) - s[~flags].mean(0)).abs().max() for s in scores]
    assert gaps[0] > 0.5
    assert gaps[1] < 1e-3


def test_a_concept_without_a_direction_of_its_own_is_refused():
    bank = ConceptBank(("a", "b"), torch.tensor([[1.0, 0], [2.0, 0]]), (1.0, 1.0))
    with pytest.raises(InvalidInput, match="no direction besides"):
        drop_concept(bank, "a")
    with pytest.raises(InvalidInput, match="only one"):
        drop_concept(ConceptBank(("a",), torch.ones(1, 2), (1.0,)), "a")
    with pytest.raises(InvalidInput, match="there is no concept"):
        drop_concept(bank, "z")


# ------------------------------------------------------------------------------------------------ the logic and rules


def test_the_entropy_layer_is_its_formula():
    """Written out weight by weight, as Barbiero et al. (2022) define it."""
    layer = EntropyLinear(4, 3, 2, torch.Generator().manual_seed(0))
    x = torch.rand(5, 4, generator=torch.Generator().manual_seed(1))
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    expected = np.zeros((5, 2, 3))
    for c in range(2):
        gamma = np.abs(weight[c]).sum(axis=0)
        alpha = np.exp(gamma / 0.6) / np.exp(gamma / 0.6).sum()
        for n, h in itertools.product(range(5), range(3)):
            expected[n, c, h] = bias[c, 0, h] + sum(
                x[n, k].item() * alpha[k] / alpha.max() * weight[c, h, k] for k in range(4)
            )
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-6)
    torch.testing.assert_close(layer.alpha().sum(dim=1), torch.ones(2))
    assert (layer.relative_alpha().amax(dim=1) == 1).all()


def test_the_entropy_is_largest_for_even_attention():
    layer = EntropyLinear(4, 3, 1, torch.Generator().manual_seed(0))
    uneven = layer.entropy()
    with torch.no_grad():
        layer.weight.fill_(0.5)
    assert uneven < layer.entropy()
    assert layer.entropy().item() == pytest.approx(np.log(4))


terms = st.lists(st.tuples(*[st.sampled_from([True, False, None])] * 5), max_size=6)


@settings(max_examples=60, deadline=None)
@given(terms)
def test_simplifying_keeps_the_truth_table(given_terms):
    table = torch.tensor(list(itertools.product([False, True], repeat=5)))
    short = simplify(given_terms)
    assert torch.equal(holds(short, table), holds(given_terms, table))
    assert len(short) <= max(len(given_terms), 16)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_simplifying_keeps_every_truth_table_of_few_concepts(k):
    cases = list(itertools.product([False, True], repeat=k))
    table = torch.tensor(cases)
    for wanted in itertools.product([False, True], repeat=len(cases)):
        given_terms = [case for case, told in zip(cases, wanted, strict=True) if told]
        assert holds(simplify(given_terms), table).tolist() == list(wanted)


def test_simplifying_finds_the_short_form():
    assert simplify([(True, True), (True, False)]) == [(True, None)]
    assert simplify([(True,), (False,)]) == [(None,)]
    with pytest.raises(InvalidInput, match="at most 10"):
        simplify([(True,) * 11])


def test_a_rule_is_read_back_from_a_logic_head():
    generator = torch.Generator().manual_seed(0)
    truth = (torch.rand(500, 4, generator=generator) > 0.5).float()
    labels = ((truth[:, 0] > 0.5) & (truth[:, 2] < 0.5)).long()
    head = train_head(LogicHead(4, 2), truth, labels, regularisation=1e-3, epochs=30)
    predicted = head(truth).argmax(dim=1)
    assert (predicted == labels).float().mean() > 0.99
    rule = read_rule(truth, head.used()[1] | torch.tensor([True, False, True, False]), labels, predicted, 1)
    assert rule.accuracy > 0.95
    named = read_rule(truth, torch.tensor([True, False, True, False]), labels, predicted, 1)
    assert named.text("abcd") == "a and not c"
    assert named.length == 2
    assert named.accuracy == 1.0
    assert read_rule(truth, head.used()[1], labels, 1 - predicted, 1).text("abcd") == "never"


# ---------------------------------------------------------------------------------------------------------- rewriting


def confounded(seed=0, n=800, follow=0.95):
    """Scores of a confounder (0) and two honest concepts; label is 1 in half."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    sign = 2 * labels - 1
    shown = np.where(rng.random(n) < follow, sign, -sign)
    honest = 0.8 * sign[:, None] + rng.normal(size=(n, 2))
    return torch.from_numpy(np.column_stack([shown, honest])).float(), torch.from_numpy(labels)


MASK = torch.tensor([[False] * 3, [True, False, False]])


def test_strength_zero_is_the_head_without_a_rule():
    scores, labels = confounded()
    plain = train_head(LinearHead(3, 2), scores, labels, epochs=5)
    zero = train_head(LinearHead(3, 2), scores, labels, MASK, 0.0, epochs=5)
    assert torch.equal(plain.weight, zero.weight)
    assert torch.equal(plain.bias, zero.bias)


@pytest.mark.parametrize("make", [lambda: LinearHead(3, 2), lambda: LogicHead(3, 2)])
def test_a_large_strength_leaves_no_forbidden_influence(make):
    scores, labels = confounded()
    before = influence(train_head(make(), scores, labels, epochs=20), scores)
    head = train_head(make(), scores, labels, MASK, 1000.0, epochs=40)
    after = influence(head, scores)
    assert before[1, 0] > 0.01
    assert after[1, 0].sqrt() < 1e-3
    assert after[1, 1] > 1e-3


def test_rewriting_recovers_the_flipped_test_and_reports_what_is_left():
    scores, labels = confounded()
    flipped, flipped_labels = confounded(seed=1, follow=0.05)
    plain = train_head(LinearHead(3, 2), scores, labels)
    done = rewrite(lambda: LinearHead(3, 2), scores, labels, MASK)
    accuracy = [(h(flipped).argmax(1) == flipped_labels).float().mean().item() for h in (plain, done.head)]
    assert accuracy[1] > accuracy[0] + 0.2
    assert done.forbidden_share < 0.01
    assert done.forbidden_share == pytest.approx(float(done.after[MASK].sum() / done.after.sum()))
    assert done.before[1, 0] > 100 * done.after[1, 0]


def test_the_influence_of_a_linear_head_is_its_formula():
    head = LinearHead(3, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0, 2], [-1, 0.5, 0]]))
    scores = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    p = head(scores).softmax(dim=1).detach()
    derivative = head.weight.detach()[None] - (p @ head.weight.detach())[:, None]
    torch.testing.assert_close(influence(head, scores), derivative.square().mean(dim=0))


def test_only_the_head_is_trained():
    torch.manual_seed(0)
    backbone = nn.Linear(6, 8)
    before = [p.clone() for p in backbone.parameters()]
    features = backbone(torch.randn(100, 6)).detach()
    rewrite(
        lambda: LinearHead(8, 2), features, torch.arange(100) % 2, forbidden(["a must not imply y"], "xy", "abcdefgh")
    )
    assert all(torch.equal(a, b) for a, b in zip(before, backbone.parameters(), strict=True))


def test_training_leaves_the_global_random_state_alone():
    state = torch.get_rng_state()
    scores, labels = confounded(n=100)
    train_head(LogicHead(3, 2), scores, labels, epochs=2)
    assert torch.equal(state, torch.get_rng_state())


def test_rules_become_a_mask():
    rules = ["forall x: dark corner(x) must not imply melanoma(x)", "ruler must not imply nevus"]
    mask = forbidden(rules, ("nevus", "melanoma"), ("dark corner", "ruler"))
    assert mask.tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["ruler implies nevus"], "must read"),
        (["hair must not imply nevus"], "no concept"),
        (["ruler must not imply mole"], "no class"),
        (["ruler must not imply nevus", "spot must not imply nevus"], "every concept"),
    ],
)
def test_bad_rules_are_refused(rules, message):
    with pytest.raises(InvalidInput, match=message):
        forbidden(rules, ("nevus", "melanoma"), ("ruler", "spot"))


def test_bad_training_input_is_refused():
    with pytest.raises(InvalidInput, match="strength"):
        train_head(LinearHead(3, 2), torch.ones(4, 3), torch.zeros(4, dtype=torch.int64), strength=-1)
    with pytest.raises(InvalidInput, match="one length"):
        train_head(LinearHead(3, 2), torch.ones(4, 3), torch.zeros(5, dtype=torch.int64))


def test_the_leak_probe_sees_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    present = torch.from_numpy(rng.random(1000) < 0.5)
    noise = torch.from_numpy(rng.normal(size=(1000, 3)))
    assert residual_leak(noise, present, rng) == pytest.approx(0.5, abs=0.08)
    assert residual_leak(noise + 2 * present[:, None], present, rng) > 0.95
    with pytest.raises(InvalidInput, match="both kinds"):
        residual_leak(noise, torch.zeros(1000, dtype=torch.bool), rng)


def test_every_public_name_is_there():
    assert all(hasattr(confounders, name) for name in confounders.__all__)
    assert function_methods()["discovery/confounder-rewriting"].module == "snellen.discovery.confounders"
