"""What a section of the page is made of: paragraphs, pictures, tables, and the numbers in them.

A section is a module with ``make(settings)``, which returns a `Section`; `fastbn.explain.main.SECTIONS` lists them. What
it shows, it takes from functions of its own module, which the lines under its pictures call too. So a reader who pastes
them gets what the page has. Long computations keep their last results (functools.lru_cache), and what two
sections show is computed once.
"""
from dataclasses import dataclass, field
from string import Formatter


@dataclass(frozen=True)
class Settings:
    """What a page depends on: the same settings, the same page, but for times."""

    seed: int = 0
    quick: bool = False


@dataclass(frozen=True)
class Number:
    """A number in a text or a table: shown as `text`, and `value` in full for who reads the page by a program.

    text: with its unit, such as "12 steps"; the default is the value with 4 significant digits.
    measured: it is a time or a rate, which differs from run to run.
    """

    value: float
    text: str | None = None
    measured: bool = False

    def __str__(self):
        return f"{self.value:.4g}" if self.text is None else self.text


@dataclass(frozen=True)
class Text:
    """A paragraph. Fields in braces are numbers: Text("after {steps_before} steps", steps_before=Number(12)). Their names
    are unique on the page. `code` in backquotes is set as code.
    """

    text: str
    numbers: dict

    def __init__(self, text, **numbers):
        fields = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
        if fields != set(numbers):
            raise ValueError(f"the fields of a text are {sorted(fields)}, its numbers {sorted(numbers)}")
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "numbers", numbers)


@dataclass(frozen=True)
class Picture:
    """A figure, and the lines that made it.

    code: Python lines that work when pasted and leave a matplotlib Figure in `figure`.
    caption: a sentence under the picture.
    alt: what the picture shows, for who cannot see it: a sentence or two, with its main numbers.
    values: what the lines left behind, by name.
    """

    code: str
    caption: str
    alt: str
    values: dict = field(repr=False)
    measured: bool = False  # it shows times or rates

    @property
    def figure(self):
        return self.values["figure"]


@dataclass(frozen=True)
class Table:
    """A table: columns are the headings, rows hold strings and numbers; `Number`s that carry a name are in `names`.

    names: {(row, column): name} of those cells that a program may look for.
    """

    caption: str
    columns: tuple
    rows: tuple
    names: dict = field(default_factory=dict)


def named_table(caption, columns, rows):
    """A Table of rows in which a cell that a program may look for is a pair, (its name, its Number)."""
    names = {(row, column): cell[0] for row, cells in enumerate(rows) for column, cell in enumerate(cells)
             if isinstance(cell, tuple)}
    shown = tuple(tuple(cell[1] if isinstance(cell, tuple) else cell for cell in cells) for cells in rows)
    return Table(caption, columns, shown, names)


@dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple  # of Text, Picture, Table, in the page's order


def run_code(code):
    """Run lines as a reader would who pastes them, and return the names that they leave."""
    names = {"__name__": "__fastbn_explain__"}
    exec(compile(code, "<the lines under a picture>", "exec"), names)  # the package's own lines, none of a user's
    return names
