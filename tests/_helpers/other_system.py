"""Does runs under what Windows and macOS refuse, as far as Linux can act it: `python other_system.py FOLDER [WORKERS]`.

Modules of POSIX cannot be imported by tutelage, folders cannot be opened, a file that is open or mapped can be neither
replaced nor removed, processes are spawned and not forked, and text without an encoding is an error.
"""

import builtins
import multiprocessing
import os
import shutil
import sys
import warnings
from pathlib import Path

POSIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}


def refuse(module, name, refused):
    """Let a function of a module raise PermissionError where one of its arguments, as a path, is refused."""
    plain = getattr(module, name)

    def call(*arguments, **keywords):
        for argument in arguments:
            if isinstance(argument, str | os.PathLike) and refused(os.path.abspath(argument)):
                raise PermissionError(13, "Access is denied", os.fspath(argument))
        return plain(*arguments, **keywords)

    setattr(module, name, call)


def in_use(path):
    """Return whether this process has a file open or mapped, or one below a folder."""
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    used = {line.split(maxsplit=5)[5] for line in mapped if "/" in line}
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            used.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:
            continue
    return any(name == path or name.startswith(path + os.sep) for name in used)


def importing(plain):
    def imported(name, globals=None, *arguments, **keywords):
        if name in POSIX and str((globals or {}).get("__name__")).startswith("tutelage"):
            raise ImportError(f"{name}, which this system has not")
        return plain(name, globals, *arguments, **keywords)

    return imported


def act():
    builtins.__import__ = importing(builtins.__import__)
    refuse(os, "open", os.path.isdir)
    shutil._use_fd_functions = False  # By paths, as where folders cannot be opened.
    for name in ("replace", "rename", "unlink", "remove", "rmdir"):
        refuse(os, name, in_use)
    warnings.filterwarnings("error", category=EncodingWarning, module=r"tutelage(\.|$)")
    multiprocessing.set_start_method("spawn")


def pictures(folder):
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0)
    for k in range(24):
        path = folder / f"class{k % 2}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(path)
    return {"source": f"imagefolder:{folder}", "test": "train", "memory_limit_mb": 0}


def main(folder, workers):
    from tutelage.config.schema import Recipe, parse
    from tutelage.report.html import write_report
    from tutelage.runs.dry_run import dry_run
    from tutelage.runs.execute import execute
    from tutelage.runs.record_teacher import record
    from tutelage.runs.reporter import Reporter
    from tutelage.runs.run import RunOptions, load

    class Stops(Reporter):
        def note(self, text):
            raise KeyboardInterrupt

    data = {**pictures(folder / "images"), "workers": workers} if workers else {"source": "digits"}
    shared = {"data": data, "epochs": 2, "batch_size": 12 if workers else 512, "device": "cpu", "weak_teacher": True}
    taught = {"student": "mlp:8", "objective": "wttm", "teacher": str(folder / "teacher")}
    teacher = parse(Recipe, {**shared, "name": "teacher", "student": "mlp:16"})
    student = parse(Recipe, {**shared, **taught, "name": "student", "outputs": str(folder / "outputs")})
    execute(teacher, folder / "teacher")
    dry_run(student.model_copy(update={"outputs": None}))
    record(student)
    try:
        execute(student, folder / "student", options=RunOptions(reporter=Stops()))
    except KeyboardInterrupt:
        assert execute(student, folder / "student").manifest["resumed"] == 1
    load(folder / "student")
    write_report(folder / "student")


if __name__ == "__main__":
    act()
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
