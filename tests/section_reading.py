"""What tests of a section of the page look for in it."""
from fastbn.explain.section import Picture, Table, Text


def numbers(section):
    """{name: Number} of all texts and tables; an AssertionError where a name is used twice."""
    found = {}
    for block in section.blocks:
        named = {}
        if isinstance(block, Text):
            named = block.numbers
        elif isinstance(block, Table):
            named = {name: block.rows[row][column] for (row, column), name in block.names.items()}
        assert not named.keys() & found.keys()
        found.update(named)
    return found


def pictures(section):
    return [block for block in section.blocks if isinstance(block, Picture)]


def prose(section):
    """Its paragraphs as a reader sees them."""
    return [block.text.format(**block.numbers) for block in section.blocks if isinstance(block, Text)]


def unmeasured(section):
    """{name: value} of what the same settings have to repeat."""
    return {name: number.value for name, number in numbers(section).items() if not number.measured}


def assert_complete(section, prefix):
    """Names begin with the section's, nothing is NaN, pictures have text, code of 3 to 8 lines that are not too long for it."""
    found = numbers(section)
    assert found and all(name.startswith(prefix) for name in found)
    assert all(number.value == number.value and str(number) for number in found.values())
    assert pictures(section)
    for picture in pictures(section):
        assert picture.caption and picture.alt.endswith(".")
        lines = [line for line in picture.code.splitlines() if line]
        assert 3 <= len(lines) <= 8 and max(map(len, lines)) <= 125
        assert picture.figure.axes and all(axes.get_ylabel() or axes.get_title("left") for axes in picture.figure.axes)
