"""Exit codes, and that whatever goes wrong is one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from neti.utils.errors import SHOWN, ArgumentParser, UserError, exit_on_user_error, first_line, shorten, shown


def test_each_line_of_a_user_error_is_told_as_one_error_and_the_exit_code_is_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @exit_on_user_error
    def main() -> None:
        raise UserError("first\nsecond")

    assert main() == 2
    captured = capsys.readouterr()
    assert captured.err == "error: first\nerror: second\n"
    assert captured.out == ""


def test_success_and_interruption_have_their_own_codes() -> None:
    @exit_on_user_error
    def done() -> None:
        return None

    @exit_on_user_error
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert done() == 0
    assert interrupted() == 130


def test_a_fault_of_ours_is_one_line_that_names_the_saved_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    @exit_on_user_error
    def main() -> None:
        raise RuntimeError("not the user's fault\nand more")

    assert main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: RuntimeError: not the user's fault (")
    saved = Path(re.search(r"traceback is in (\S+)\)", line)[1])
    assert 'raise RuntimeError("not the user' in saved.read_text()
    saved.unlink()


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0), ("x", 1)])
def test_one_of_several_processes_prints_what_is_wrong(
    rank: str, lines: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")

    @exit_on_user_error
    def main() -> None:
        raise UserError("the same in all")

    assert main() == 2
    assert capsys.readouterr().err.count("error:") == lines


def test_other_peoples_text_is_shortened_in_messages() -> None:
    assert shorten("abc") == first_line(ValueError("\n abc \nmore")) == "abc"
    assert first_line(ValueError()) == "ValueError"
    assert shorten("a\ud800\nb") == "a\\ud800\\nb"
    assert first_line(KeyError("step")) == "'step' is missing"
    assert shorten("a" * 12_000 + "end").startswith("aaa") and shorten("a" * 12_000 + "end").endswith("aend")
    assert len(shorten("a" * 12_000)) == SHOWN
    loop: list[object] = []
    loop.append(loop)
    for value in ("\ud800" * 12_000, list(range(10**6)), {n: "x" * 1000 for n in range(1000)}, loop, object()):
        assert len(shown(value)) <= SHOWN
        assert shown(value).isascii()
    assert shown(["a", {"b": 1}, None]) == "['a', {'b': 1}, None]"


def test_a_wrong_option_of_a_script_is_one_short_line() -> None:
    parser = ArgumentParser(prog="x.py")
    parser.add_argument("--seed", type=int)
    with pytest.raises(UserError) as caught:
        parser.parse_args(["--seed", "9" * 5000])
    line = str(caught.value)
    assert line.startswith("argument --seed: invalid int value: '999") and line.endswith(
        "x.py --help lists the options"
    )
    assert len(line) < 300 and "\n" not in line


PRINTS = """
from neti.utils.errors import exit_on_user_error
@exit_on_user_error
def main():
    for _ in range(100_000):
        print("photo of a {}, 写真")
raise SystemExit(main())
"""


def test_a_reader_that_stops_and_a_terminal_that_knows_ascii_only_are_no_bugs() -> None:
    script = [sys.executable, "-c", PRINTS]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"photo of a {}, \\u5199\\u771f\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
