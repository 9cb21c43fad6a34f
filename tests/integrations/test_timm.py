"""The task of timm, driven as timm's training script drives one."""

import copy
import sys
from contextlib import nullcontext

import pytest
import torch
from tests._helpers.processes import processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tutelage import losses, models, objectives
from tutelage.errors import MissingExtraError, TutelageError
from tutelage.integrations import timm as integration

WTTM = objectives.wttm(gamma=0.5, beta=2.0)
OTHER = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.2, 0.3)}


@pytest.fixture
def timm():
    return pytest.importorskip("timm.task") and sys.modules["timm"]


def network(seed=0, *, name="test_resnet", classes=5, **settings):
    import timm

    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=classes, **settings)


def teacher_network(**statistics):
    teacher = network(seed=1)
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, **(statistics or OTHER)}
    return teacher


def images(count=8, size=32):
    draw = torch.Generator().manual_seed(2)
    return torch.rand(count, 3, size, size, generator=draw), torch.randint(5, (count,), generator=draw)


def normalised(inputs, config):
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    return (inputs - mean) / std


def task_of(objective=WTTM, **settings):
    return integration.DistillationTask(network(), teacher_network(), objective, **settings)


def drive(task, optimizer, *, epochs=1, start=0, accumulate=2, clip=1.0):
    """Train as the script does: micro-batches without an exchange, clipping, a step, the average."""
    from timm.utils import dispatch_clip_grad

    inputs, labels = images(16)
    inputs = normalised(inputs, task.get_eval_model().pretrained_cfg)
    updates, kept = start * 2, None
    for _ in range(start, epochs):
        task.train()
        optimizer.zero_grad()
        pieces = list(zip(inputs.split(4), labels.split(4), strict=True))
        for number, (images_, target) in enumerate(pieces):
            last = (number + 1) % accumulate == 0
            with torch.autocast("cpu", torch.bfloat16), nullcontext() if last else task.no_sync():
                kept = task(images_, target)
                (kept["loss"] / accumulate).backward()
            if last:
                dispatch_clip_grad(task.get_clip_parameters(exclude_head=False), value=clip)
                optimizer.step()
                optimizer.zero_grad()
                updates += 1
                task.update_ema(step=updates)
    return kept


def optimizer_of(task, **settings):
    from timm.optim import create_optimizer_v2

    return create_optimizer_v2(task.get_trainable_module(), opt="sgd", lr=0.05, weight_decay=0.05, **settings)


def test_the_teacher_sees_images_by_its_own_statistics(timm):
    raw, labels = images()
    student, teacher = network(), teacher_network()
    mine = normalised(raw, student.pretrained_cfg)
    task = integration.DistillationTask(student, teacher, WTTM).train()
    result = task(mine, labels)
    assert set(result) == {"loss", "output", "ce", "wttm"}
    with torch.no_grad():
        expected = losses.wttm(result["output"], teacher(normalised(raw, OTHER)), gamma=0.5).mean()
    torch.testing.assert_close(result["wttm"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result["loss"], result["ce"] + 2 * result["wttm"])
    assert not any(part.training for part in teacher.modules())
    result["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    larger = integration.DistillationTask(network(), teacher, WTTM, teacher_size=(48, 48)).train()
    with torch.no_grad():
        seen = nn.functional.interpolate(raw, (48, 48), mode="bilinear", antialias=True)
        expected = losses.wttm(result["output"], teacher(normalised(seen, OTHER)), gamma=0.5).mean()
    torch.testing.assert_close(larger(mine, labels)["wttm"], expected, rtol=1e-4, atol=1e-5)


def test_the_script_trains_averages_stops_and_resumes(timm, tmp_path):
    from timm.task import load_task_ema_checkpoint, resume_task_checkpoint
    from timm.utils import CheckpointSaver

    objective = objectives.ttm(gamma=0.5, beta=objectives.Linear(1.0, 0.0)) + objectives.fitnet()

    def started():
        torch.manual_seed(4)
        task = task_of(objective, epochs=2, batches=4, example=images()[0])
        task.setup_ema(decay=0.5)
        return task, optimizer_of(task)

    whole, optimizer = started()
    drive(whole, optimizer, epochs=2)
    task, optimizer = started()
    before = copy.deepcopy(task.get_eval_model())
    drive(task, optimizer)
    CheckpointSaver(task.get_trainable_module(), optimizer, checkpoint_dir=str(tmp_path), task=task).save_checkpoint(
        0, 1.0
    )
    path = str(tmp_path / "last.pth.tar")
    before.load_state_dict(torch.load(path, weights_only=True)["state_dict"])  # under the student's own names
    resumed, optimizer = started()
    assert resume_task_checkpoint(resumed, path, optimizer, log_info=False) == 1
    load_task_ema_checkpoint(resumed, path)
    drive(resumed, optimizer, epochs=2, start=1)
    for ema in (False, True):
        first, second = (each.get_trainable_module(ema=ema).state_dict() for each in (whole, resumed))
        assert not [name for name in first if "teacher" in name]
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=0, atol=0)
    evaluator = resumed.create_evaluator()
    with torch.no_grad():
        evaluator.update(resumed.get_eval_model(ema=True).eval()(images()[0]), images()[1])
    assert 0 <= evaluator.compute()["top1"] <= 100
    with pytest.warns(UserWarning, match="state_dict_ema left out"):
        weights = models.read(path)
    average = models.read(f"{path}#state_dict_ema")
    assert weights.keys() == average.keys() == resumed.get_eval_model().state_dict().keys()
    assert models.fingerprint(weights) != models.fingerprint(average)


def test_grey_images_have_the_mean_of_the_statistics_as_in_the_loader(timm):
    from timm.data.loader import adapt_to_chs

    raw, labels = images()
    student = network(in_chans=1)
    student.pretrained_cfg = {**student.pretrained_cfg, **OTHER}
    grey = {name: adapt_to_chs(OTHER[name], 1) for name in OTHER}
    task = integration.DistillationTask(student, network(seed=1, in_chans=1), WTTM)
    back = task._view(normalised(raw[:, :1], grey))
    torch.testing.assert_close(back, raw[:, :1], rtol=1e-5, atol=1e-6)
    with_features = integration.DistillationTask(student, network(seed=1, in_chans=1), objectives.fitnet())
    assert with_features(raw[:, :1], labels)["loss"] > 0
    for wrong in ({"mean": 0.5, "std": 0.5}, {"mean": (0.5,), "std": (0.0,)}):
        with pytest.raises(TutelageError, match="mean and std: expected those that the loader normalises with"):
            task_of(**wrong)


def test_numbers_of_another_kind_are_refused(timm):
    with pytest.raises(TutelageError, match=r"image_size: expected \(height, width\) in pixels, got 96"):
        task_of(teacher_size=96)
    for number in ("3", 0, 1.5):
        with pytest.raises(TutelageError, match="epochs: expected"):
            task_of(epochs=number, batches=4)


def test_networks_may_have_other_precisions(timm):
    raw, labels = images()
    task = integration.DistillationTask(network(), teacher_network(), WTTM, dtype=torch.bfloat16).train()
    assert task(raw, labels)["wttm"].isfinite()
    half = integration.DistillationTask(network().bfloat16(), teacher_network(), objectives.fitnet()).train()
    assert half(raw.bfloat16(), labels)["loss"].isfinite()


def test_what_a_task_does_not_have_is_refused(timm):
    student, teacher = network(), teacher_network()
    wrong = {
        "objective: expected one of logits, .* got crd, with the samples' places": (student, teacher, objectives.crd()),
        "with a number found on the training set, by auto or normalise=training": (
            student,
            teacher,
            objectives.kd(weight="auto"),
        ),
        "epochs and batches: expected numbers for dkd": (student, teacher, objectives.dkd()),
        "objective: expected a tutelage objective, got str": (student, teacher, "wttm"),
        "teacher: expected one for objective": (student, None, WTTM),
        "teacher: expected a network of timm's or one with a card": (student, nn.Linear(3, 5), WTTM),
        "teacher: expected the student's 5 classes, got 7": (student, network(classes=7), WTTM),
        "student: expected a bare network": (models.create("timm:test_resnet", classes=5), teacher, WTTM),
        "share no module": (student, student, WTTM),
    }
    for message, arguments in wrong.items():
        with pytest.raises(TutelageError, match=message):
            integration.DistillationTask(*arguments)
    with pytest.raises(TutelageError, match="grad_accum_steps: expected 1 for an objective that couples"):
        task_of(objectives.similarity(), example=images()[0]).no_sync()
    with pytest.raises(TutelageError, match="labels: expected int64 class indices, got soft labels"):
        task_of(objectives.dkd(), epochs=1, batches=1)(images()[0], torch.full((8, 5), 0.2))
    assert float(task_of()(images()[0], torch.full((8, 5), 0.2))["loss"].detach()) > 0


def test_without_the_library_the_task_is_there_and_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    integration._task_class.cache_clear()
    with pytest.raises(MissingExtraError, match=r"DistillationTask: .* type pip install 'tutelage\[timm\]'"):
        integration.DistillationTask  # noqa: B018


def test_an_older_timm_without_tasks_is_named(timm, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.task", None)
    integration._task_class.cache_clear()
    with pytest.raises(MissingExtraError, match=rf"got {timm.__version__}; type pip install -U timm"):
        integration.DistillationTask  # noqa: B018


def test_decay_and_layers_are_the_students_own(timm):
    task = task_of(objectives.fitnet(), example=images()[0])
    plain = network()
    from timm.optim import create_optimizer_v2

    settings = {"opt": "adamw", "lr": 1e-3, "weight_decay": 0.1, "layer_decay": 0.5}
    alone = create_optimizer_v2(plain, **settings)

    def by_name(optimizer, module, prefix=""):
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        return {
            names[id(p)].removeprefix(prefix): (group["lr_scale"], group["weight_decay"])
            for group in optimizer.param_groups
            for p in group["params"]
        }

    trainable = task.get_trainable_module()
    ours = by_name(create_optimizer_v2(trainable, **settings), trainable, "student.network.")
    assert by_name(alone, plain).items() <= ours.items()
    assert any(name.startswith("objective.") for name in ours)
    vit = network(name="test_vit", img_size=32)
    matched = integration.DistillationTask(vit, teacher_network(), WTTM).get_trainable_module().no_weight_decay()
    assert matched == {f"student.network.{name}" for name in vit.no_weight_decay()}
    assert len(task.get_clip_parameters(exclude_head=True)) == len(task.get_clip_parameters()) - 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler's own
def test_compiled_networks_are_those_that_are_kept(timm):
    inputs, labels = images()
    task = task_of(objectives.cross_entropy() + objectives.fitnet(), example=inputs)
    plain = copy.deepcopy(task).train()(inputs, labels)["loss"]
    task.setup_ema(decay=0.0)
    task.train().compile(backend="eager")
    task.compile_ema(backend="eager")
    torch.testing.assert_close(task(inputs, labels)["loss"], plain)
    assert set(task.get_checkpoint_state(ema=True)["state_dict_ema"]) == set(network().state_dict())


def _drive_a_share(rank, folder):
    torch.distributed.init_process_group("gloo")
    task = task_of(objectives.ttm(gamma=0.5, beta=1.0))
    optimizer = optimizer_of(task)
    task.prepare_distributed(device_ids=None)
    assert isinstance(task.trainable_module, DistributedDataParallel)
    inputs, labels = images(16)
    task.eval()  # Batch norm's statistics would be those of a share.
    for _ in range(2):
        with task.no_sync():
            (task(inputs[rank:8:2], labels[rank:8:2])["loss"] / 2).backward()
        (task(inputs[8 + rank :: 2], labels[8 + rank :: 2])["loss"] / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(task.get_checkpoint_state()["state_dict"], folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_train_as_one(timm, tmp_path):
    processes(2, _drive_a_share, tmp_path)
    task = task_of(objectives.ttm(gamma=0.5, beta=1.0)).eval()
    optimizer = optimizer_of(task)
    inputs, labels = images(16)
    for _ in range(2):
        for part in (slice(8), slice(8, None)):
            (task(inputs[part], labels[part])["loss"] / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(value, task.get_eval_model().state_dict()[name], rtol=0, atol=1e-5)
