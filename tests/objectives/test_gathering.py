"""Batch-coupled terms over processes: gathered, they are those of one process on the whole batch."""

import pytest
import torch
from tests._helpers.processes import processes
from tests._helpers.refusals import refused
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tutelage import Distiller, FrozenTeacher, network_context, objectives
from tutelage.errors import InvalidValueError
from tutelage.models import Card, Classifier
from tutelage.objectives import Apply, Objective, WeightedTerm, gathering
from tutelage.types import Batch, Outputs, Progress, Totals

WORLD, SAMPLES, CLASSES = 2, 7, 3


def spread(student_features, teacher_features, labels):
    """Couples all samples, with their labels: a part of a share is no part of it."""
    weights = (1.0 + labels).to(student_features)
    gram = student_features @ student_features.T - teacher_features @ teacher_features.T
    return (weights[:, None] * weights * gram).square().mean().sqrt()


def centred(student_logits, teacher_logits):
    """One value per sample, which depends on the others."""
    return (student_logits - student_logits.mean(0) - teacher_logits).square().mean(-1)


def by_hand():
    taps = {"student_tap": "card:embedding", "teacher_tap": "card:embedding", "projection": "linear"}
    return Objective.of(
        WeightedTerm("spread", 0.7, Apply(spread, coupled=True, **taps)),
        WeightedTerm("centred", 1.5, Apply(centred, coupled=True)),
    )


OBJECTIVES = {
    "itrd": lambda: 0.3 * objectives.itrd() + objectives.cross_entropy(),
    "by hand": lambda: 0.5 * by_hand() + objectives.kd(),
    "alone": by_hand,
    # A piece with a cross-entropy gathers with it.
    "normalised": lambda: objectives.wttm(gamma=0.5, beta=1.0, normalise="batch"),
}


def network(width, seed):
    torch.manual_seed(seed)
    bare = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, CLASSES))
    with torch.no_grad():
        bare[2].weight *= 1 + 5 * seed
    return Classifier(bare, Card(name="tiny", classes=CLASSES, stages=("2:input",), embedding="2:input", head="2"))


def distiller_of(objective):
    student, teacher = network(5, 0), network(6, 1)
    context = network_context(objective, student, teacher, torch.rand(2, 4))
    torch.manual_seed(2)
    return Distiller(student, objective, context), FrozenTeacher(teacher, objective.needs.teacher_taps)


def batch():
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(SAMPLES) % CLASSES
    return Batch(torch.arange(SAMPLES), 3 * torch.randn(SAMPLES, 4, generator=generator), labels)


def batch_of(name):
    """A batch; where every term can do without labels, one sample alone has one."""
    whole = batch()
    return whole._replace(labels=torch.where(whole.index < 6, -100, whole.labels)) if name == "itrd" else whole


def share(whole, rank, parts):
    return Batch(*(tensor.split(parts)[rank] for tensor in whole[:3]))


def step(name, gather, rank=None, parts=(), counted=False):
    """Value and gradient of a step, on the whole batch or on a share of it in a separate process."""
    objective = OBJECTIVES[name]()
    distiller, teacher = distiller_of(objective.gathered() if gather else objective)
    whole = batch_of(name)
    module, samples, totals = distiller, whole, None
    if rank is not None:
        module, samples = DistributedDataParallel(distiller), share(whole, rank, parts)
        labelled = (whole.labels >= 0).sum()
        share_of = torch.tensor(SAMPLES / WORLD)
        totals = None if counted else Totals(share_of, labelled / WORLD, share_of)
    loss = module(samples, teacher(samples), Progress(), totals).loss
    loss.total.backward()
    return loss.parts, {name: p.grad for name, p in distiller.named_parameters()}


CASES = [(name, gather, parts) for name in OBJECTIVES for gather in (True, False) for parts in ((4, 3), (6, 1))]


def one_of_two(rank, folder):
    distributed.init_process_group("gloo")
    results = {}
    for case in CASES:
        name, gather, parts = case
        # One sample alone has no value of ITRD's, which is what gathering is for.
        if gather or name != "itrd" or 1 not in parts:
            results[case] = step(name, gather, rank, parts)
    results["counted"] = step("alone", True, rank, (4, 3), counted=True)
    results["rows"] = gathering.constant(torch.arange(3 + rank), gathering.shares(torch.arange(3 + rank)))
    torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    processes(WORLD, one_of_two, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def close(values, expected):
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            values[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("parts", [(4, 3), (6, 1)], ids=str)
def test_two_processes_have_value_and_gradient_of_one(both, name, parts):
    values, gradients = step(name, gather=False)
    gathers = {part.name for piece in OBJECTIVES[name]().gathered().pieces if piece.gather for part in piece.parts}
    for process in both:
        shared, slopes = process[name, True, parts]
        # Others are shares of a mean, which sum up to it.
        close({n: shared[n] for n in gathers}, {n: values[n] for n in gathers})
        close(slopes, gradients)
    shared = {n: (both[0][name, True, parts][0][n] + both[1][name, True, parts][0][n]) / WORLD for n in values}
    close(shared, values)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_gathering_they_have_not(both, name):
    _, gradients = step(name, gather=False)
    _, slopes = both[0][name, False, (4, 3)]
    assert max((slopes[n] - gradients[n]).abs().max() for n in gradients) > 1e-3


def test_without_totals_means_are_over_what_was_gathered(both):
    values, gradients = step("alone", gather=False)
    for process in both:
        close(process["counted"][0], values)
        close(process["counted"][1], gradients)


def test_rows_of_unequal_shares_come_in_the_order_of_the_ranks(both):
    for process in both:
        assert process["rows"].tolist() == [0, 1, 2, 0, 1, 2, 3]


# One process


def test_alone_it_is_the_identity():
    for name in OBJECTIVES:
        (values, gradients), (same_values, same_gradients) = step(name, gather=False), step(name, gather=True)
        assert all(torch.equal(same_values[n], values[n]) for n in values)
        assert all(torch.equal(same_gradients[n], gradients[n]) for n in gradients)
    rows = torch.rand(3, 2, requires_grad=True)
    assert gathering.processes() == 1
    assert gathering.shares(rows) == [3]
    assert gathering.differentiable(rows, [3]) is rows
    assert not gathering.constant(rows, [3]).requires_grad
    student, samples = Outputs(rows), batch()
    assert gathering.gathered(student, None, samples, student_taps=(), teacher_taps=()) == (student, None, samples)


# The description


def test_only_pieces_that_couple_samples_gather():
    objective = (objectives.kd() + 0.5 * objectives.itrd()).gathered()
    assert [piece.gather for piece in objective.pieces] == [False, True]
    assert objective.gathered() == objective
    assert [piece.gather for piece in (2 * objective).pieces] == [False, True]


def test_a_recipe_holds_it():
    objective = (objectives.kd() + 0.5 * objectives.itrd()).gathered()
    recipe = objective.to_recipe()
    assert "gather" not in recipe[0]
    assert (recipe[1]["scale"], recipe[1]["gather"]) == (0.5, True)
    assert objectives.from_recipe(recipe) == objective
    assert objectives.from_recipe([{"itrd": {}, "gather": False}]) == objectives.itrd()


@pytest.mark.parametrize(
    ("entry", "refusal"),
    [
        ({"kd": {}, "gather": True}, refused(InvalidValueError, "objective.kd")),
        ({"itrd": {}, "gather": 1}, refused(InvalidValueError, "objective.itrd", got=1)),
        ({"itrd": {}, "gathers": True}, refused(InvalidValueError, "objective")),
    ],
)
def test_a_recipe_that_asks_for_nothing_is_refused(entry, refusal):
    with refusal:
        objectives.from_recipe([entry])


def test_an_objective_that_couples_nothing_is_refused():
    with refused(InvalidValueError, "objective", got="cross_entropy+kd", suggests="gather"):
        (objectives.cross_entropy() + objectives.kd(supervised=0)).gathered()
