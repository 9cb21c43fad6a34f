"""Run tests with another interpreter, and keep how they ended beside the versions that they ran with.

    python benchmarks/pythons.py ENV/bin/python tests/losses tests/cli --write benchmarks/results/pythons.json

The interpreter is that of an environment with the extras ``all`` and ``dev``, as far as its Python has them; without
names of tests it runs all quick ones. docs/install.md shows the records.
"""

import argparse
import json
import os
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
SOFTWARE = """
import json, platform
from tutelage.runs import manifest
release = platform.freedesktop_os_release() if platform.system() == "Linux" else {}
system = " ".join([release.get("ID", platform.system()), release.get("VERSION_CODENAME", platform.release())])
print(json.dumps({"distribution": system, "software": manifest.software()}))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="an interpreter")
    parser.add_argument("tests", nargs="*", help="files and folders")
    parser.add_argument("--commit", help="of this source; default: the one that is checked out")
    parser.add_argument("--lacks", nargs="*", default=[], help="extras that this Python cannot install")
    parser.add_argument("--write", type=Path, help="a JSON file, in which the record of this Python is replaced")
    arguments = parser.parse_args()
    git = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    commit = arguments.commit or subprocess.run(git, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    env = {
        **os.environ,
        "PYTHONPATH": f"{HERE / 'src'}{os.pathsep}{HERE}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        options = ["-m", "not slow", "--numprocesses", "2", "--dist", "loadfile", "--quiet", "--junitxml", str(results)]
        subprocess.run([arguments.python, "-m", "pytest", *options, *arguments.tests], cwd=HERE, env=env, check=False)
        suite = ElementTree.parse(results).getroot().find("testsuite")
    counts = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
    cases = [case for case in suite if case.find("failure") is not None or case.find("error") is not None]
    found = subprocess.run([arguments.python, "-c", SOFTWARE], env=env, stdout=subprocess.PIPE, check=True)
    record = {
        "tests": arguments.tests or ["tests", "src/tutelage"],
        "passed": counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"],
        "skipped": counts["skipped"],
        "failed": [f"{case.get('classname')}.{case.get('name')}" for case in cases],
        "lacks": arguments.lacks,
        "commit": commit,
        "date": date.today().isoformat(),
        **json.loads(found.stdout),
    }
    print(json.dumps(record, indent=1))
    if arguments.write:
        records = json.loads(arguments.write.read_text(encoding="utf-8")) if arguments.write.exists() else {}
        records[".".join(record["software"]["python"].split(".")[:2])] = record
        arguments.write.write_text(json.dumps(dict(sorted(records.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
