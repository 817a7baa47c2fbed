"""What the tests of the page's sections share: a section's numbers by name, its words, and its lines run alone."""
import json
import subprocess
import sys

from fastbn.explain.section import Number, Picture, Table, Text

ALONE = "import json\nprint(json.dumps({expression}))"


def pictures_of(section):
    return [block for block in section.blocks if isinstance(block, Picture)]


def numbers_of(section):
    """{name: value} of all named numbers; a name that is used twice, or without the section's prefix, is an error."""
    found = []
    for block in section.blocks:
        if isinstance(block, Text):
            found += block.numbers.items()
        elif isinstance(block, Table):
            found += [(name, block.rows[row][column]) for (row, column), name in block.names.items()]
    assert all(isinstance(number, Number) for _, number in found)
    assert len({name for name, _ in found}) == len(found), "two numbers have one name"
    return {name: number.value for name, number in found}


def text_of(section):
    """All that the section says, as it is shown."""
    parts = [section.title]
    for block in section.blocks:
        if isinstance(block, Text):
            parts.append(block.text.format(**block.numbers))
        elif isinstance(block, Table):
            parts += [block.caption, *block.columns, *(str(cell) for row in block.rows for cell in row)]
        else:
            parts += [block.code, block.caption, block.alt]
    return "\n".join(parts)


def run_in_fresh_process(code, expression):
    """The value of an expression, through JSON, after a new interpreter has run the code."""
    source = f"{code}\n{ALONE.format(expression=expression)}"
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
