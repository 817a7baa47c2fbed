"""Pages of `python -m fastbn explain` for tests: made once for each seed, and parsed.

Modules that import this skip themselves where a package of the extra "demo" is missing.
"""
import functools
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

for package in ("sklearn", "matplotlib", "rich", "threadpoolctl", "jinja2"):
    pytest.importorskip(package, reason="the report's packages are not installed: the extra 'demo' has them")

from fastbn.explain import main  # noqa: E402
from fastbn.explain.section import Settings  # noqa: E402

FIRST_TWO = ("standardizing", "descent")
VOID = ("meta", "link", "br", "img", "hr", "input")
REFERENCE = re.compile(r"url\(#([^)]+)\)")


@functools.cache
def page(seed=0, names=FIRST_TWO):
    """The HTML of a quick page of these sections."""
    return main.make_page(Settings(seed=seed, quick=True), sections={name: main.SECTIONS[name] for name in names})[0]


def whole_page(seed=0):
    """The HTML of a quick page of all sections."""
    return page(seed, tuple(main.SECTIONS))


class _Builder(HTMLParser):
    """A tree; every element has to be closed, in order."""

    def __init__(self):
        super().__init__()
        self.tree, self.open = ElementTree.TreeBuilder(), []

    def handle_starttag(self, tag, attributes):
        self.tree.start(tag, {name: value or "" for name, value in attributes})
        if tag in VOID:
            self.tree.end(tag)
        else:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tree.start(tag, dict(attributes))
        self.tree.end(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.tree.end(tag)

    def handle_data(self, data):
        if self.open:
            self.tree.data(data)


def parse(html):
    """The <html> element. Names of tags and attributes are in small letters."""
    builder = _Builder()
    builder.feed(html)
    builder.close()
    assert not builder.open
    return builder.tree.close()


def text_of(element):
    return "".join(element.itertext())


def with_class(root, name):
    return [element for element in root.iter() if name in element.get("class", "").split()]


def numbers(root):
    """The values of the page's named numbers."""
    return {element.get("id"): float(element.get("value")) for element in root.iter("data") if "id" in element.attrib}


def code_of(figure):
    return text_of(figure.find("pre/code"))


def blanked(html):
    """The page without what may differ from run to run: times, and what is marked as measured."""
    root = parse(html)
    for element in [*root.iter("time"), *with_class(root, "measured")]:
        tail, kind = element.tail, element.get("class")
        element.clear()
        element.tail = tail
        element.set("class", kind or "")
    return ElementTree.tostring(root, encoding="unicode")


def references(root):
    """The ids that elements of the page refer to."""
    found = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            found.update(REFERENCE.findall(value) if len(value) < 1000 else ())
            if name == "href" and value.startswith("#"):
                found.add(value[1:])
            if name in ("aria-labelledby", "aria-describedby"):
                found.update(value.split())
    return found
