"""Consent for code, and what is printed."""

import pytest

from tutelage.cli import common

CODE = "file:net.py:make"


@pytest.mark.parametrize(
    "text",
    [
        f"student={CODE}",
        f"model={CODE}",
        f"teacher.name={CODE}",
        f"student={{name: {CODE}}}",
        f"teacher={{train: {{model: {CODE}}}}}",
        f"teacher.train.model.name={CODE}",
        f"pairs.big/small.student={CODE}",
        f"pairs={{big/small: {{teacher: {{name: {CODE}}}}}}}",
    ],
)
def test_a_name_typed_as_a_network_is_consent_to_that_file_alone(text):
    assert common.trusted(False, [text]) == {CODE}


@pytest.mark.parametrize(
    "text",
    [
        f"objective={CODE}",
        f"objective={{{CODE}: {{weight: 2}}}}",
        f"objective=[kd, {{{CODE}: {{weight: 2}}, scale: 2}}]",
        f"objective.{CODE}.weight=2",
        f"objective.0={CODE}",
        f"objectives.mine={CODE}",
        f"objectives={{mine: [{CODE}]}}",
        f"stages=[{{objective: {CODE}}}]",
        f"stages.0.objective={CODE}",
        f"teacher.train.objective={CODE}",
        f"methods.mine={CODE}",
        f"methods.mine.{CODE}.weight=2",
        f"methods.mine.objective={{{CODE}: {{}}}}",
    ],
)
def test_a_name_typed_as_an_objective_is_consent_too(text):
    assert common.trusted(False, [text]) == {CODE}


@pytest.mark.parametrize(
    "text",
    [
        f"name={CODE}",
        f"data.source={CODE}",
        f"outputs={CODE}",
        f"teacher.weights={CODE}",
        f"student=[{CODE}]",
        f"student=runs/{CODE}",
        f"student='see {CODE}'",
        f"student={{weights: {CODE}}}",
        f"objective={{kd: {{logits: {CODE}}}}}",
        f"objective.kd.logits={CODE}",
        f"methods.mine.settings.student={CODE}",
        f"pairs.big/small.settings.student={CODE}",
        f"title='it says {CODE}'",
    ],
)
def test_other_text_is_no_consent(text):
    assert common.trusted(False, [text]) == frozenset()


def test_consent_is_as_it_is_written():
    assert common.trusted(False, [], ["file:./net.py:make"]) == {"file:./net.py:make"}
    assert common.trusted(False, ["student=file:my nets.py:make"]) == {"file:my nets.py:make"}
    assert common.trusted(False, ["teacher=export:net.pt2", "name=export:other.pt2"]) == {"export:net.pt2"}
    assert common.trusted(False, [], ["runs/x", "mlp:8"]) == frozenset()
    assert common.trusted(True, [], []) is True


def test_what_a_terminal_would_obey_is_written_out(capsys):
    common.echo("a\x1b[2Jb\ntutelage: forged\u202e")
    assert capsys.readouterr().out == "a\\x1b[2Jb\\ntutelage: forged\\u202e\n"
