"""How a fit is computed: what is chosen, that it is kept, and that it changes no more than rounding."""

import copy
import json
import warnings

import pytest
import torch
from tests._helpers.fit_cases import Moving, Rows, fitted, mlp, same_bits, samples, seeded, settings, state, untimed

from tutelage import kernels, objectives
from tutelage.kernels import compiled_sweeps
from tutelage.kernels.conv_weight_grad import Products, Shape
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.settings.weights import Linear
from tutelage.training.checkpoints import Checkpoints, CheckpointSink
from tutelage.training.compile import ComputePlan, PlannedStudent, PlannedTeacher, faster_products
from tutelage.training.distributed import accelerator_on
from tutelage.training.loop import fit
from tutelage.types import Batch, Progress, View

COMPILE = "tutelage.training.compile"
MATCH = objectives.wttm(gamma=0.5, beta=1.0)
FAST = {"compile_teacher": True, "compile_student": True, "gradient_products": False}


def images(count=48):
    return samples(count, shape=(2, 8, 8))


def fit_student(folder=None, *, plans=None, resume=False, rows=None, student=None, **changes):
    """Fit a small network with batch norm and dropout to a teacher; return it and its records."""
    student = student or seeded(Moving)
    teacher = FrozenTeacher(seeded(Moving, 1))
    distiller = Distiller(student, MATCH)
    keep = None
    if folder is not None:
        announce = plans.append if plans is not None else None
        keep = CheckpointSink(Checkpoints(folder / "checkpoints"), folder / "best.safetensors", {}, announce)
    torch.manual_seed(3)
    history = list(
        fit(
            distiller,
            teacher,
            rows or Rows(*images(), batch_size=10),
            settings(**changes),
            accelerator=accelerator_on("cpu"),
            keep=keep,
            resume=keep.checkpoints.load() if keep and resume else None,
        )
    )
    return student, history


def test_a_short_fit_measures_nothing_and_says_so(tmp_path):
    plans = []
    fit_student(tmp_path, plans=plans)
    assert plans == [ComputePlan(reasons=dict.fromkeys(["teacher", "student"], "a short fit")).to_json()]


def test_a_short_fit_does_not_wait_for_the_compiler(monkeypatch):
    """It takes two seconds to import, and no run of a few steps needs it."""
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("the compiler was asked"))
    fit_student()


def test_what_is_switched_off_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{COMPILE}.FEW", 0)
    monkeypatch.setattr(f"{COMPILE}.SHARE", 1e9)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: lambda *_: pytest.fail("compiled"))
    plans = []
    fit_student(tmp_path, plans=plans, compile_teacher=False, compile_student=False, gradient_products=False)
    assert plans[0]["why"] == dict.fromkeys(["teacher", "products", "student"], "switched off")


def test_a_fit_too_short_to_repay_compiling_does_not_compile(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{COMPILE}.FEW", 0)
    plans = []
    fit_student(tmp_path, plans=plans)
    (chosen,) = plans
    assert not chosen["teacher_compiled"]
    assert not chosen["student_compiled"]
    assert chosen["products"] == []
    assert all("not tried" in why for why in chosen["why"].values())


def test_a_fit_without_a_teacher_is_measured_too(monkeypatch):
    monkeypatch.setattr(f"{COMPILE}.FEW", 0)
    (record,) = fitted(mlp(), Rows(*samples(), batch_size=16), epochs=1)
    assert record["train"]["agreement"] is None


@pytest.mark.slow  # a plan is chosen in every change
def test_choosing_leaves_no_trace(tmp_path, monkeypatch):
    """Whatever is tried and not taken: the student, the records and the generators are as if nothing had been."""
    plain, records = fit_student()
    monkeypatch.setattr(f"{COMPILE}.FEW", 0)
    monkeypatch.setattr(f"{COMPILE}.SHARE", 1e9)
    monkeypatch.setattr(f"{COMPILE}.GAIN", 1e9)
    monkeypatch.setattr(f"{COMPILE}.PRODUCT_GAIN", 1e9)
    tried = []
    monkeypatch.setattr(f"{COMPILE}.least_seconds", lambda calls, _: tried.append(1) or [1.0] * len(calls))
    measured, again = fit_student()
    assert len(tried) == 4  # the teacher, two convolutions of which no product is fast enough, the student
    assert same_bits(state(plain), state(measured))
    assert untimed(records) == untimed(again)


@pytest.mark.slow  # each form by itself is compared in every change
def test_fast_is_plain_but_for_rounding(tmp_path):
    plans = []
    plain, slow = fit_student()
    quick, fast = fit_student(tmp_path, plans=plans, **FAST)
    (chosen,) = plans
    assert chosen["teacher_compiled"]
    assert chosen["student_compiled"]
    assert chosen["samples"] == 10
    assert all("ms compiled" in chosen["why"][who] for who in ("teacher", "student"))
    for eager, compiled in zip(slow, fast, strict=True):
        assert eager["train"]["loss"] == pytest.approx(compiled["train"]["loss"], rel=1e-4)
    for name, tensor in state(plain).items():
        torch.testing.assert_close(state(quick)[name], tensor, rtol=1e-3, atol=1e-4)
    assert state(quick).keys() == state(plain).keys()


@pytest.mark.slow  # the step itself is compared in every change
def test_loss_curves_of_fast_and_plain_agree_in_half_precision():
    """The same seed: the losses of three epochs within 2 %, as bfloat16's rounding of each step explains.

    And all that is fast against all that is plain, float32 too.
    """
    _, full = fit_student(epochs=3)
    _, slow = fit_student(epochs=3, precision="bf16")
    _, fast = fit_student(epochs=3, precision="bf16", **FAST)
    for plain in (slow, full):
        for eager, compiled in zip(plain, fast, strict=True):
            assert eager["train"]["loss"] == pytest.approx(compiled["train"]["loss"], rel=0.02)


def test_a_resumed_fit_keeps_the_choice(tmp_path, monkeypatch):
    whole, records = fit_student(tmp_path / "whole", epochs=2, checkpoint_steps=2, **FAST)
    with pytest.raises(KeyboardInterrupt):
        fit_student(
            tmp_path / "cut",
            epochs=2,
            rows=Rows(*images(), batch_size=10, stop_before=(1, 3)),
            checkpoint_steps=2,
            **FAST,
        )
    monkeypatch.setattr(f"{COMPILE}.seconds", lambda *_: pytest.fail("measured again"))
    plans = []
    resumed, after = fit_student(tmp_path / "cut", plans=plans, resume=True, epochs=2, checkpoint_steps=2, **FAST)
    assert plans[0]["teacher_compiled"]
    assert plans[0]["student_compiled"]
    assert same_bits(state(whole), state(resumed))
    assert untimed(records)[1] == untimed(after)[0]


def test_a_checkpoint_without_a_choice_is_gone_on_with_plainly(tmp_path):
    fit_student(tmp_path, epochs=1)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    content = json.loads((folder / "state.json").read_text())
    del content["speed"]
    saved = Checkpoints(tmp_path / "checkpoints").load()
    distiller = Distiller(seeded(Moving), MATCH)
    how = {"accelerator": accelerator_on("cpu"), "resume": saved._replace(state=content)}
    rows, teacher = Rows(*images(), batch_size=10), FrozenTeacher(seeded(Moving, 1))
    (record,) = fit(distiller, teacher, rows, settings(epochs=2, **FAST), **how)
    assert record["epoch"] == 2
    assert distiller.called is None


def test_products_and_a_compiled_student_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{COMPILE}.PRODUCT_GAIN", 0.0)
    plain, _ = fit_student()
    plans = []
    quick, _ = fit_student(tmp_path, plans=plans, **{**FAST, "gradient_products": True})
    assert plans[0]["student_compiled"]
    assert len(plans[0]["products"]) == 2
    for name, tensor in state(plain).items():
        torch.testing.assert_close(state(quick)[name], tensor, rtol=1e-3, atol=1e-4)


def test_products_and_compiled_losses_do_not_meet():
    student = PlannedStudent(Distiller(mlp(), MATCH))
    shape = Shape(*(4, 4, 4, 4, 3, 3), *(1, 1), *(1, 1), *(1, 1))
    student.use(ComputePlan(products=(shape,), samples=4, loss_form="compiled"))
    assert isinstance(student.gradients(3), Products)
    assert not isinstance(student.gradients(4), Products)


def without_a_compiler(*_, **__):
    """What stands in for ``torch.compile``: what it returns fails when it is called."""

    def call(*_):
        raise RuntimeError("no C++ compiler")

    return call


def test_where_compiling_fails_the_fit_goes_on_plainly_and_says_so(tmp_path, monkeypatch):
    plain, _ = fit_student()

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    with pytest.warns(UserWarning, match="expected to compile it, got RuntimeError") as caught:
        student, _ = fit_student(tmp_path, **FAST)
    messages = [str(warning.message) for warning in caught]
    assert [text.partition(":")[0] for text in messages] == ["teacher", "student"]
    assert "compile_student=false" in messages[1]
    assert same_bits(state(plain), state(student))


def test_warnings_of_the_compiler_are_no_failure_of_compiling(monkeypatch):
    """Even where the user has made errors of them."""
    calls = []

    def compiling(function, **_):
        def call(*inputs):
            warnings.warn("an old form", DeprecationWarning, stacklevel=1)
            calls.append(1)
            return function(*inputs)

        warnings.warn("a slow form", RuntimeWarning, stacklevel=1)
        return call

    monkeypatch.setattr(torch, "compile", compiling)
    student = PlannedStudent(Distiller(mlp(), MATCH))
    student.use(ComputePlan(student_compiled=True, samples=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student.call(4)(samples(4)[0])
    assert calls


def test_a_recorded_teacher_is_not_compiled(tmp_path):
    class Says:
        def __call__(self, batch):
            from tutelage.types import Outputs

            return Outputs(torch.zeros(len(batch.index), 4))

    student = mlp()
    rows = Rows(*samples(), batch_size=16)
    fitted(student, rows, teacher=Says(), objective=MATCH, folder=tmp_path, compile_teacher=True)
    saved = Checkpoints(tmp_path / "checkpoints").load()
    assert not saved.state["speed"]["teacher_compiled"]
    assert "teacher" not in saved.state["speed"]["why"]


def test_a_teacher_with_taps_says_the_same_compiled():
    teacher = FrozenTeacher(seeded(Moving, 1), ("norm", "conv"))
    batch = Batch(torch.arange(4), images(4)[0], torch.zeros(4, dtype=torch.long))
    planned = PlannedTeacher(teacher, settings(), torch.device("cpu"))
    plain = planned(batch)
    planned.use(ComputePlan(teacher_compiled=True, samples=4))
    quick = planned(batch)
    assert plain.taps.keys() == quick.taps.keys() == {"norm", "conv"}
    for eager, compiled in ((plain.logits, quick.logits), *((plain.taps[n], quick.taps[n]) for n in plain.taps)):
        torch.testing.assert_close(eager, compiled, rtol=1e-4, atol=1e-5)


def test_other_sizes_of_batch_are_computed_plainly():
    teacher, student = FrozenTeacher(seeded(Moving, 1)), PlannedStudent(Distiller(seeded(Moving), MATCH))
    plan = ComputePlan(teacher_compiled=True, student_compiled=True, samples=4)
    planned = PlannedTeacher(teacher, settings(), torch.device("cpu"), plan)
    student.use(plan)
    few = Batch(torch.arange(3), images(3)[0], torch.zeros(3, dtype=torch.long))
    assert torch.equal(planned(few).logits, teacher(few).logits)
    assert student.call(3) is None
    assert student.call(4) is not None


def test_measuring_products_names_only_shapes_that_were_seen_and_draws_no_numbers():
    shape = Shape(*(4, 4, 4, 4, 3, 3), *(1, 1), *(1, 1), *(1, 1))
    before = torch.get_rng_state()
    assert faster_products({}, torch.device("cpu")) == ()
    assert set(faster_products({shape: (2, torch.float32)}, torch.device("cpu"))) <= {shape}
    assert torch.equal(torch.get_rng_state(), before)


def test_a_choice_survives_json():
    shape = Shape(*range(1, 13))
    chosen = ComputePlan(
        teacher_compiled=True, products=(shape,), samples=64, reasons={"teacher": "2 ms eager, 1 ms compiled"}
    )
    assert chosen.to_json()["why"] == chosen.reasons
    assert ComputePlan.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen


def test_a_compiled_distiller_deep_copies_and_saves_under_its_own_names():
    distiller = Distiller(seeded(Moving), MATCH)
    names = distiller.state_dict().keys()
    student = PlannedStudent(distiller)
    student.use(ComputePlan(student_compiled=True, samples=4))
    distiller.called = student.call(4)
    batch = Batch(torch.arange(4), images(4)[0], torch.zeros(4, dtype=torch.long))
    teacher = FrozenTeacher(seeded(Moving, 1))
    distiller(batch, teacher(batch), Progress()).loss.total.backward()
    assert distiller.state_dict().keys() == names
    distiller.called = None
    assert copy.deepcopy(distiller).state_dict().keys() == names


class Counts(Moving):
    """Counts its forward passes, and writes into its inputs."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x.mul_(2.0).sub_(0.5))


def test_where_all_is_switched_off_no_pass_is_lost(monkeypatch):
    monkeypatch.setattr(f"{COMPILE}.FEW", 0)
    off = dict.fromkeys(("compile_teacher", "compile_student", "gradient_products"), False)
    student, teacher = seeded(Counts), Counts()
    rows = Rows(*images(), batch_size=16)
    fitted(student, rows, teacher=FrozenTeacher(teacher), objective=MATCH, epochs=1, **off)
    assert (student.calls, teacher.calls) == (3, 3)


def test_a_student_that_writes_into_its_inputs_is_measured_on_a_copy(monkeypatch):
    monkeypatch.setattr(f"{COMPILE}.FEW", 0)
    monkeypatch.setattr(f"{COMPILE}.SHARE", 0.0)  # Measured, and nothing is worth trying.
    sums = []

    class Keeps(Counts):
        def forward(self, x):
            sums.append(float(x.sum()))
            return super().forward(x)

    fitted(seeded(Keeps), Rows(*images(), batch_size=48), epochs=1)
    assert len(sums) > 2
    assert len(set(sums)) == 1


def test_a_student_with_an_expanded_buffer_is_measured(monkeypatch):
    monkeypatch.setattr(f"{COMPILE}.FEW", 0)
    student = seeded(Moving)
    student.register_buffer("one", torch.ones(1).expand(3))
    fitted(student, Rows(*images(), batch_size=16), epochs=1)
    assert torch.equal(student.one, torch.ones(3))


def test_a_fit_leaves_its_distiller_uncompiled(tmp_path):
    distiller = Distiller(seeded(Moving), MATCH)
    rows, teacher = Rows(*images(), batch_size=10), FrozenTeacher(seeded(Moving, 1))
    list(fit(distiller, teacher, rows, settings(epochs=1, **FAST), accelerator=accelerator_on("cpu")))
    assert distiller.called is None


def test_a_teacher_that_writes_into_its_inputs_is_measured_on_a_copy(monkeypatch):
    monkeypatch.setattr(f"{COMPILE}.FEW", 0)
    monkeypatch.setattr(f"{COMPILE}.SHARE", 0.0)
    sums = []

    class Keeps(Counts):
        def forward(self, x):
            sums.append(float(x.sum()))
            return super().forward(x)

    rows, off = Rows(*images(), batch_size=48), {"compile_student": False, "gradient_products": False}
    fitted(seeded(Moving), rows, teacher=FrozenTeacher(seeded(Keeps)), objective=MATCH, epochs=1, **off)
    assert len(sums) > 1
    assert len(set(sums)) == 1


def compiled_by(backend):
    """What stands in for ``torch.compile``: the same, by a faster backend."""
    real = torch.compile
    return lambda function, **options: real(function, backend=backend, **options)


@pytest.mark.slow  # the last layer is, in every change
@pytest.mark.parametrize("form", ["compiled", "fused", "fused_compiled"])
def test_a_form_of_the_losses_is_taken_by_name_kept_on_resume_and_plain_but_for_rounding(form, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", compiled_by("aot_eager"))
    monkeypatch.setattr("tutelage.kernels.logits.BLOCKS_FROM", 0)
    off = dict.fromkeys(("compile_teacher", "compile_student", "gradient_products"), False)
    _, slow = fit_student(epochs=2)
    plans, how = [], {"epochs": 2, "checkpoint_steps": 2, "loss_form": form, **off}
    whole, fast = fit_student(tmp_path / "whole", plans=plans, **how)
    assert plans[0]["loss_form"] == form
    other = "fused" if form == "compiled" else "compiled"
    assert f"ms with {form} losses" in plans[0]["why"][f"{form} losses"]
    assert plans[0]["why"][f"{other} losses"] == "switched off"
    for eager, changed in zip(slow, fast, strict=True):
        assert eager["train"]["loss"] == pytest.approx(changed["train"]["loss"], rel=1e-5)
        assert eager["train"].keys() == changed["train"].keys()
    with pytest.raises(KeyboardInterrupt):
        fit_student(tmp_path / "cut", rows=Rows(*images(), batch_size=10, stop_before=(1, 3)), **how)
    monkeypatch.setattr(f"{COMPILE}.seconds", lambda *_: pytest.fail("measured again"))
    resumed, after = fit_student(tmp_path / "cut", plans=plans, resume=True, **how)
    assert plans[-1]["loss_form"] == form
    assert same_bits(state(whole), state(resumed))
    assert untimed(fast)[1] == untimed(after)[0]


def test_losses_are_compiled_once_though_a_weight_is_scheduled_and_views_change(monkeypatch):
    """A second compilation would be one that was not announced, and would draw other random numbers."""
    compiled = []
    real = torch.compile

    def backend(graph, _):
        compiled.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend=backend, **options))

    class Viewed(Rows):
        def epoch(self, epoch, **how):
            for batch in super().epoch(epoch, **how):
                yield batch._replace(view=View(0, epoch))

    off = dict.fromkeys(("compile_teacher", "compile_student", "gradient_products"), False)
    objective = objectives.wttm(gamma=0.5, beta=Linear(start=2.0, end=0.5))
    teacher, rows = FrozenTeacher(seeded(Moving, 1)), Viewed(*images(40), batch_size=10)
    fitted(seeded(Moving), rows, teacher=teacher, objective=objective, epochs=3, loss_form="compiled", **off)
    assert len(compiled) == 1


def test_the_form_that_is_named_computes_the_losses(monkeypatch):
    calls = []
    both = kernels.cross_entropy_and
    monkeypatch.setattr(
        kernels,
        "cross_entropy_and",
        lambda *inputs, compiled: calls.append("fused_compiled" if compiled else "fused") or both(*inputs),
    )
    monkeypatch.setattr(
        torch, "compile", lambda function, **_: lambda *inputs: calls.append("compiled") or function(*inputs)
    )
    off = dict.fromkeys(("compile_teacher", "compile_student", "gradient_products"), False)
    rows = Rows(*images(), batch_size=10)  # Four batches of ten, and one of eight, which is not compiled.
    for form, expected in (("plain", 0), ("compiled", 4), ("fused", 5), ("fused_compiled", 5)):
        calls.clear()
        monkeypatch.setattr(f"{COMPILE}.least_seconds", lambda calls, _: [1.0] * len(calls))
        distiller = Distiller(seeded(Moving), MATCH)
        how = settings(epochs=1, loss_form=form, **off)
        list(fit(distiller, FrozenTeacher(seeded(Moving, 1)), rows, how, accelerator=accelerator_on("cpu")))
        assert calls == [form] * expected
        assert distiller.called_objective is None
        assert not distiller.objective.fused
        assert not distiller.objective.fused_compiled


def test_losses_are_plain_on_a_cpu_and_measured_on_cuda(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(f"{COMPILE}.FEW", 0)
    monkeypatch.setattr(f"{COMPILE}.SHARE", 1e9)
    monkeypatch.setattr(f"{COMPILE}.GAIN", 0.0)
    off = dict.fromkeys(("compile_teacher", "compile_student", "gradient_products"), False)
    plans = []
    fit_student(tmp_path / "cpu", plans=plans, **off)
    assert plans[0]["loss_form"] == "plain"
    assert not any("losses" in form for form in plans[0]["why"])
    monkeypatch.setattr(f"{COMPILE}.MEASURES_LOSSES", {"cpu"})
    fit_student(tmp_path / "measured", plans=plans, **off)
    assert plans[1]["loss_form"] == "fused"  # Measured last; all are fast enough.
    assert "ms eager" in plans[1]["why"]["compiled losses"]
    assert "ms with compiled losses" in plans[1]["why"]["fused losses"]
    monkeypatch.setattr(f"{COMPILE}.GAIN", 1e9)
    fit_student(tmp_path / "slower", plans=plans, **off)
    assert plans[2]["loss_form"] == "plain"


def test_on_a_cpu_losses_are_measured_where_they_are_large_and_a_part_of_the_step(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", compiled_by("aot_eager"))
    compiled_sweeps._form.cache_clear()
    monkeypatch.setattr(f"{COMPILE}.FEW", 0)
    monkeypatch.setattr(f"{COMPILE}.SHARE", 1e9)
    monkeypatch.setattr(f"{COMPILE}.BLOCKS_FROM", 10 * 4)
    off = dict.fromkeys(("compile_teacher", "compile_student", "gradient_products"), False)
    plans = []

    def plan(of_losses, of_step):
        """The plan where the plain losses take so long, and each later form is faster by a tenth."""
        monkeypatch.setattr(f"{COMPILE}.seconds", lambda *_: of_step)
        speeds = iter([[of_losses], *([1.0 - 0.1 * k, 0.9 - 0.1 * k] for k in range(9))])
        monkeypatch.setattr(f"{COMPILE}.least_seconds", lambda calls, _: [call() for call in calls] and next(speeds))
        fit_student(tmp_path / str(len(plans)), epochs=1, plans=plans, **off)
        return plans[-1]["loss_form"], plans[-1]["why"]

    assert plan(0.06, 1.0)[0] == "fused_compiled"
    form, why = plan(0.04, 1.0)
    assert (form, why["fused losses"]) == ("plain", "not tried: plain losses take 4.0% of a step")
    monkeypatch.setattr(f"{COMPILE}.SHARE", 1e-9)
    form, why = plan(0.5, 1.0)
    assert form == "plain"
    assert why["fused losses"].startswith("not tried: ")
    monkeypatch.setattr(f"{COMPILE}.SHARE", 1e9)
    monkeypatch.setattr(f"{COMPILE}.BLOCKS_FROM", 10 * 4 + 1)
    form, why = plan(0.5, 1.0)
    assert form == "plain"
    assert not any("losses" in form for form in why)


def test_an_objective_without_such_a_pair_is_not_fused(tmp_path):
    student, rows = mlp(), Rows(*samples(), batch_size=16)
    fitted(student, rows, objective=objectives.cross_entropy(), folder=tmp_path, loss_form="fused")
    saved = Checkpoints(tmp_path / "checkpoints").load().state["speed"]
    assert saved["loss_form"] == "plain"
    assert saved["why"]["fused losses"] == "no cross-entropy with a loss of logits beside it"


def test_where_compiling_the_losses_fails_the_fit_goes_on_plainly_and_says_so(monkeypatch):
    plain, _ = fit_student()

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    with pytest.warns(UserWarning, match=r"objective: expected to compile it, got .*loss_form=plain says so"):
        student, _ = fit_student(loss_form="compiled", compile_teacher=False, compile_student=False)
    assert same_bits(state(plain), state(student))


@pytest.mark.slow
def test_the_losses_are_compiled_by_inductor():
    _, slow = fit_student(epochs=2)
    _, fast = fit_student(epochs=2, loss_form="compiled", compile_teacher=False, compile_student=False)
    for eager, compiled in zip(slow, fast, strict=True):
        assert eager["train"]["loss"] == pytest.approx(compiled["train"]["loss"], rel=1e-4)
