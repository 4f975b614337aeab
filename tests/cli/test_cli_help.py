"""``--help`` of every command says what its source says."""

import ast
import dataclasses
import inspect
import re
import textwrap

import pytest

from tinkering.cli import main
from tinkering.cli.data import Get, Show
from tinkering.cli.evaluate import Evaluate
from tinkering.cli.evolve import Evolve
from tinkering.cli.report import Report


def documented(command):
    """The fields of a command and the text under each, from its source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(command))).body
    texts = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            texts[field.target.id] = " ".join(ast.literal_eval(text.value).split())
    return texts


class TestHelp:
    @pytest.mark.parametrize(
        ("words", "command"),
        [
            (["evolve"], Evolve),
            (["evaluate"], Evaluate),
            (["report"], Report),
            (["data", "get"], Get),
            (["data", "show"], Show),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_lists_every_flag_with_its_text(self, words, command, capsys):
        with pytest.raises(SystemExit) as caught:
            main([*words, "--help"])
        assert caught.value.code == 0
        printed = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
        texts = documented(command)
        for field in dataclasses.fields(command):
            assert len(texts[field.name]) > 10
            assert texts[field.name] in printed
            if "Positional" not in str(field.type):
                # A comma where there is a --no- form beside it.
                assert re.search(rf"--{field.name.replace('_', '-')}[ ,]", printed)
        assert " ".join(inspect.getdoc(command).split()) in printed

    @pytest.mark.parametrize(
        ("words", "commands"),
        [([], ["evolve", "evaluate", "report", "data"]), (["data"], ["list", "get", "show"])],
        ids=["tinkering", "data"],
    )
    def test_lists_the_commands(self, words, commands, capsys):
        with pytest.raises(SystemExit) as caught:
            main([*words, "--help"])
        assert caught.value.code == 0
        printed = capsys.readouterr().out
        for command in commands:
            assert re.search(rf"^[│•\s]+{command}\s+[A-Z]\w+", printed, re.MULTILINE), command
