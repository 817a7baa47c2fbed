"""The list of faults in faults.py goes with the code: each old text is there exactly once."""
import faults


def test_every_fault_can_be_planted():
    assert faults.problems() == []


def test_there_are_forty_faults_with_numbers_of_their_own():
    assert [fault.number for fault in faults.FAULTS] == list(range(1, 41))
    assert all(fault.old != fault.new for fault in faults.FAULTS)


def test_a_text_that_is_gone_or_there_twice_is_named(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    twice = faults.Fault(1, "a.py", "x = 1", "x = 2", "")
    gone = faults.Fault(2, "a.py", "y = 1", "y = 2", "")
    nowhere = faults.Fault(3, "b.py", "x", "y", "")
    found = faults.problems([twice, gone, nowhere], tmp_path)
    assert [line.partition(":")[0] for line in found] == ["fault 1", "fault 2", "fault 3"]
    assert "2 times" in found[0] and "0 times" in found[1] and "there is no b.py" in found[2]


def test_the_first_failure_is_read_from_what_pytest_prints():
    text = "F\nFAILED tests/test_a.py::test_b[1 x] - assert 1 == 2\nERROR tests/test_c.py\n"
    assert faults.first_failure(1, text) == "tests/test_a.py::test_b[1 x]"
    assert faults.first_failure(-11, "") == "pytest ended with status -11"
    assert faults.first_failure(None, "").startswith("no end within")
