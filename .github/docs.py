"""Builds the reference as HTML pages, from docstrings and the documents beside the code.

    pip install -e '.[docs]' && python .github/docs.py FOLDER

A package's page begins with its README, the first page with the user guide. Links between documents become links between
pages; those to files that have no page become their words.
"""
import argparse
import importlib
import os
import re
import warnings
from pathlib import Path

import pdoc

PACKAGE = Path(__file__).resolve().parents[1] / "fastbn"
# Adapters are pages where their frameworks are installed.
ADAPTERS = sorted(path.stem for path in PACKAGE.glob("interop/[a-z]*.py"))
DOCUMENTS = {"fastbn": "GUIDE.md", "fastbn.convert": "convert/README.md", "fastbn.distributed": "distributed/README.md",
             "fastbn.interop": "interop/README.md", "fastbn.sklearn": "sklearn/README.md",
             "fastbn.standardize": "standardize/README.md"}
PAGES = {(PACKAGE / path).resolve(): name for name, path in DOCUMENTS.items()}


def page_of(name):
    return name.replace(".", "/") + ".html"


def with_links_to_pages(text, document, name):
    """The text with its links changed for the page of module `name`."""
    def moved(found):
        picture, words, path, anchor = found.groups()
        target = PAGES.get((document.parent / path).resolve() if path else document)
        if picture or target is None:
            return "" if picture else words
        return f"[{words}]({os.path.relpath(page_of(target), Path(page_of(name)).parent)}{anchor or ''})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?:)([^)#]*)(#[^)]*)?\)", moved, text)


def importable(name):
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"no page for {name}: {error}")
        return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the pages go")
    folder = parser.parse_args().folder
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    os.environ["PDOC_ALLOW_EXEC"] = "1"  # NumPy and others look at the machine when they are imported
    names = [name for name in DOCUMENTS if importable(name)]
    for name in names:
        document = PACKAGE / DOCUMENTS[name]
        importlib.import_module(name).__doc__ = with_links_to_pages(document.read_text(encoding="utf-8"), document, name)
    left_out = [f"!{name}$" for name in map("fastbn.interop.{}".format, ADAPTERS) if not importable(name)]
    pdoc.render.configure(docformat="numpy", footer_text=f"fastbn {importlib.import_module('fastbn').__version__}")
    warnings.simplefilter("error", UserWarning)  # pdoc's own
    pdoc.pdoc(*names, "!fastbn.interop._", *left_out, output_directory=folder)
    print(f"{folder}/index.html")


if __name__ == "__main__":
    main()
