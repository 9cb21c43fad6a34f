"""What the scripts share that hold this version of the package against another: its source, and a process of each."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


@contextmanager
def checked_out(base, scratch):
    """Yield the source of both versions, ``base`` and ``here``; the first is checked out into a temporary worktree."""
    git, tree = ["git", "-C", str(HERE)], scratch / "tree"
    subprocess.run([*git, "worktree", "add", "--quiet", "--detach", tree, base], check=True)
    try:
        yield {"base": tree / "src", "here": HERE / "src"}
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", tree], check=True)


class Version:
    """A version in a process of its own with one thread, which answers requests: ``script --serve``, by `serve`."""

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
        """Wait for its end."""
        self.process.stdin.close()
        self.process.wait()


def serve(answer):
    """Answer requests until there are no more."""
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(line.strip())), flush=True)


def in_turn(sides, rounds, request):
    """Ask all versions for the same, as often as there are rounds and in another order each time; the first is lost."""
    for version in sides.values():
        version.ask(request)
    answers = []
    for turn in range(rounds):
        order = list(sides) if turn % 2 else list(sides)[::-1]
        answers.append({side: sides[side].ask(request) for side in order})
    return answers
