"""Batch norm explained by pictures, every one of them from a live run: ``python -m fastbn explain`` writes them as a page.

The modules of the page's sections can be used alone: under each picture of the page stand the lines that made it.
fastbn/demo/README.md describes the command, and has such lines for an example.
"""
