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
from tinkering.cli.flag import facts
from tinkering.cli.flags import Flags
from tinkering.cli.report import Report


def documented(command):
    """The fields of a command and the text under each, from its source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(command))).body
    texts = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            texts[field.target.id] = " ".join(ast.literal_eval(text.value).split())
    return texts


def kinds(command):
    """The classes whose fields are a command's flags: itself, or what it inherits, and groups."""
    groups = [field.default_factory for field in dataclasses.fields(command)]
    own = Flags if command is Evolve else command
    return [own, *filter(dataclasses.is_dataclass, groups)]


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
        for kind in kinds(command):
            texts = documented(kind)
            for field in dataclasses.fields(kind):
                if dataclasses.is_dataclass(field.default_factory):
                    assert " ".join(inspect.getdoc(field.default_factory).split()) in printed
                    continue
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

    def test_flags_of_a_strategy_stand_apart(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit):
            main(["evolve", "--help"])
        boxes, printed = {}, capsys.readouterr().out
        assert max(map(len, printed.splitlines())) <= 100
        for line in printed.splitlines():
            if title := re.fullmatch(r"([a-z-]*) ?options", line.strip("│╭╮╰╯─- ")):
                box = boxes.setdefault(title[1], [])
            elif flag := re.match("[│ ] --([a-z][a-z-]+)", line):
                box.append(flag[1])
        own = {
            "evolution-strategy": ["learning-rate", "decay", "averaging", "shaping"],
            "activations": ["blur", "readings"],
            "feedback": ["cells"],
            "networks": ["images", "statistics"],
            "weights": ["antithetic", "rank"],
            "genetic": ["parents", "elites"],
        }
        assert list(boxes) == ["", *own, "growing", "worker", "output"]
        assert {name: boxes[name] for name in own} == own
        shown = [flag.replace("-", "_") for box in boxes.values() for flag in box]
        assert shown == list(facts(Flags))
        said = " ".join(re.sub("[│╭╮╰╯─]", " ", printed).split())
        for only in (
            "feedback or activations or weights",
            "feedback or activations",
            "feedback",
            "feedback or weights or genetic",
            "weights",
            "genetic",
        ):
            assert f"Only with --strategy {only}. " in said
