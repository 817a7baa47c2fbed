"""The command line: the configuration, --version, --help, and errors in one line with exit status 2."""
import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fastbn
from fastbn import _cli
from fastbn.demo import command

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
HIDE_PACKAGE = "import sys; sys.modules[{name!r}] = None; from fastbn._cli import main; sys.exit(main(['demo']))"


def run(*arguments, **keywords):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, **keywords)


def fail(capsys, *arguments):
    """Run a command line that must fail; returns its only line on stderr."""
    try:
        status = _cli.main(list(arguments))
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.startswith("fastbn: error: ") and captured.err.count("\n") == 1
    return captured.err


def test_without_a_command_prints_the_configuration(tmp_path):
    result = run("-m", "fastbn", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert fastbn.__version__ in result.stdout
    assert result.stderr == ""


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        _cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"fastbn {fastbn.__version__}\n"


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        _cli.main(["--help"])
    assert stop.value.code == 0
    assert "demo" in capsys.readouterr().out


def test_help_of_the_demo_names_its_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        _cli.main(["demo", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--epochs", "--seed", "--output", "--threads", "--activation", "--batch-size", "--learning-rate"):
        assert flag in shown


@pytest.mark.parametrize("line", ["--bogus", "demo --bogus", "demo --epoch 3", "demo left over"])
def test_unknown_flags(capsys, line):
    assert "unrecognized arguments" in fail(capsys, *line.split())


def test_unknown_command(capsys):
    assert "'explode'" in fail(capsys, "explode")


def test_a_message_stays_one_line_whatever_the_argument(capsys):
    assert "two lines" in fail(capsys, "demo", "--two\nlines")


@pytest.mark.parametrize("flag", ["--epochs", "--threads", "--batch-size"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "", "99999999999999999999"])
def test_bad_counts(capsys, flag, value):
    message = fail(capsys, "demo", f"{flag}={value}")
    assert flag in message and f"got {value!r}" in message


@pytest.mark.parametrize("value", ["-1", str(2**32), "x"])
def test_bad_seeds(capsys, value):
    assert "--seed" in fail(capsys, "demo", f"--seed={value}")


@pytest.mark.parametrize("value", ["0", "-0.1", "nan", "inf", "fast"])
def test_bad_learning_rates(capsys, value):
    message = fail(capsys, "demo", f"--learning-rate={value}")
    assert "--learning-rate" in message and f"got {value!r}" in message


def test_a_bad_activation(capsys):
    assert "'maxout'" in fail(capsys, "demo", "--activation", "maxout")


@pytest.mark.parametrize("name, distribution", command.REQUIRED.items())
def test_a_missing_package_of_the_extra(tmp_path, name, distribution):
    result = run("-c", HIDE_PACKAGE.format(name=name), cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("fastbn: error: ") and result.stderr.count("\n") == 1
    assert distribution in result.stderr and "pip install 'fastbn[demo]'" in result.stderr
    assert not list(tmp_path.iterdir())


def test_import_leaves_the_command_line_and_the_demo_alone(tmp_path):
    code = "import fastbn, sys; print([m for m in sys.modules if m.startswith(('fastbn._cli', 'fastbn.demo', 'rich'))])"
    result = run("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_an_instruction_set_that_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTBN_ISA", "abacus")
    result = run("-m", "fastbn", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("fastbn: error: ") and result.stderr.count("\n") == 1
    assert "abacus" in result.stderr


def test_an_interrupt_has_no_traceback(capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(fastbn, "show_config", interrupted)
    assert _cli.main([]) == 130
    assert capsys.readouterr().err == "fastbn: interrupted\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no broken pipes")
def test_a_reader_that_goes_away(tmp_path):
    command = [sys.executable, "-m", "fastbn"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        process.stdout.close()
        complaints = process.stderr.read()
    assert complaints == ""
    assert process.returncode == 1


def test_the_command_fastbn_is_the_same():
    scripts = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["scripts"]
    assert importlib.metadata.EntryPoint("fastbn", scripts["fastbn"], "console_scripts").load() is _cli.main
