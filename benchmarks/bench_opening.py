"""Time the opening of a folder of many small images, first and again, against another version and torchvision.

    python benchmarks/bench_opening.py [BASE] [--files 100000] [--rounds 3] [--write RESULT.json]

BASE is a git revision, which is checked out into a temporary worktree; without it this version is timed alone. The
folder has links to 50 JPEG files in 100 classes, a twentieth of them for validation. Each version waits in a process of
its own, with one thread, and opens it

- streamed: images of several sizes, of which random boxes are cut (`data.random_resized_crop`);
- streamed, of one size: likewise, so that every header is read once;
- in memory: images of one size, which are decoded when they are opened;

for the first time (no cache is there), again in the same process, and again in a new process whose imports do not
count. torchvision's ImageFolder, which only lists the names, is timed beside them. Printed are the median seconds and
the median over rounds of the other's seconds over this version's, with the smallest and the largest: above 1 this
version is faster. Timed is the clock on the wall, and the system has the folder's entries in memory.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import versions

CASES = {
    "streamed": ("mixed", {"random_resized_crop": True, "size": 32}),
    "streamed, of one size": ("alike", {"random_resized_crop": True}),
    "in memory": ("alike", {}),
}
"""Folder and settings by name."""
TIMES = ("first", "again", "again in a new process")
CLASSES, SEEDS = 100, 50


def make(folder, files):
    """Make the two folders, of links: a file system may limit how many a file has."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for name in ("mixed", "alike"):
        seeds = []
        for i in range(SEEDS):
            seeds.append(folder / f"{name}-{i}.jpg")
            width = 8 + (i % 3 if name == "mixed" else 0)
            Image.fromarray(draw.integers(0, 255, (8, width, 3), dtype=np.uint8)).save(seeds[-1])
        for half in ("train", "val"):
            for c in range(CLASSES):
                (folder / name / half / f"c{c:03d}").mkdir(parents=True)
        for i in range(files):
            half = "train" if i % 20 else "val"
            os.link(seeds[i % SEEDS], folder / name / half / f"c{i // 20 % CLASSES:03d}" / f"{i:08d}.jpg")


def opening(name, folder):
    """Return the seconds of one opening in this process."""
    from tutelage.data import DataSettings, open_data

    folder_name, values = CASES[name]
    settings = DataSettings(source=f"imagefolder:{folder / folder_name}", **values)
    began = time.perf_counter()
    open_data(settings)
    return time.perf_counter() - began


def serve(folder):
    """Answer each name of an opening with its seconds."""
    import torch
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(1)

    def answer(request):
        name, when = json.loads(request)
        if when == "torchvision":
            began = time.perf_counter()
            ImageFolder(folder / CASES[name][0] / "train")
            ImageFolder(folder / CASES[name][0] / "val")
            return time.perf_counter() - began
        if when == TIMES[0]:
            os.environ["TUTELAGE_CACHE"] = tempfile.mkdtemp(dir=folder)
        if when == TIMES[2]:
            typed = [sys.executable, __file__, "--open", name, "--folder", folder]
            return float(subprocess.run(typed, check=True, capture_output=True, text=True).stdout)
        return opening(name, folder)

    versions.serve(answer)


def main():
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", metavar="BASE", nargs="?", help="a git revision")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="a JSON file for every figure")
    for name in ("--open", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.open:
        print(opening(arguments.open, Path(arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as name, versions.sources_of(arguments.base, Path(name)) as sources:
        folder = Path(name)
        make(folder, arguments.files)
        os.environ["BENCH_OPENING"] = name
        sides = {side: versions.Version(__file__, source, folder) for side, source in sources.items()}
        seconds = {}
        for case in CASES:
            asked = (*TIMES, "torchvision")
            rounds = {when: versions.in_turn(sides, arguments.rounds, json.dumps([case, when])) for when in asked}
            seconds[case] = {
                when: {side: [row[side] for row in rows] for side in sides} for when, rows in rounds.items()
            }
            listed = seconds[case].pop("torchvision")["here"]
            for when, by_side in seconds[case].items():
                by_side["torchvision"] = listed
                line = f"{case:<24}{when:<24}{statistics.median(by_side['here']):>7.2f} s"
                for side in [side for side in by_side if side != "here"]:
                    pairs = [other / here for other, here in zip(by_side[side], by_side["here"], strict=True)]
                    line += f"   {side} {statistics.median(pairs):.2f}x ({min(pairs):.2f} to {max(pairs):.2f})"
                print(line, flush=True)
        for version in sides.values():
            version.end()
    if arguments.write:
        import output  # of this version alone

        command = " ".join(["python benchmarks/bench_opening.py", *sys.argv[1:]])
        n = {"rounds": arguments.rounds, "files": arguments.files}
        output.write(arguments.write, {"command": command, "n": n, "threads": 1, "seconds": seconds})


if __name__ == "__main__":
    if "--serve" in sys.argv:
        sys.exit(serve(Path(os.environ["BENCH_OPENING"])))
    main()
