"""The page: sections become HTML by Jinja2's template templates/page.html, in one file with its CSS and its pictures."""
import datetime
import itertools
import platform
import sys
from string import Formatter

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import fastbn
from fastbn.explain.section import Number, Picture, Text
from fastbn.explain.svg import to_svg


class Page:
    """Collects sections, and numbers them and their pictures. `render` gives the page."""

    def __init__(self):
        self._sections, self._names = [], set()
        self._figures, self._tables = itertools.count(1), itertools.count(1)

    def add(self, anchor, section):
        """anchor: the section's id on the page. Raises ValueError where a number's name is taken."""
        blocks = [self._block(block) for block in section.blocks]
        self._sections.append({"anchor": anchor, "title": section.title, "blocks": blocks})

    def render(self, settings, seconds, command):
        """The HTML. seconds: what the run took; command: how to make the page again."""
        environment = Environment(loader=PackageLoader("fastbn.explain"), autoescape=True, undefined=StrictUndefined,
                                  trim_blocks=True, lstrip_blocks=True)
        made = datetime.datetime.now().astimezone().replace(microsecond=0)
        return environment.get_template("page.html").render(
            sections=self._sections, made=made, seconds=seconds, command=command, facts=facts(settings))

    def _block(self, block):
        if isinstance(block, Text):
            return self._text(block)
        return self._picture(block) if isinstance(block, Picture) else self._table(block)

    def _text(self, text):
        """A paragraph with measured numbers is measured as a whole, since its words may depend on them."""
        pieces = []
        for literal, name, _, _ in Formatter().parse(text.text):
            pieces.append(literal)
            if name is not None:
                pieces.append(self._number(name, text.numbers[name]))
        measured = any(number.measured for number in text.numbers.values())
        return {"kind": "text", "pieces": with_code(pieces), "measured": measured}

    def _picture(self, picture):
        number = next(self._figures)
        svg = to_svg(picture.figure, f"f{number}", f"Figure {number}", picture.alt)
        return {"kind": "picture", "number": number, "svg": Markup(svg), "caption": with_code([picture.caption]),
                "code": picture.code.strip("\n"), "measured": picture.measured}

    def _table(self, table):
        rows = [[self._cell(cell, table.names.get((row, column))) for column, cell in enumerate(cells)]
                for row, cells in enumerate(table.rows)]
        return {"kind": "table", "number": next(self._tables), "caption": with_code([table.caption]),
                "columns": [with_code([column]) for column in table.columns], "rows": rows}

    def _cell(self, cell, name):
        number = isinstance(cell, Number)
        return {"number": number, "pieces": with_code([self._number(name, cell) if number else str(cell)])}

    def _number(self, name, number):
        if name in self._names:
            raise ValueError(f"the name {name!r} of a number is on the page already")
        if name is not None:
            self._names.add(name)
        return {"kind": "number", "name": name, "value": exact(number.value), "text": str(number),
                "measured": number.measured}


def with_code(pieces):
    """Strings and numbers as pieces for the template: what stands between backquotes in the strings is code."""
    result, code = [], False
    for piece in pieces:
        if not isinstance(piece, str):
            result.append(piece)
            continue
        for index, part in enumerate(piece.split("`")):
            code = code ^ (index > 0)
            if part:
                result.append({"kind": "code" if code else "words", "text": part})
    return result


def exact(value):
    """A number in so many digits that it comes back as it was."""
    return str(int(value)) if isinstance(value, (int, np.integer)) else repr(float(value))


def facts(settings):
    """(name, value) of what the page's numbers depend on."""
    config = fastbn.get_config()
    return [
        ("fastbn", config["version"]),
        ("Python, NumPy", f"{config['python']}, {config['numpy']}"),
        ("Processor", processor()),
        ("Instruction set", config["isa_active"]),
        ("Threads", f"up to {config['num_threads']}"),
        ("Seed", f"{settings.seed}{', the quick run: fewer steps and repetitions' if settings.quick else ''}"),
    ]


def processor():
    """Its name as the system gives it, or else its kind."""
    if sys.platform == "linux":
        try:
            with open("/proc/cpuinfo", encoding="utf-8") as lines:
                names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
        except OSError:
            names = []
        if names:
            return names[0]
    return platform.processor() or platform.machine()
