"""Figures as SVG for a page: what is taken from matplotlib's, what is changed, and that nothing is lost."""
import re
from xml.etree import ElementTree

import numpy as np
import pytest

import explained  # first: these tests are skipped where packages are missing

from matplotlib.figure import Figure

from fastbn.explain import style, svg

pytestmark = pytest.mark.full


@style.styled
def figure_of_everything(alpha=0.5):
    """A cloud, a line with markers, a legend, a logarithmic axis, an image with its bar, and words in need of escapes."""
    figure, (left, right) = style.new_figure(1, 2)
    x = np.linspace(0.1234567, 3.7654321, 50)
    left.scatter(x, x**2, color=style.BLUE, alpha=alpha, s=9, linewidths=0)
    left.plot(x[::9], x[::9], color=style.ORANGE, marker="o", label="a < b & c")
    left.set(yscale="log", xlabel="time (s)", ylabel="-1 °C")
    left.legend(facecolor=style.GROUND, frameon=True)
    figure.colorbar(right.imshow(np.arange(6.0).reshape(2, 3), interpolation="nearest"))
    return figure


def convert(prefix="f1", **settings):
    return svg.to_svg(figure_of_everything(**settings), prefix, "Figure 1", "What is seen & more.")


def test_the_same_figure_gives_the_same_bytes():
    assert convert() == convert()
    assert convert() != convert(alpha=0.4)


def test_it_is_xml_and_html_alike():
    text = convert()
    ElementTree.fromstring(text)
    assert explained.parse(text).tag == "svg"
    assert not re.search(r"<\?|<!|xmlns|xlink|metadata|<style|\bdate\b", text)


def test_references_are_kept_and_no_two_pictures_meet():
    first, second = (explained.parse(convert(prefix)) for prefix in ("f1", "f2"))
    ids, others = ({element.get("id") for element in root.iter() if "id" in element.attrib} for root in (first, second))
    assert explained.references(first) == ids and ids.isdisjoint(others)
    assert all(name.startswith("f1-") for name in ids)
    assert {element.tag for element in first.iter() if "id" in element.attrib} >= {"path", "clippath", "title", "desc"}


def test_the_words_and_the_size():
    root = explained.parse(convert())
    assert root.find("title").text == "Figure 1" and root.find("desc").text == "What is seen & more."
    assert list(root)[0].tag == "title"
    width = style.WIDTH * 72
    assert [float(part) for part in root.get("viewbox").split()] == pytest.approx([0, 0, width, 3.2 * 72])
    assert root.get("style") == f"max-width:{width * 4 / 3:.0f}px"  # 96 pixels an inch in CSS
    assert "width" not in root.attrib and "height" not in root.attrib


def test_colours_and_fonts_are_the_pages():
    text = convert()
    for stand_in, variable in svg.VARIABLES.items():
        assert stand_in not in text.lower()
        if stand_in != style.GREEN:  # not drawn with
            assert variable in text
    fonts = re.findall(r"font(?:-family)?:([^;\"]*)", text)
    assert fonts and all(value.endswith("var(--font)") for value in fonts)
    assert "DejaVu" not in text


def test_text_stays_text():
    words = [explained.text_of(element) for element in explained.parse(convert()).iter("text")]
    assert {"a < b & c", "time (s)", "-1 °C"} <= set(words)


def test_the_image_is_embedded():
    [image, *_] = explained.parse(convert()).iter("image")
    assert image.get("href").startswith("data:image/png;base64,")


def test_every_point_is_where_it_was():
    """To half a hundredth of a point: the cloud as matplotlib writes it, beside ours."""
    def points(root):
        found = [element for element in root.iter() if element.tag.endswith("use")]
        return np.array([[float(element.get(name)) for name in "xy"] for element in found])

    plain = svg._tree_of(figure_of_everything())
    ours = explained.parse(convert())
    assert points(plain).shape[0] > 50
    np.testing.assert_allclose(points(ours), points(plain), rtol=0, atol=0.00501)


@pytest.mark.parametrize("before, after", [
    ("M 1.23456 -0.001 L 2.5 7", "M 1.23 0 L 2.5 7"), ("M 1.2345e-07 3.14159", "M 1.2345e-07 3.14"),
    ("M 12345.678 1.005", "M 12345.678 1"), ("M 0 1\nL 2 3", "M 0 1 L 2 3")])
def test_two_decimals(before, after):
    element = ElementTree.Element("path", d=before)
    svg._shorten(element)
    assert element.get("d") == after


@pytest.mark.parametrize("before, after", [
    ("rotate(-0 38.048114 210.997416)", None), ("rotate(-90 38.048114 210.997416)", "rotate(-90 38.05 211)"),
    ("translate(3.00024 192.481547)", "translate(3 192.48)"), ("scale(0.015625)", "scale(0.015625)"),
    ("translate(1.23456 2) scale(0.015625)", "translate(1.23456 2) scale(0.015625)"),
    ("rotate(-0.5 1 2)", "rotate(-0.5 1 2)")])
def test_transformations(before, after):
    element = ElementTree.Element("g", transform=before)
    svg._shorten(element)
    assert element.get("transform") == after


def test_a_style_is_shared_where_all_children_have_it_and_inherit_it():
    group = ElementTree.fromstring('<g><use style="fill:red"/><use style="fill:red"/></g>')
    svg._share_styles(group)
    assert ElementTree.tostring(group, encoding="unicode") == '<g style="fill:red"><use /><use /></g>'
    for kept in ('<g><a style="fill:red" /><a style="fill:blue" /></g>',
                 '<g><a style="opacity:1" /><a style="opacity:1" /></g>',
                 '<g><a style="fill:red" /><a /></g>',
                 '<g style="stroke:red"><a style="fill:red" /><a style="fill:red" /></g>'):
        group = ElementTree.fromstring(kept)
        svg._share_styles(group)
        assert ElementTree.tostring(group, encoding="unicode") == kept


def test_the_figure_may_be_anyones():
    """Without the package's style, and with a font shorthand as matplotlib writes it for italics."""
    figure = Figure(figsize=(2, 1))
    figure.text(0.1, 0.5, "slanted", style="italic", fontsize=9)
    text = svg.to_svg(figure, "x", "t", "d")
    assert "italic" in text and "DejaVu" not in text and "var(--font)" in text
