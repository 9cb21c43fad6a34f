"""Copy the records of a comparison or of a pool of studies, tables and pictures of reports into benchmarks/results.

    python benchmarks/collect.py runs/cifar100-quick

Weights and checkpoints stay behind. What is kept are the recipes, manifests, metrics and evaluations, from which
``tutelage report benchmarks/results/NAME`` makes the table and the report again. The picture needs Chromium and is left
out without it.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tutelage import records
from tutelage.report import table
from tutelage.report.html import write_report

KEPT = (records.RECIPE, records.MANIFEST, records.METRICS, records.EVALUATION, records.COMPARISON, records.STUDY)
DRAWN = ("table.md", "table.json", "figures.md", "*.svg", "*.png")
RESULTS = Path(__file__).parent / "results"
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def collect(folder: Path, results: Path = RESULTS) -> Path:
    """Copy the records in a folder; return where to."""
    place = results / folder.name
    for path in sorted(folder.rglob("*")):
        if path.name in KEPT or any(path.match(pattern) for pattern in DRAWN):
            copy = place / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    if (place / records.COMPARISON).exists():
        (place / "table.md").write_text(table.markdown(table.rows(place)))
    return place


def photograph(folder: Path, picture: Path) -> None:
    """Take a picture of a folder's report, in a browser without a network."""
    browser = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
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
    kept = collect(Path(sys.argv[1]))
    studies = [path.parent for path in kept.glob(f"*/{records.STUDY}")]
    for shown in studies or [kept]:
        photograph(shown, shown / "report.png")
    print(kept)
