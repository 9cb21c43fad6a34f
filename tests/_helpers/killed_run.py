"""A parent that forks runs and lets each be killed at one moment, then resumed; it prints what became of them.

The kills are injected here, in the child: the n-th write, sync, rename or removal of a file, or the n-th step, ends the
process by SIGKILL, a write after half of its bytes. torch is imported once, before the forks.

    python killed_run.py FOLDER < moments.json > outcomes.json
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import sys
import time
import traceback

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

HERE = pathlib.Path(__file__).resolve()


class Dropping(nn.Module):
    """A student whose bits depend on all that a checkpoint must hold: dropout, batch norm, a channels-last layout."""

    def __init__(self, classes, channels):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, stride=2),
            nn.Flatten(),
        )
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(54, classes)

    def forward(self, x):
        return self.head(self.drop(self.body(x)))


def student(classes, channels):
    return Dropping(classes, channels)


def recipe_of(value):
    from tutelage import config

    return config.parse(config.Recipe, value, where="killed_run")


def two_stages(teacher):
    return {
        "name": "two-stages",
        "data": {"source": "digits", "validation": 0.1, "crop_padding": 1, "flip": True},
        "student": f"file:{HERE}:student",
        "teacher": teacher,
        "objective": {"wttm": {"gamma": 0.5, "beta": 1.0}},
        "batch_size": 256,
        "accumulate": 2,
        "checkpoint_steps": 3,
        "device": "cpu",
        "threads": 1,
        "seed": 3,
        "data_seed": 5,
        "stages": [
            {"epochs": 2, "optimizer": {"name": "sgd", "lr": 0.1, "nesterov": True}},
            {
                "epochs": 2,
                "objective": {"kd": {"temperature": 2.0}},
                "optimizer": {"name": "adamw", "lr": 3e-3},
                "schedule": {"name": "cosine", "warmup": 0.5},
                "clip": 0.5,
                "ema": 0.9,
            },
        ],
    }


def teacher_first(teacher):
    return {
        "name": "teacher-first",
        "student": "mlp:8",
        "teacher": {"train": {"model": "mlp:16", "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.2}}},
        "objective": {"ttm": {"gamma": 0.5, "beta": 1.0}},
        "epochs": 1,
        "batch_size": 256,
        "checkpoint_steps": 3,
        "device": "cpu",
        "threads": 1,
    }


def a_class(teacher):
    """Runs that are done together; their checkpoints lie at different steps."""
    changes = {
        "three": {},
        "two": {"checkpoint_steps": 2, "seed": 4, "objective": {"ttm": {"gamma": 0.5, "beta": 1.0}}},
        "five": {"checkpoint_steps": 5, "seed": 5, "student": "mlp:8", "objective": "cross_entropy"},
        "none": {"checkpoint_steps": None, "seed": 6, "teacher": None, "objective": "cross_entropy"},
    }
    found = [{**two_stages(teacher), "name": name, **own} for name, own in changes.items()]
    for one in found[2:]:
        one["stages"] = [{"epochs": 2}, {"epochs": 2}]
    return found


TEACHER = {
    "name": "teacher",
    "student": "mlp:16",
    "epochs": 3,
    "optimizer": {"name": "sgd", "lr": 0.2},
    "device": "cpu",
    "threads": 1,
}
RECIPES = {"two-stages": two_stages, "teacher-first": teacher_first, "class": a_class}


def do_run(value, folder):
    from tutelage.runs.execute import execute
    from tutelage.runs.group import execute_group
    from tutelage.runs.run import Run, RunOptions, finished

    options = RunOptions(trust_code=True)
    if isinstance(value, list):
        planned = [(recipe_of(one), folder / one["name"]) for one in value]
        left = [(recipe, place) for recipe, place in planned if not finished(place)]
        done = execute_group(left, options=options)
        assert all(isinstance(run, Run) for run in done), done
        return
    execute(recipe_of(value), folder, options=options)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment):
    """Let this process die at a moment: what is done, to which file, for which time, and just before or just after."""
    what, where, count, when = moment["what"], moment.get("where", ""), moment["count"], moment.get("when", "before")
    left = [count]

    def comes(path):
        if where not in str(path):
            return False
        left[0] -= 1
        return left[0] == 0

    if what == "step":
        register_optimizer_step_post_hook(lambda *_: kill() if comes("") else None)
    elif what == "forward":
        nn.modules.module.register_module_forward_hook(
            lambda module, *_: kill() if isinstance(module, nn.Dropout) and module.training and comes("") else None
        )
    elif what == "write":
        plain_open = pathlib.Path.open

        def opened(self, mode="r", *arguments, **keywords):
            file = plain_open(self, mode, *arguments, **keywords)
            if mode in ("wb", "ab") and comes(self):
                return Torn(file)
            return file

        pathlib.Path.open = opened
    elif what == "sync":
        plain_sync = os.fsync

        def synced(descriptor):
            if comes(os.readlink(f"/proc/self/fd/{descriptor}")):
                kill()
            plain_sync(descriptor)

        os.fsync = synced
    elif what == "rename":
        plain_replace = pathlib.Path.replace

        def replaced(self, target):
            now = comes(target)
            if now and when == "before":
                kill()
            plain_replace(self, target)
            if now:
                kill()

        pathlib.Path.replace = replaced
    elif what == "remove":
        plain_remove = shutil.rmtree

        def removed(path, *arguments, **keywords):
            if pathlib.Path(path).is_dir() and comes(path):
                min(pathlib.Path(path).iterdir()).unlink()
                kill()
            plain_remove(path, *arguments, **keywords)

        shutil.rmtree = removed
    elif what == "finished":
        from tutelage.runs.run_state import RunState

        plain_finish = RunState.finish

        def finished(self):
            plain_finish(self)
            kill()

        RunState.finish = finished
    elif what == "forget":
        from tutelage.training import state

        state.restore_rank = lambda *_: None
    elif what == "outside":
        register_optimizer_step_post_hook(lambda *_: time.sleep(0.02))
    else:
        raise ValueError(what)


class Torn:
    """A file whose first write stops half-way, with its process."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        kill()


def forked(value, folder, moment=None):
    """Do a run in a child, killed at a moment; return the signal that ended it, or its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if moment:
                arm(moment)
            do_run(value, folder)
            status = 0
        except BaseException:  # noqa: BLE001  a child must never return into the parent's loop
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    if moment and moment["what"] == "outside":
        ended = 0
        while not ended and len(list((folder / "checkpoints").glob("0*"))) < moment["count"]:
            time.sleep(0.005)
            ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return {"exit": os.waitstatus_to_exitcode(status)}
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else {"exit": os.WEXITSTATUS(status)}


def main():
    torch.set_num_threads(1)
    # Before the forks: the imports of a run, which take longer than it, and those of an optimizer's first construction.
    import sklearn.datasets  # noqa: F401

    import tutelage.runs.execute
    import tutelage.runs.group  # noqa: F401

    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    folder = pathlib.Path(sys.argv[1])
    teacher = folder / "teacher"
    forked(TEACHER, teacher)
    outcomes = {}
    for name, make in RECIPES.items():
        value = make(str(teacher))
        if isinstance(value, list):  # never stopped, and each alone
            outcomes[name] = [forked(one, folder / name / one["name"]) for one in value]
        else:
            outcomes[name] = [forked(value, folder / name)]
    for name, case in json.load(sys.stdin).items():
        value = RECIPES[case["recipe"]](str(teacher))
        outcomes[name] = [forked(value, folder / name, moment) for moment in [*case["moments"], case.get("then")]]
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
