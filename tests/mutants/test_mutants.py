"""The mutants can still be made, and a test that is there is named for each."""

from mutants.listed import MUTANTS
from mutants.run import faults, mutated


def test_every_source_text_is_there_once_and_every_test_exists():
    assert not faults(MUTANTS)


def test_what_has_rotted_is_told():
    m = MUTANTS[0]
    assert faults([m._replace(source="no such line")])
    assert faults([m._replace(source="import")])
    assert faults([m._replace(file="dither/gone.py")])
    assert faults([m._replace(becomes=m.source)])
    assert faults([m._replace(tests="engine/test_ghost.py::test_nothing_of_the_kind")])
    assert faults([m._replace(tests="engine/test_gone.py")])


def test_a_mutant_is_made_in_the_copy_and_taken_back(tmp_path):
    m = MUTANTS[0]._replace(file="a.py", source="1 < 2", becomes="1 <= 2")
    path = tmp_path / "a.py"
    path.write_text("x = 1 < 2\n", encoding="utf-8")
    with mutated(tmp_path, m):
        assert path.read_text(encoding="utf-8") == "x = 1 <= 2\n"
    assert path.read_text(encoding="utf-8") == "x = 1 < 2\n"
