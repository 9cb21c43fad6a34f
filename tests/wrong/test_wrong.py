"""Each wrong recipe and data set is refused with exit code 2 and its message, word for word."""

import re

import pytest
from tests.wrong import corpus


@pytest.mark.parametrize("case", [pytest.param(corpus.read(path), id=path.stem) for path in corpus.cases()])
def test_what_is_wrong_is_refused(case, invoke, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, said = corpus.do(case, invoke, tmp_path)
    assert code == (0 if "warns" in case else 2), said
    assert not re.search(r"Traceback|bug in tutelage", said), said
    assert said == case.get("says"), "type python -m tests.wrong.refresh if this is what it is to say"
    assert "warns" in case or not list(tmp_path.glob("runs/*/manifest.json")), "it was begun"


def test_the_corpus_is_large_and_each_case_is_another():
    said = [corpus.read(path) for path in corpus.cases()]
    assert len(said) >= 80
    assert len(
        {(case.get("type"), case.get("recipe"), case.get("python"), str(case.get("makes"))) for case in said}
    ) == len(said)
