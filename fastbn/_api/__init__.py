"""The public functions, one file each: inference.py, training.py, backward.py, double_backward.py, moments.py.

The core takes plain arrays as they are, since checks would be most of a small call's time (_binding/plain_calls.pxi). Where it
answers None, the engine converts, checks and explains.
"""
