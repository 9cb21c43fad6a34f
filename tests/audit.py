"""Ask pip-audit for known vulnerabilities of the libraries that are installed: exit code 1 if there are any, 0 if none.

Where the index of advisories cannot be reached, that is said, and the exit code is 0: nothing was looked at. What a
virtual environment brings itself, pip and setuptools, is not this project's and left out.
"""

from __future__ import annotations

import json
import subprocess
import sys

BROUGHT = frozenset({"pip", "setuptools", "wheel"})


def verdict(code: int, out: str, err: str) -> tuple[int, list[str]]:
    """Return the exit code, and lines about what pip-audit answered."""
    try:
        listed = json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        if "No module named" in err:
            return 1, [f"audit: {err.strip()}; type make audit, which installs it"]
        reason = (err.strip().splitlines() or [f"exit code {code}"])[-1]
        return 0, [f"audit: the index of advisories cannot be reached, so nothing was checked: {reason[:300]}"]
    found = [
        f"audit: {each['name']} {each['version']}: {one['id']}, mended in {one['fix_versions']}"
        for each in listed
        if each["name"].lower() not in BROUGHT
        for one in each.get("vulns", ())
    ]
    return (1, found) if found else (0, [f"audit: no known vulnerability in {len(listed)} libraries"])


def main() -> int:
    options = ["--skip-editable", "--progress-spinner", "off", "--format", "json", "--timeout", "15"]
    done = subprocess.run([sys.executable, "-m", "pip_audit", *options], capture_output=True, text=True, check=False)
    code, lines = verdict(done.returncode, done.stdout, done.stderr)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
