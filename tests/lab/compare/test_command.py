"""dither compare FILE.py."""

import pytest
from typer.testing import CliRunner

from dither.lab.cli import app

FILE = """
import torch, dither
from torch import nn
def make_model(): return nn.Linear(4, 2)
torch.manual_seed(0)
x, y = torch.randn(20, 4), torch.randint(2, (20,))
data = x, y, x, y
methods = {"none": None, "gni": dither.Additive(0.1)}
settings = {"seeds": 1, "epochs": 1}
"""


def test_the_command(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    command = ["compare", str(file), "--out", str(tmp_path / "out"), "--jobs", "1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "[2/2] gni · seed 0" in result.stdout
    assert "accuracy/test" in result.stdout
    assert (tmp_path / "out" / "index.html").is_file()
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0
    assert "gni · seed 0" not in again.stdout
    more = CliRunner().invoke(app, [*command, "--seeds", "1:3", "--epochs", "2"])
    assert "[4/4] gni · seed 2" in more.stdout


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "does not define make_model and data and methods"),
        ("x = 1\ny = 1/0", "line 2: ZeroDivisionError"),
        ("x =", "line 1: SyntaxError"),
        (FILE + "settings['sedes'] = 2", "settings don't fit"),
        (FILE + "methods['none'] = 3", "method 'none' must be None"),
    ],
)
def test_the_command_tells_what_is_wrong_with_a_file(tmp_path, text, says):
    file = tmp_path / "mine.py"
    file.write_text(text)
    result = CliRunner().invoke(app, ["compare", str(file), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert says in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
