"""The benchmark of StandardScaler: every operation is checked, timed and in the table; who disagrees is not timed."""
import re

import numpy as np
import pytest

pytest.importorskip("rich", reason="rich is not installed: the extra 'bench' has it")
pytest.importorskip("sklearn", "1.6", reason="scikit-learn 1.6 is not installed: the extra 'sklearn' has it")

import fastbn  # noqa: E402
from bench import scaler  # noqa: E402
from bench.frameworks.compare import Disagreement  # noqa: E402

pytestmark = pytest.mark.full


def test_every_operation_is_in_the_table(capsys, monkeypatch):
    monkeypatch.setattr(scaler, "SHAPES", ((4000, 3),))
    assert scaler.main(["--quick", "--seconds", "0.01", "--threads", "1"]) == 0
    fastbn.set_num_threads(None)
    text = capsys.readouterr().out
    for name in scaler.OPERATIONS:
        assert len(re.findall(rf"40 x 3 +float(?:32|64) +{name} +[\d.e+-]+ +[\d.e+-]+ +[\d.]+", text)) == 2
    assert len(re.findall(r"1 x 64 +float(?:32|64) +transform ", text)) == 2


def test_a_wrong_result_is_not_timed(monkeypatch):
    class Wrong(scaler.FastScaler):
        def transform(self, X, copy=None):
            return super().transform(X, copy) + 0.1

    monkeypatch.setattr(scaler, "FastScaler", Wrong)
    with pytest.raises(Disagreement):
        scaler.measured(scaler.OPERATIONS["transform"], scaler.data((50, 3), np.float32), 0.01)
