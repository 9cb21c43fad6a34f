"""Terms that read features: taps, maps, and the context that they are bound to."""

import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

import tutelage
from tutelage import Batch
from tutelage.errors import InvalidTypeError, InvalidValueError, RecipeError
from tutelage.modules import Distiller, FrozenTeacher, network_context
from tutelage.objectives import Apply, BindContext, Objective, WeightedTerm, cross_entropy
from tutelage.types import Outputs


def distance(student_features, teacher_features):
    return (student_features - teacher_features).square().mean(-1)


def spread(student_features, teacher_features, *, power=1.0):
    return (student_features.std(0) - teacher_features.std(0)).abs().pow(power).sum()


def network(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def term(loss=distance, **more):
    return Apply(loss, student_tap="2", teacher_tap="2", **more)


def images(n=40):
    return torch.utils.data.TensorDataset(torch.rand(n, 1, 2, 2), torch.arange(n) % 3)


def batch(n=6):
    return Batch(torch.arange(n), torch.randn(n, 4), torch.randint(0, 3, (n,)))


def distiller_of(objective, width=5, wide=7):
    student, teacher = network(width), network(wide)
    context = network_context(objective, student, teacher, batch().inputs, samples=6, classes=3)
    return Distiller(student, objective, context), FrozenTeacher(teacher, objective.needs.teacher_taps)


def test_a_term_reads_the_features_of_its_taps():
    distiller, teacher = distiller_of(Objective.of(WeightedTerm("d", 2.0, term())), 7, 7)
    b = batch()
    loss, outputs = distiller(b, teacher(b))
    student_features, teacher_features = (n[:3](b.inputs) for n in (distiller.student, teacher.network))
    torch.testing.assert_close(loss.total, 2 * distance(student_features, teacher_features).mean())
    assert outputs.taps == {}
    loss.total.backward()
    assert distiller.student[1].weight.grad.abs().sum() > 0
    assert teacher.network[1].weight.grad is None


def test_needs_name_taps_and_projections():
    needs = Objective.of(WeightedTerm("d", 1.0, term(projection="linear"))).needs
    assert needs.teacher
    assert needs.labels == "none"
    assert needs.student_taps == needs.teacher_taps == ("2",)
    assert [p.kind for p in needs.projections] == ["linear"]
    assert cross_entropy().needs.student_taps == ()


def test_a_projection_maps_the_student_onto_the_teachers_width_and_is_trained():
    distiller, teacher = distiller_of(Objective.of(WeightedTerm("d", 1.0, term(projection="linear"))))
    maps = [m for m in distiller.objective.projectors.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in maps] == [(5, 7)]
    b = batch()
    distiller(b, teacher(b)).loss.total.backward()
    assert maps[0].weight.grad.abs().sum() > 0
    assert maps[0].weight in set(distiller.parameters())


def parts(**second):
    return WeightedTerm("one", 1.0, term(projection="linear")), WeightedTerm(
        "two", 1.0, term(projection="linear", **second)
    )


def test_terms_of_one_call_share_a_map_and_terms_of_two_do_not():
    shared, _ = distiller_of(Objective.of(*parts()))
    apart, _ = distiller_of(Objective.of(parts()[0]) + Objective.of(parts()[1]))
    count = [sum(isinstance(m, nn.Linear) for m in x.objective.projectors.modules()) for x in (shared, apart)]
    assert count == [1, 2]
    pointers = [p.data_ptr() for p in shared.state_dict().values()]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize(("wide", "maps"), [(5, 1), (7, 1)])
def test_a_map_that_is_made_only_where_shapes_differ_is_shared_too(wide, maps):
    distiller, teacher = distiller_of(Objective.of(*parts(project_always=False)), 5, wide)
    assert sum(isinstance(m, nn.Linear) for m in distiller.objective.projectors.modules()) == maps
    b = batch()
    values = distiller(b, teacher(b)).loss.parts
    # where the widths agree the second term reads the feature itself, and the map changes only the first
    assert torch.equal(values["one"], values["two"]) == (wide != 5)


def test_two_bindings_share_no_map():
    objective = Objective.of(parts()[0])
    first, second = (distiller_of(objective)[0].objective.projectors[0][0] for _ in range(2))
    assert first.weight.data_ptr() != second.weight.data_ptr()


def test_a_coupled_loss_of_features():
    objective = Objective.of(WeightedTerm("s", 1.0, term(spread, coupled=True, arguments={"power": 2.0})))
    distiller, teacher = distiller_of(objective, 7, 7)
    b = batch()
    assert torch.isfinite(distiller(b, teacher(b)).loss.total)
    assert objective.needs.coupled


def test_half_precision_features_are_computed_in_float32():
    dtypes = {}

    def look(student_features, teacher_features):
        dtypes["dtype"] = student_features.dtype, teacher_features.dtype
        return distance(student_features, teacher_features)

    bound = Objective.of(WeightedTerm("d", 1.0, term(look))).bind(BindContext())
    half = Outputs(torch.zeros(2, 3), {"2": torch.ones(2, 4, dtype=torch.bfloat16)})
    bound(half, half, Batch(torch.arange(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)))
    assert dtypes["dtype"] == (torch.float32, torch.float32)


def test_a_loss_of_features_needs_taps():
    with refused(InvalidTypeError, "teacher_tap"):
        Apply(distance, student_tap="2")


def test_binding_a_map_without_shapes_says_what_to_type():
    with refused(InvalidValueError, "context", suggests="tutelage.network_context"):
        Distiller(network(5), Objective.of(WeightedTerm("d", 1.0, term(projection="linear"))))


def test_a_survey_needs_the_teacher_whose_features_are_read():
    with refused(InvalidValueError, "teacher"):
        network_context(Objective.of(WeightedTerm("d", 1.0, term())), network(5), None, batch().inputs)


def test_a_run_with_features_trains_its_map_and_keeps_it_out_of_the_student(tmp_path):
    torch.manual_seed(0)
    run = tutelage.distill(
        student=network(5),
        teacher=network(7),
        data=(images(), images()),
        objective=Objective.of(WeightedTerm("d", 1.0, term(projection="linear"))) + cross_entropy(),
        epochs=3,
        name="features",
        runs=tmp_path,
        weak_teacher=True,
    )
    first, *_, last = [epoch["train"]["terms"]["d"] for epoch in run.epochs]
    assert last < first
    from safetensors.torch import load_file

    assert set(load_file(run.folder / "student.safetensors")) == set(network(5).state_dict())


def test_a_run_refuses_a_tap_that_is_not_there_before_it_begins(tmp_path):
    bad = Apply(distance, student_tap="hidden", teacher_tap="2")
    with refused(RecipeError, "objective custom: tap hidden", got="'hidden'"):
        tutelage.distill(
            student=network(5),
            teacher=network(7),
            data=(images(), images()),
            objective=Objective.of(WeightedTerm("d", 1.0, bad)),
            name="bad",
            runs=tmp_path,
            weak_teacher=True,
        )
    assert not (tmp_path / "bad" / "manifest.json").exists()
