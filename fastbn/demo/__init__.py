"""``python -m fastbn demo``: a small network on handwritten digits, with and without batch norm.

Not imported by ``import fastbn``; needs the packages of the extra ``demo``.
"""
