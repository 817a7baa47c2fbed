"""What every section of the page has to have, and what of it the same settings repeat."""
from explain_checks import numbers_of, pictures_of
from fastbn.explain.section import Table, Text


def unmeasured(section):
    """[(name, value)] of the numbers that are no times, and with them the texts' wording and what pictures say."""
    found = []
    for block in section.blocks:
        numbers = {}
        if isinstance(block, Text):
            numbers = block.numbers
            found.append(block.text)
        elif isinstance(block, Table):
            numbers = {name: block.rows[row][column] for (row, column), name in block.names.items()}
        elif not block.measured:
            found += [block.caption, block.alt]
        found += [(name, number.value) for name, number in numbers.items() if not number.measured]
    return found


def assert_complete(section, prefix):
    """Names begin with the section's, no number is NaN, and pictures have a caption, axes that tell, and 3 to 8 lines."""
    found = numbers_of(section)
    assert found and all(name.startswith(prefix) for name in found)
    assert all(value == value for value in found.values())
    assert pictures_of(section)
    for picture in pictures_of(section):
        assert picture.caption.endswith(".") and picture.alt.endswith(".")
        lines = [line for line in picture.code.splitlines() if line]
        assert 3 <= len(lines) <= 8 and max(map(len, lines)) <= 90
        assert picture.figure.axes and all(axes.get_ylabel() or axes.get_title("left") for axes in picture.figure.axes)
