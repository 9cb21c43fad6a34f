"""What is said of pip-audit's answers."""

import json

import pytest
from tests import audit


def _listed(name, *identifiers):
    vulns = [{"id": each, "fix_versions": ["9.1"]} for each in identifiers]
    return json.dumps({"dependencies": [{"name": name, "version": "9.0", "vulns": vulns}], "fixes": []})


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ((0, _listed("pillow"), ""), 0, "no known vulnerability in 1"),
        ((1, _listed("pillow", "PYSEC-1"), "Found 1 known vulnerability"), 1, "pillow 9.0: PYSEC-1, mended in ['9.1']"),
        ((1, _listed("pip", "PYSEC-2"), "Found 1 known vulnerability"), 0, "no known"),
        ((1, "", "requests.exceptions.ConnectionError: Max retries exceeded\n"), 0, "nothing was checked"),
        ((1, "", "/usr/bin/python: No module named pip_audit\n"), 1, "No module named"),
    ],
)
def test_only_an_index_that_does_not_answer_is_passed_over(answer, code, said):
    found, lines = audit.verdict(*answer)
    assert found == code
    assert said in "".join(lines)
