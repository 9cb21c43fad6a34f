"""Play the tutorials at their full size, and record how long each step takes and what it says.

    python benchmarks/tutorials.py [images] [text] [--write benchmarks/results/tutorials.json] [--keep FOLDER]

Each page of docs/tutorials is typed from top to bottom in an empty folder: a command is a process of its own, as a
reader's is, and Python's blocks share one. Recorded are seconds by the clock on the wall and of the processors, beside
the load of the machine before and after, as other work on it makes the former longer. With ``--write`` the pages'
tables of times are written again too.
"""

import itertools
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RECORD = ROOT / "benchmarks" / "results" / "tutorials.json"
SKIPPED = {
    "images": {"pip install": "it is installed", "EuroSAT": "94 MB from the network"},
    "text": {"pip install": "they are installed"},
}
"""What of each page is not played, and why."""
TABLE = re.compile(r"(?<=<!-- times -->\n).*?(?=<!-- end -->)", re.DOTALL)


def played(name, folder):
    """Return a record of a page: each step with its seconds and its output."""
    from tests.pages import harness

    said, processors = {}, {}
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

    def type_line(line):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "tutelage", *shlex.split(line)[1:]]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processors[line] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        said[line] = done.stdout
        print(f"{line}\n{done.stdout}", flush=True)
        return done.stdout

    load = [os.getloadavg()[0]]
    done = harness.play(f"docs/tutorials/{name}.md", folder, skip=SKIPPED[name], type_line=type_line)
    load.append(os.getloadavg()[0])
    steps = [
        {
            "step": step,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(processors[step], 1) if step in said else None,
        }
        for step, seconds in done.seconds.items()
    ]
    return {"steps": steps, "load": load, "threads": os.environ.get("OMP_NUM_THREADS"), "said": done.said}


def table(record):
    """Return the table of a page: the commands with their seconds, and all steps together."""
    rows = [f"| `{short(each['step'])}` | {each['seconds']:.0f} |" for each in record["steps"] if each["cpu_seconds"]]
    whole = sum(each["seconds"] for each in record["steps"])
    rows.append(f"| all, with the blocks of Python | {whole:.0f} |")
    return "\n".join(["| Step | Seconds |", "|---|---:|", *rows]) + "\n"


def short(line):
    """Return a command without its first word, up to its overrides."""
    words = shlex.split(line)
    named = [word for word in words[2:] if word.startswith(("name=", "--dry-run"))]
    return " ".join([*itertools.takewhile(lambda word: not word.startswith("-"), words[1:3]), *named])


def main():
    import output

    parser = output.parser(__doc__)
    parser.add_argument("names", nargs="*", default=["images", "text"])
    parser.add_argument("--write", type=Path, nargs="?", const=RECORD)
    parser.add_argument("--keep", type=Path, help="what is made stays here")
    options = parser.parse_args()
    for name in options.names or ["images", "text"]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = (options.keep or Path(scratch)) / name
            folder.mkdir(parents=True)
            record = played(name, folder)
        print(table(record))
        if options.write:
            output.write(options.write, {**output.read(options.write), **output.machine(), name: record})
            page = ROOT / "docs" / "tutorials" / f"{name}.md"
            shown = TABLE.sub(lambda _, record=record: table(record), page.read_text(encoding="utf-8"))
            page.write_text(shown, encoding="utf-8")


if __name__ == "__main__":
    main()
