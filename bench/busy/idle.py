"""The processor time that this process uses while it does nothing, after a call with several threads."""
import statistics
import time

import numpy as np

import fastbn

GAP_SECONDS = 0.02
SHAPE = (1024, 2048)  # large enough to wake the threads


def milliseconds(rounds=50):
    """(median, largest) processor time used in a gap of GAP_SECONDS, in milliseconds."""
    bn, x = fastbn.BatchNorm(SHAPE[1]).eval(), np.ones(SHAPE, np.float32)
    out, used = np.empty_like(x), []
    for _ in range(rounds):
        for _ in range(3):
            bn(x, out=out)
        before = time.process_time()
        time.sleep(GAP_SECONDS)
        used.append(1e3 * (time.process_time() - before))
    return statistics.median(used), max(used)
