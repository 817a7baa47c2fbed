"""The demo over ranks: its parts on ranks that are threads, its verdict, its errors. Whole runs: test_distributed_mpi.py."""
import subprocess
import sys

import numpy as np
import pytest

for name in ("sklearn", "matplotlib", "rich", "threadpoolctl"):
    pytest.importorskip(name, reason="the demo's packages are not installed")

import fastbn  # noqa: E402
from fastbn.demo import ranks  # noqa: E402
from fastbn.demo.data import load_data  # noqa: E402
from fastbn.demo.network import BEFORE  # noqa: E402
from fastbn.demo.settings import Settings  # noqa: E402
from fastbn.demo.training import History, Variant, batch_order, make_network, mini_batches, training_step  # noqa: E402
from fastbn.distributed import SyncBatchNorm  # noqa: E402
from threads_communicator import Threads, on_all_ranks  # noqa: E402

SETTINGS = Settings(epochs=1)


class Pickling(Threads):
    """With the methods of mpi4py that the demo uses beside those of fastbn.distributed."""

    size = property(lambda self: self.group.size)

    def allgather(self, value):
        self.group.slots[self.rank] = value
        self.group.barrier.wait()
        found = list(self.group.slots)
        self.group.barrier.wait()
        return found


def on_pickling_ranks(size, work):
    return on_all_ranks(size, lambda comm: work(Pickling(comm.group, comm.rank)))


@pytest.fixture(scope="module")
def data():
    return load_data(seed=0)


@pytest.mark.parametrize("size, batch", [(2, 60), (4, 30), (4, 3)])
def test_steps_are_those_of_one_process(data, size, batch):
    """Three images over four ranks leave one without."""
    settings = Settings(batch_size=batch)
    batches = [one for one, _ in zip(mini_batches(data, batch, batch_order(settings)), range(3))]

    def work(comm):
        network, optimizer = make_network(data, settings, BEFORE, lambda c: SyncBatchNorm(c, comm=comm))
        losses = [ranks.parallel_step(comm, network, optimizer, *one) for one in batches]
        assert ranks.is_equal_everywhere(comm, network)
        return losses, [value for _, value, _ in network.parameters()]
    network, optimizer = make_network(data, settings, BEFORE)
    wanted = [training_step(network, optimizer, *one) for one in batches]
    for losses, values in on_pickling_ranks(size, work):
        np.testing.assert_allclose(losses, wanted, rtol=1e-5)
        for found, (_, value, _) in zip(values, network.parameters(), strict=True):
            np.testing.assert_allclose(found, value, rtol=0, atol=1e-4)


def test_a_rank_with_other_weights_is_seen(data):
    def work(comm):
        network, _ = make_network(data, SETTINGS, BEFORE, fastbn.BatchNorm)
        network.norms()[0].running_mean[0] = comm.rank
        return ranks.is_equal_everywhere(comm, network)
    assert on_pickling_ranks(3, work) == [False] * 3


@pytest.mark.parametrize("change, equal, verdict", [(0.0, True, "ok"), (0.1, True, "FAILED"), (0.0, False, "FAILED")])
def test_the_verdict(data, monkeypatch, capsys, tmp_path, change, equal, verdict):
    def train(data, settings, history, on_epoch):
        history.add_epoch(2.0, 0.5, 1.0)
    monkeypatch.setattr(ranks, "train_variant", train)
    together = History(Variant("4 ranks", BEFORE))
    together.add_epoch(2.0 + change, 0.5, 1.0)
    status = ranks.compare(data, Settings(output=tmp_path), together, equal)
    printed = capsys.readouterr().out
    assert (status == 0) == (verdict == "ok") and verdict in printed and f"{change / 2:.1e} of the largest" in printed
    assert (tmp_path / "parallel.png").stat().st_size > 10_000


def test_a_chart_that_cannot_be_written(data, capsys, tmp_path):
    history = History(Variant("x", BEFORE))
    history.add_epoch(1.0, 1.0, 1.0)
    assert not ranks.draw(ranks.Console(), Settings(output=tmp_path / "nowhere"), data, [history])
    assert "cannot write" in capsys.readouterr().out


def test_an_error_on_one_rank_ends_all(monkeypatch, capsys):
    class Aborted(Exception):
        """As a process that ends."""

    class Comm:
        def Abort(self, status):
            raise Aborted(status)

    def fail(seed):
        raise MemoryError("no digits")
    monkeypatch.setattr(ranks, "load_data", fail)
    monkeypatch.setattr(ranks.fastbn, "set_num_threads", lambda threads: None)
    with pytest.raises(Aborted, match="1"):
        ranks.run_over_ranks(Comm(), SETTINGS)
    assert "MemoryError: no digits" in capsys.readouterr().err


def test_a_run_that_ended_early_is_no_match():
    histories = [History(Variant("x", BEFORE)) for _ in range(2)]
    assert ranks.largest_differences(*histories) == (np.inf, np.inf)
    histories[0].add_epoch(1.0, 1.0, 1.0)
    assert ranks.largest_differences(*histories) == (np.inf, np.inf)


def test_without_mpi4py():
    hide = "import sys; sys.modules['mpi4py'] = None; from fastbn._cli import main; sys.exit(main(['parallel']))"
    result = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("fastbn: error: this needs mpi4py") and "fastbn[mpi]" in result.stderr
