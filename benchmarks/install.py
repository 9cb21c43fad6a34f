"""Install a wheel in an empty environment and measure it: seconds, packages and the room that they take.

    python benchmarks/install.py dist/tutelage-0.1.0-py3-none-any.whl --python python3.13 --write install.json

The environment is a new one among the temporary files, of the given interpreter (default: this one), and is removed in
the end. pip reads no cache. The wheel comes first with what it requires, then again with each of ``--extras`` (default:
all), on top. Of each extra that is there then, the script prints packages and room besides what the wheel requires. It
takes about 8 GB of disk; the seconds are those of this network, disk and index.
"""

import argparse
import contextlib
import csv
import functools
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
SYSTEM = {"pip", "setuptools", "wheel", "tutelage"}
"""What a new environment has itself, and what is installed."""


@functools.cache
def requires(name):
    """Return what a distribution requires, or nothing if it is not installed."""
    from packaging.requirements import Requirement

    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return [Requirement(each) for each in importlib.metadata.requires(name) or ()]
    return None


def needed(name, extra=""):
    """Return the distributions that one needs with an extra, as far as they are installed, and theirs."""
    from packaging.utils import canonicalize_name

    found, left = set(), [(name, extra)]
    while left:
        name, extra = left.pop()
        for each in requires(name) or ():
            if each.marker and not each.marker.evaluate({"extra": extra}):
                continue
            for option in ("", *each.extras):
                one = (canonicalize_name(each.name), option)
                if one not in found:
                    found.add(one)
                    left.append(one)
    return {name for name, _ in found if requires(name) is not None}


@functools.cache
def installed():
    """Return the bytes and the version of each installed distribution."""
    sizes = {}
    for each in importlib.metadata.distributions():
        name = each.metadata["Name"].lower().replace("_", "-").replace(".", "-")
        sizes[name] = {"version": each.version, "bytes": 0}
        for row in csv.reader((each.read_text("RECORD") or "").splitlines()):
            with contextlib.suppress(OSError):
                sizes[name]["bytes"] += os.stat(each.locate_file(row[0])).st_size
    return sizes


def room():
    """Return what is installed here, and what each extra of tutelage needs besides the required packages."""
    packages, core = installed(), needed("tutelage")
    extras = {}
    for extra in importlib.metadata.metadata("tutelage").get_all("Provides-Extra"):
        own = needed("tutelage", extra) - core - SYSTEM
        extras[extra] = {"packages": sorted(own), "bytes": sum(packages[name]["bytes"] for name in own)}
    return {"packages": {name: packages[name] for name in sorted(packages)}, "core": sorted(core), "extras": extras}


MACHINE = """
import json, platform, torch
from tutelage.runs import manifest
release = platform.freedesktop_os_release() if platform.system() == "Linux" else {}
system = " ".join([release.get("ID", platform.system()), release.get("VERSION_CODENAME", platform.release())])
hardware, software = manifest.hardware(torch.device("cpu")), manifest.software()
print(json.dumps({"distribution": system, "hardware": hardware, "software": software}))
"""


def install(wheel, python, extras, keep=None):
    """Return a record of the wheel's installation: what each step took, and what is there in the end."""
    folder = keep or tempfile.mkdtemp()
    try:
        subprocess.run([python, "-m", "venv", folder], check=True)
        (bin_,) = [path for path in map(Path(folder).joinpath, ("bin", "Scripts")) if path.is_dir()]
        inside = str(bin_ / "python")

        def said(*arguments):
            return json.loads(subprocess.run([inside, *arguments], stdout=subprocess.PIPE, check=True).stdout)

        steps = []
        for extra in ("", *extras):
            what = f"{wheel}[{extra}]" if extra else str(wheel)
            command = [inside, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check", what]
            began = time.perf_counter()
            subprocess.run(command, check=True)
            seconds = round(time.perf_counter() - began, 1)
            found = said(__file__, "--room")
            sizes = [one["bytes"] for name, one in found["packages"].items() if name != "pip"]
            load = said("-c", "import json, psutil; print(json.dumps(psutil.getloadavg()[0]))")
            steps.append(
                {
                    "extra": extra,
                    "seconds": seconds,
                    "packages": len(sizes),
                    "bytes": sum(sizes),
                    "load": round(load, 1),
                }
            )
            print(f"{what.rpartition('/')[2]:<50}{seconds:>8.1f} s{len(sizes):>5} packages{sum(sizes) / 1e6:>9,.0f} MB")
        subprocess.run([bin_ / "tutelage", "--version"], check=True)
        return {**said("-c", MACHINE), "pip": found["packages"]["pip"]["version"], "steps": steps, **found}
    finally:
        if not keep:
            shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, nargs="?")
    parser.add_argument("--python", default=sys.executable, help="an interpreter")
    parser.add_argument("--extras", nargs="*", default=["all"])
    parser.add_argument("--keep", metavar="FOLDER", help="where the environment is made, and stays")
    parser.add_argument("--commit", help="of the wheel; default: the one that is checked out here")
    parser.add_argument("--write", type=Path, help="a JSON file, in which the record of this Python is replaced")
    parser.add_argument("--room", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.room:
        print(json.dumps(room()))
        return
    if not arguments.wheel or not arguments.wheel.is_file():
        parser.error("expected a wheel; type make dist, then python benchmarks/install.py dist/*.whl")
    git = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    commit = arguments.commit or subprocess.run(git, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    command = f"python benchmarks/install.py {arguments.wheel.name} --extras {' '.join(arguments.extras)}"
    done = install(arguments.wheel.resolve(), arguments.python, arguments.extras, arguments.keep)
    record = {
        "command": command,
        "n": 1,
        "date": date.today().isoformat(),
        "commit": commit,
        **done,
    }
    core, everything = record["steps"][0]["bytes"], record["steps"][-1]["bytes"]
    print(f"without extras: {core / everything:.0%} of the room of all steps")
    largest = sorted(record["packages"].items(), key=lambda item: -item[1]["bytes"])[:15]
    print("\n".join(f"{name:<40}{one['version']:<16}{one['bytes'] / 1e6:>9,.1f} MB" for name, one in largest))
    for name, one in record["extras"].items():
        print(f"[{name}]: {len(one['packages'])} packages, {one['bytes'] / 1e6:,.0f} MB")
    if arguments.write:
        records = json.loads(arguments.write.read_text(encoding="utf-8")) if arguments.write.exists() else {}
        records[".".join(record["software"]["python"].split(".")[:2])] = record
        arguments.write.write_text(json.dumps(dict(sorted(records.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
