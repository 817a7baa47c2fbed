"""State and statistics beyond one call. In reading order:

layer_state.py    the state of a layer as a dict and as a file
calibration.py    running statistics from a data set
drift.py          how far a batch lies from the running statistics
streaming.py      the statistics of what is larger than memory, block by block
standardizing.py  (x - mean) / scale, block by block
mapped.py         pages of mapped files, given back once they were read
npy.py            .npy files read and written in blocks
npz.py            small .npz files, read in bounded memory
npy_header.py     the headers of both, checked before memory is taken
atomic_write.py   files that are written whole or not at all
progress.py       progress bars
"""
