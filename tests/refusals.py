"""How scripts refuse bad input."""

import pytest


def refused(main, argv, capsys):
    """The one line with which a script refuses its arguments.

    Args:
        main: The script's `main`.
        argv: List of arguments; those that are no text become so.
        capsys: pytest's.

    Returns:
        The line on the standard error, with which alone it ended.
    """
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in argv])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "error: " in captured.err
    return captured.err
