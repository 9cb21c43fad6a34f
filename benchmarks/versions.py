"""Shared code of the scripts that compare this version with another: the source and a process of each."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


@contextmanager
def sources_of(base, scratch):
    """Yield the source of each version: ``base``, if given, in a temporary worktree, and ``here``."""
    if base is None:
        yield {"here": HERE / "src"}
        return
    git, tree = ["git", "-C", str(HERE)], scratch / "tree"
    subprocess.run([*git, "worktree", "add", "--quiet", "--detach", tree, base], check=True)
    try:
        yield {"base": tree / "src", "here": HERE / "src"}
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", tree], check=True)


class Version:
    """A version in its own process with one thread, which answers requests: ``script --serve``, by `serve`."""

    def __init__(self, script, source, folder):
        env = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        typed = [sys.executable, Path(script).resolve(), "--serve"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(typed, cwd=folder, env=env, text=True, **pipes)
        assert self.process.stdout.readline() == "ready\n", "a version did not start"

    def ask(self, request):
        """Return the answer to a request."""
        print(request, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def end(self):
        """Wait for the process to end."""
        self.process.stdin.close()
        self.process.wait()


def serve(answer):
    """Answer requests until there are no more."""
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(line.strip())), flush=True)


def in_turn(sides, rounds, request):
    """Ask all versions for the same, once per round and in another order each time; the first round does not count."""
    for version in sides.values():
        version.ask(request)
    answers = []
    for turn in range(rounds):
        order = list(sides) if turn % 2 else list(sides)[::-1]
        answers.append({side: sides[side].ask(request) for side in order})
    return answers


def main(script, description, serve, measure, *, rounds, alone=False):
    """Serve, or measure both versions and write the figures; without BASE only this version, if ``alone`` allows it.

    ``measure`` gets the versions by side and the number of rounds.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("base", metavar="BASE", nargs="?", help="a git revision")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--write", type=Path, help="a JSON file for every figure")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        sys.exit(serve())
    if not arguments.base and not alone:
        parser.error("expected BASE, a git revision, got none; type for example HEAD~1")
    with tempfile.TemporaryDirectory() as folder, sources_of(arguments.base, Path(folder)) as sources:
        sides = {side: Version(script, source, folder) for side, source in sources.items()}
        figures = measure(sides, arguments.rounds)
        for version in sides.values():
            version.end()
    if arguments.write:
        import output  # of this version alone

        typed = [arguments.base] if arguments.base else []
        command = " ".join(["python", f"benchmarks/{Path(script).name}", *typed, f"--rounds {arguments.rounds}"])
        output.write(arguments.write, {"command": command, "n": arguments.rounds, **figures})
