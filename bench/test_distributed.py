"""The benchmark of SyncBatchNorm: bytes are counted, a model finds the costs it was made with, all is reported."""
import json
from importlib.util import find_spec

import numpy as np
import pytest

pytest.importorskip("rich", reason="rich is not installed: the extra 'bench' has it")

from bench.distributed import __main__ as command  # noqa: E402
from bench.distributed import model, table  # noqa: E402
from bench.distributed.worker import Timed  # noqa: E402
from fastbn.distributed import SyncBatchNorm  # noqa: E402

pytestmark = pytest.mark.full

HAS_MPI = find_spec("mpi4py") is not None and command.find_mpiexec() is not None


@pytest.mark.parametrize("features", [1, 64])
def test_a_step_sends_what_the_model_counts(features):
    comm = Timed(model.Recorder(2, features))
    comm.comm.Allgather = lambda send, receive: np.copyto(receive, send)  # the other rank's message is this one's
    bn, x = SyncBatchNorm(features, comm=comm), np.random.default_rng(0).normal(size=(4, features)).astype(np.float32)
    bn(x)
    bn.backward(x)
    sizes = model.sizes_of_step(features)
    assert len(sizes) == 3 and sizes[1] == 32 * features and 0 < sizes[2] - 16 * features < 200
    assert comm.sent == comm.received == sum(sizes) and comm.seconds > 0


def test_bytes_on_a_tree():
    calls = []
    comm = model.Recorder(2, 5)
    for name in ("Send", "Recv", "Bcast"):
        setattr(comm, name, lambda *arguments, name=name: calls.append((name, *arguments[1:])))
    timed, buffer = Timed(comm), np.zeros(3)
    timed.Send(buffer, 1, 7)
    timed.Recv(buffer, 1, 7)
    timed.Bcast(buffer, 0)
    timed.Bcast(buffer, 1)
    assert calls == [("Send", 1, 7), ("Recv", 1, 7), ("Bcast", 0), ("Bcast", 1)]
    assert timed.sent == timed.received == 2 * buffer.nbytes
    timed.reset()
    assert timed.sent == timed.received == timed.seconds == 0


@pytest.mark.parametrize("way", ["gather", "tree"])
def test_a_fit_finds_the_costs(way):
    wanted = model.Costs(2e-6, 3e-10)
    measured = []
    for ranks in (2, 4, 16):
        for size in (512, 4096, 65536):
            starts, times = model.factors(way, ranks)
            measured.append((ranks, size, starts * wanted.start + times * size * wanted.byte))
    np.testing.assert_allclose(model.fit(way, measured), wanted, rtol=1e-6)


def test_a_tree_wins_over_many_ranks_and_not_over_two():
    costs = model.Costs(1e-6, 1e-9)
    def seconds(ranks):
        return [model.step_seconds(way, ranks, 64, costs) for way in ("gather", "tree")]
    assert seconds(1024)[0] > 5 * seconds(1024)[1]
    assert model.received_bytes("gather", 2, 64) == model.received_bytes("tree", 2, 64) == sum(model.sizes_of_step(64))
    assert model.received_bytes("gather", 1024, 64) > 50 * model.received_bytes("tree", 1024, 64)


def document():
    step = {"features": 64, "alone": 1e-4, "step": 3e-4, "communicating": 1.5e-4, "sent": 3208, "received": 6416}
    messages = [{"bytes": size, "gather": 1e-5 + size * 1e-9, "tree": 2e-5 + size * 4e-9} for size in (512, 65536)]
    return {"processors": 2, "rows": 32, "runs": [
        {"ranks": ranks, "mpi": "Some MPI 1.0", "steps": [step], "messages": messages if ranks > 1 else []}
        for ranks in (1, 2, 4)]}


def test_command_line(monkeypatch, capsys, tmp_path):
    runs = {run["ranks"]: run for run in document()["runs"]}
    monkeypatch.setattr(command, "find_mpiexec", lambda: "mpiexec")
    monkeypatch.setattr(command, "run_ranks", lambda mpiexec, ranks, args: runs[ranks])
    monkeypatch.setattr(command.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    command.main(["--ranks", "1,2,4", "--features", "8", "--output", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert "Some MPI 1.0; 2 processors" in printed and "4*" in printed and "2*" not in printed and "50%" in printed
    assert "gather: 10.00 us a hop and 1.000 ns a byte" in printed and "4,096" in printed
    assert json.loads((tmp_path / "out.json").read_text()) == document()
    command.main(["--ranks", "4", "--features", "8", "--start", "1e-6", "--byte", "2e-9"])
    assert "tree: 1.00 us a hop and 2.000 ns a byte" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["--ranks", "0"])
    monkeypatch.setattr(command, "find_mpiexec", lambda: None)
    with pytest.raises(SystemExit, match="mpiexec is not there"):
        command.main([])


def test_more_ranks_than_processors_are_not_fitted_to():
    only = {**document(), "processors": 1}
    assert command.costs_of(only, None, None) == {}
    assert table.LEGEND.count("*") == 1


@pytest.mark.full
@pytest.mark.skipif(not HAS_MPI, reason="mpi4py or mpiexec is not installed: pip install 'fastbn[mpi]' mpich")
def test_real_ranks():
    args = command.make_parser().parse_args(["--rows", "2", "--rounds", "2", "--features", "4,8"])
    found = command.run_ranks(command.find_mpiexec(), 2, args)
    assert found["ranks"] == 2 and [step["features"] for step in found["steps"]] == [4, 8]
    for step in found["steps"]:
        assert step["sent"] == step["received"] == sum(model.sizes_of_step(step["features"]))
        assert 0 < step["communicating"] < step["step"]
    assert [one["bytes"] for one in found["messages"]] == list(command.MESSAGES)
