"""Copy records of a comparison or of a pool of studies, tables and pictures of reports, into benchmarks/results.

    python benchmarks/collect.py runs/cifar100-quick
    python benchmarks/collect.py --restore benchmarks/results/cifar100-quick

The first command keeps the recipes, manifests, metrics and evaluations, from which
``tutelage report benchmarks/results/NAME`` makes the table and the report again, and the weights of small teachers in
float16. Other weights and checkpoints are left behind. The picture needs Chromium and is left out without it.

The second command puts the finished runs back into ``runs/NAME``, on any machine; the study then trains only the rest,
with the copied teachers.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from tutelage import models, records
from tutelage.report import results as tables
from tutelage.studies.report import write_report
from tutelage.tensor_files import to_bytes

KEPT = (records.RECIPE, records.MANIFEST, records.METRICS, records.EVALUATION, records.COMPARISON, records.STUDY)
DRAWN = ("table.md", "table.json", "figures.md", "*.svg", "*.png")
CARRIED = 5_000_000
"""Most bytes in float16 of teacher weights that are kept: resnet56 has 1.8 MB, resnet110 3.6 MB, wrn_40_2 4.6 MB."""
TRIAL = re.compile(r"-trial\d+-seed\d+$")
"""Runs of a study's search: what became of them is in its record."""
TEACHERS = ("teacher", "teachers")
"""Folders of teachers' runs, in a comparison and in a pool."""
RESULTS = Path(__file__).parent / "results"
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def collect(folder: Path, results: Path = RESULTS, *, places: bool = True) -> Path:
    """Copy the records in a folder, with or without where data and runs lay; return the target."""
    collected = results / folder.name
    for path in sorted(folder.rglob("*")):
        if TRIAL.search(path.parent.name):
            continue
        if path.name in KEPT or any(path.match(pattern) for pattern in DRAWN):
            copy = collected / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if places or path.suffix == ".png":
                shutil.copyfile(path, copy)
            else:
                copy.write_text(without_places(path.read_text(encoding="utf-8")), encoding="utf-8")
    if not places:
        for path in folder.rglob(records.MANIFEST):
            if (copy := collected / path.parent.relative_to(folder)).exists():
                digest_again(path.parent, copy)
    for path in sorted(folder.rglob(records.STUDENT)):
        if path.parent.name in TEACHERS or path.parent.parent.name in TEACHERS:
            carry(path.parent, collected / path.parent.relative_to(folder))
    if (collected / records.COMPARISON).exists():
        (collected / "table.md").write_text(tables.table(tables.rows(collected)).markdown())
    return collected


def without_places(text: str) -> str:
    """Return a record's text without where data and runs lay on the machine.

    Example:
        >>> without_places("study data.source=hf:/home/a/cifar100 outputs=/home/a/runs/outputs --runs /home/a/runs")
        'study data.source=hf:cifar100 outputs=runs/outputs --runs runs'
    """
    text = re.sub(r"\bhf:/[^\s\"',}\]]*/", "hf:", text)
    return re.sub(r"(?<![\w:.])/[^\s\"',}\]]*?/runs\b", "runs", text)


def digest_again(run: Path, copy: Path) -> None:
    """Write into a copy's manifest the digests of its files, but for those that were damaged in the run's folder."""
    recorded = records.read_json(copy / records.MANIFEST)
    whole = set(recorded.get("files") or ()) - set(records.lost(run, recorded))
    if whole:
        recorded["files"] |= records.digests(copy, sorted(whole))
        records.write_json(copy / records.MANIFEST, recorded)


def carry(teacher: Path, copy: Path, limit: int = CARRIED) -> bool:
    """Write a finished teacher's weights in float16 next to its records if they are small; return whether they are.

    The manifest's ``rounded`` records this: a study accepts the copy as the teacher that its students had.
    """
    if records.read_json(teacher / records.MANIFEST).get("status") != "finished":
        return False
    state = models.read(teacher / records.STUDENT)
    rounded = models.read_parts(teacher)[1] is None  # Not what was trained on a frozen part: it is small.
    half = {name: value.half() if rounded and value.is_floating_point() else value for name, value in state.items()}
    content = to_bytes(half)
    if len(content) > limit:
        print(f"{teacher}: {len(content) / 1e6:.1f} MB in float16, its weights stay behind")
        return False
    records.write_bytes(copy / records.STUDENT, content)
    shutil.copyfile(teacher / records.CARD, copy / records.CARD)
    recorded = records.read_json(copy / records.MANIFEST)
    if rounded and any(value.dtype == torch.float32 for value in state.values()):
        again = {name: value.float() if value.is_floating_point() else value for name, value in half.items()}
        recorded["rounded"] = {
            "to": "float16",
            "from": models.fingerprint(state),
            "fingerprint": models.fingerprint(again),
        }
    if "files" in recorded:
        recorded["files"] |= records.digests(copy, [records.STUDENT])
    records.write_json(copy / records.MANIFEST, recorded)
    return True


def restore(collected: Path, runs: Path = Path("runs")) -> Path:
    """Copy the finished runs of a collected pool back; return the target. Existing files stay."""
    folder = runs / collected.name
    for path in sorted(collected.rglob(records.MANIFEST)):
        run, target = path.parent, folder / path.parent.relative_to(collected)
        of_teacher = run.name in TEACHERS or run.parent.name in TEACHERS
        whole = (run / records.STUDENT).exists() or not of_teacher
        if records.read_json(path).get("status") == "finished" and whole and not target.exists():
            target.mkdir(parents=True)
            for file in run.iterdir():
                if file.name in (*KEPT, records.STUDENT, records.CARD):
                    shutil.copyfile(file, target / file.name)
    return folder


def photograph(folder: Path, picture: Path) -> None:
    """Take a picture of a folder's report, in an offline browser."""
    browser = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    if browser is None:
        print("no Chromium: the picture is left out")
        return
    with tempfile.TemporaryDirectory() as scratch:
        report = write_report(folder)
        options = ["--window-size=1180,5400", "--virtual-time-budget=8000", f"--user-data-dir={scratch}"]
        shot = f"--screenshot={picture.resolve()}"
        subprocess.run([browser, *QUIET, *options, shot, report.resolve().as_uri()], check=True, capture_output=True)
        report.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--restore", action="store_true", help="put finished runs back, to resume a study")
    text = "leave out where data and runs lay; runs that were given absolute folders then have to begin anew"
    parser.add_argument("--without-places", action="store_true", help=text)
    arguments = parser.parse_args()
    if arguments.restore:
        print(restore(arguments.folder))
    else:
        kept = collect(arguments.folder, places=not arguments.without_places)
        studies = [path.parent for path in kept.glob(f"*/{records.STUDY}")]
        for shown in studies or [kept]:
            photograph(shown, shown / "report.png")
        print(kept)
