"""Exit codes and the one-line form of user mistakes."""

from __future__ import annotations

import pytest

from neti.utils.errors import UserError, exit_on_user_error


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


def test_a_bug_keeps_its_traceback() -> None:
    @exit_on_user_error
    def main() -> None:
        raise ValueError("not the user's fault")

    with pytest.raises(ValueError, match="not the user's fault"):
        main()
