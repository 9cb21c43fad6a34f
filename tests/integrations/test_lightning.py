"""The module of Lightning: it trains as a loop of one's own does, and its checkpoint holds no teacher."""

import copy
import pickle
import sys
from functools import partial

import pytest
import torch
from tests._helpers.processes import processes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

import tutelage
from tutelage import Distiller, FrozenTeacher, Progress, objectives
from tutelage.errors import MissingExtraError, TutelageError
from tutelage.integrations import lightning as integration
from tutelage.objectives import Objective, WeightedTerm
from tutelage.objectives.methods.contrastive import CRD

# Lightning warns of its own habits, such as few workers.
pytestmark = pytest.mark.filterwarnings("ignore:::(lightning|pytorch_lightning|lightning_fabric)")
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
WTTM = objectives.wttm(gamma=0.5, beta=objectives.Linear(2.0, 0.0))
BANKS = CRD(negatives=4, temperature=0.1, momentum=0.5, dimension=5, student_taps=("1",), teacher_taps=("1",))


@pytest.fixture
def module_class():
    pytest.importorskip("lightning")  # Not at the top, as it takes seconds wherever tests are collected.
    return integration.DistillationModule


def networks(seed=0):
    torch.manual_seed(seed)
    student = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    teacher = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Dropout(0.5), nn.Linear(9, 3))
    return student, teacher


def rows(count=40):
    draw = torch.Generator().manual_seed(3)
    return torch.randn(count, 6, generator=draw), torch.randint(3, (count,), generator=draw), torch.arange(count)


def loader(count=40, size=8, **how):
    return DataLoader(TensorDataset(*rows(count)), batch_size=size, **how)


def trainer(folder=None, **settings):
    import lightning.pytorch

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False} if folder is None else {"default_root_dir": folder}
    return lightning.pytorch.Trainer(**{"max_epochs": 2, **quiet, **settings})


def own_loop(student, teacher, objective, context=None, *, epochs=2, data=None, optimizer=SGD):
    """Train as examples/own_loop.py does."""
    data = data or loader()
    distiller = Distiller(student, objective, *([context] if context else []))
    frozen = FrozenTeacher(teacher, objective.needs.teacher_taps)
    optimizer, step = optimizer(distiller.parameters()), 0
    for epoch in range(epochs):
        for values in data:
            batch = tutelage.as_batch(values, index=2)
            progress = Progress(epoch, step, step / (epochs * len(data)))
            loss, _ = distiller(batch, frozen(batch), progress)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            step += 1
    return distiller


def difference(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def test_it_trains_as_a_loop_of_ones_own(module_class):
    student, teacher = networks()
    other, before = copy.deepcopy(student), copy.deepcopy(teacher)
    module = module_class(student, teacher, WTTM, optimizer=SGD, index=2)
    assert pickle.loads(pickle.dumps(module_class)) is module_class  # as processes that are spawned get it
    fitted = trainer()
    fitted.fit(module, loader(), loader(10, 4))
    assert difference(student, own_loop(other, teacher, WTTM).student) < 1e-6
    assert module.student is student
    assert difference(teacher, before) == 0
    assert not any(part.training for part in teacher.modules())
    assert set(module.state_dict()) == {f"distiller.student.{name}" for name in student.state_dict()}
    logged = fitted.callback_metrics
    assert {"train_loss", "train_ce", "train_wttm", "val_loss", "val_accuracy"} <= set(logged)
    inputs, labels, _ = rows(10)
    with torch.no_grad():
        logits = student(inputs)
    assert float(logged["val_accuracy"]) == pytest.approx(float((logits.argmax(-1) == labels).float().mean()))
    assert float(logged["val_loss"]) == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)


def test_without_the_library_the_module_is_there_and_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    integration._module_class.cache_clear()
    with pytest.raises(MissingExtraError, match=r"DistillationModule: .* type pip install 'tutelage\[lightning\]'"):
        integration.DistillationModule  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'Distillation'"):
        integration.Distillation  # noqa: B018


# What is dear


@pytest.mark.slow
def test_what_does_not_fit_is_refused(module_class):
    student, teacher = networks()
    make = partial(module_class, optimizer=SGD)
    wrong = {
        "objective: expected a tutelage objective, got str": (student, teacher, "wttm"),
        "teacher: expected one for objective": (student, None, WTTM),
        "teacher: expected a torch.nn.Module, got str": (student, "resnet50", WTTM),
        "student: expected a torch.nn.Module, got NoneType": (None, teacher, WTTM),
        "share no module": (student, student, WTTM),
        "context: expected the shape": (student, teacher, objectives.fitnet(student_tap="0", teacher_tap="0")),
    }
    for message, arguments in wrong.items():
        with pytest.raises(TutelageError, match=message):
            make(*arguments)
    with pytest.raises(TutelageError, match="optimizer: expected a function that makes it, got SGD"):
        module_class(student, teacher, WTTM, optimizer=SGD(student.parameters()))
    columns = DataLoader(TensorDataset(rows(8)[0], rows(8)[1][:, None]), 4)
    with pytest.raises(TutelageError, match=r"labels: expected class indices .* of shape \(4,\), got \(4, 1\)"):
        trainer().validate(make(student, teacher, WTTM), columns, verbose=False)
    coupled = make(student, teacher, objectives.dist(beta=1.0, gamma=1.0, temperature=1.0))
    with pytest.raises(TutelageError, match="accumulate_grad_batches: expected 1 for an objective that couples"):
        trainer(accumulate_grad_batches=2).fit(coupled, loader())
    with pytest.raises(TutelageError, match="Trainer: expected a known number of steps"):
        trainer(max_epochs=-1).fit(make(student, teacher, WTTM), loader())
    crd = Objective.of(WeightedTerm("crd", 1.0, BANKS))
    context = tutelage.network_context(crd, student, teacher, rows(2)[0], labels=rows()[1])
    with pytest.raises(TutelageError, match=r"batch.index: expected the samples' indices"):
        trainer().fit(make(student, teacher, crd, context), loader())


@pytest.mark.slow
def test_gradients_of_batches_add_up_each_divided_by_their_number(module_class):
    student, teacher = networks()
    other, objective = copy.deepcopy(student), objectives.ttm(gamma=0.5, beta=1.0)
    trainer(accumulate_grad_batches=2, max_epochs=1).fit(
        module_class(student, teacher, objective, optimizer=SGD), loader()
    )
    # 40 samples in batches of 8 are two steps of two batches and one of one, which is divided by two as well.
    distiller, frozen, optimizer = Distiller(other, objective), FrozenTeacher(teacher), SGD(other.parameters())
    for number, values in enumerate(loader()):
        batch = tutelage.as_batch(values)
        (distiller(batch, frozen(batch)).loss.total / 2).backward()
        if number in (1, 3, 4):
            optimizer.step()
            optimizer.zero_grad()
    assert difference(student, other) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_batches_may_be_mappings_or_whole(module_class, precision):
    trained = []
    for keys, collate in (
        ({}, None),
        ({"inputs": "x", "labels": "y"}, lambda samples: dict(zip("xyi", default_collate(samples), strict=True))),
        ({}, lambda samples: tutelage.as_batch(default_collate(samples))),
    ):
        student, teacher = networks()
        module = module_class(student, teacher, WTTM, optimizer=SGD, **keys)
        fitted = trainer(precision=precision)
        fitted.fit(module, loader(collate_fn=collate))
        trained.append(student)
        (first, *_) = fitted.predict(module, loader(collate_fn=collate))
        assert first.shape == (8, 3)
    assert difference(trained[0], trained[1]) == difference(trained[0], trained[2]) == 0
    assert trainer().predict(module, DataLoader(rows()[0], batch_size=40))[0].shape == (40, 3)
    assert all(parameter.dtype == torch.float32 for parameter in trained[0].parameters())


@pytest.mark.slow
def test_labels_that_are_missing_or_soft_are_judged_as_they_are(module_class):
    student, teacher = networks()
    inputs, labels, _ = rows(12)
    soft = nn.functional.one_hot(labels, 3).float()
    hidden = labels.clone().index_fill_(0, torch.arange(5), -100)
    module = module_class(student, teacher, WTTM, optimizer=SGD)
    judge = lambda labels: trainer().validate(module, DataLoader(TensorDataset(inputs, labels), 4), verbose=False)[0]  # noqa: E731
    with torch.no_grad():
        right = (student(inputs).argmax(-1) == labels).float()
    assert judge(soft)["val_accuracy"] == pytest.approx(float(right.mean()))
    assert judge(hidden)["val_accuracy"] == pytest.approx(float(right[5:].mean()))
    assert judge(torch.full_like(labels, -100)) == {}
    sets = [DataLoader(TensorDataset(inputs, each), 4) for each in (labels, hidden)]
    several = trainer().validate(module, sets, verbose=False)
    assert several[1]["val_accuracy/dataloader_idx_1"] == pytest.approx(float(right[5:].mean()))
    assert len(trainer().predict(module, sets)) == 2


@pytest.mark.slow
def test_banks_and_maps_are_trained_and_kept_as_in_a_loop_of_ones_own(module_class, tmp_path):
    student, teacher = networks()
    objective = objectives.cross_entropy() + Objective.of(WeightedTerm("crd", 1.0, BANKS))
    context = partial(tutelage.network_context, labels=rows()[1], inputs=rows(2)[0])
    other = copy.deepcopy(student)

    def made(network):
        torch.manual_seed(5)
        bound = context(objective, network, teacher)
        return module_class(network, teacher, objective, bound, optimizer=SGD, index=2)

    module = made(student)
    trainer().fit(module, loader())
    torch.manual_seed(5)
    own = own_loop(other, teacher, objective, context(objective, other, teacher))
    assert difference(module.distiller, own) < 1e-6
    assert float((module.state_dict()["distiller.objective.terms.crd.student_bank"]).abs().sum()) > 0


@pytest.mark.slow
def test_a_run_that_stopped_resumes_from_its_checkpoint(module_class, tmp_path):
    def made(scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)):
        student, teacher = networks()
        return module_class(student, teacher, WTTM, optimizer=SGD, scheduler=scheduler)

    whole, stopped, resumed = made(), made(), made()
    trainer(tmp_path / "whole", max_epochs=3).fit(whole, loader())
    path = tmp_path / "last.ckpt"
    first = trainer(tmp_path / "stopped", max_epochs=3)
    stopped.on_train_epoch_end = lambda: setattr(first, "should_stop", first.current_epoch == 1)
    first.fit(stopped, loader())
    first.save_checkpoint(path)
    trainer(tmp_path / "resumed", max_epochs=3).fit(resumed, loader(), ckpt_path=path)
    assert difference(whole.student, stopped.student) > 0
    assert difference(whole.student, resumed.student) == 0
    student, teacher = networks(seed=9)
    loaded = module_class.load_from_checkpoint(
        path, student=student, teacher=teacher, objective=WTTM, optimizer=SGD, map_location="cpu"
    )
    assert difference(loaded.student, stopped.student) == 0
    bare = networks(seed=9)[0]
    with pytest.warns(UserWarning, match="the prefix 'distiller.student.' is dropped"):
        tutelage.models.load(bare, tutelage.models.read(path))
    assert difference(bare, stopped.student) == 0


@pytest.mark.slow
def test_a_student_with_a_name_is_saved_as_a_folder(module_class, tmp_path):
    student, teacher = (
        tutelage.models.create(f"mlp:{width}", classes=3, channels=1, image_size=(2, 3)) for width in (8, 9)
    )
    inputs, labels, _ = rows()
    data = DataLoader(TensorDataset(inputs.sigmoid().reshape(-1, 1, 2, 3), labels), batch_size=8)
    trainer().fit(module_class(student, teacher, WTTM, optimizer=SGD), data)
    tutelage.models.save(student, tmp_path / "student")
    loaded = tutelage.load(tmp_path / "student")
    assert difference(loaded, student.eval()) == 0


def _fit_a_share(rank, folder):
    student, teacher = networks()
    objective = objectives.ttm(gamma=0.5, beta=1.0)
    module = integration.DistillationModule(student, teacher, objective, optimizer=SGD)
    fitted = trainer(strategy="ddp", devices=2, use_distributed_sampler=False)
    share = DataLoader(TensorDataset(*(column[rank::2] for column in rows())), batch_size=4)
    fitted.fit(module, share, share)
    torch.save((student.state_dict(), dict(fitted.callback_metrics)), folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_train_as_one(module_class, tmp_path):
    processes(2, _fit_a_share, tmp_path)
    student, teacher = networks()
    fitted = trainer()
    module = module_class(student, teacher, objectives.ttm(gamma=0.5, beta=1.0), optimizer=SGD)
    fitted.fit(module, loader(size=8), loader(size=8))
    for rank in range(2):
        state, logged = torch.load(tmp_path / f"{rank}.pt")
        for name, value in student.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)
        for name in ("val_loss", "val_accuracy"):
            assert float(logged[name]) == pytest.approx(float(fitted.callback_metrics[name]), rel=1e-5)
