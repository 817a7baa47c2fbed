"""A matplotlib figure as SVG to stand in an HTML page: small, described, in the page's own colours and font.

Text stays text: it can be found, copied and enlarged, takes a tenth of the bytes of its outlines, and is set in the page's
font. What matplotlib writes is parsed, and changed as a tree: names get a prefix, so that several pictures on a page
do not meet; colours of `style` become CSS variables; sizes go, so that the page decides; coordinates keep two
decimals, a hundredth of a point. The same figure gives the same bytes.
"""
import io
import re
import xml.etree.ElementTree as ElementTree

from matplotlib import rc_context

from fastbn.explain.style import BLUE, FAINT, GREEN, GROUND, INK, ORANGE

VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", GROUND: "var(--ground)",
             BLUE: "var(--blue)", ORANGE: "var(--orange)", GREEN: "var(--green)"}  # these three are lighter in the dark
FONT = "var(--font)"
PIXELS_PER_POINT = 4 / 3

_RC = {"svg.fonttype": "none", "svg.hashsalt": "fastbn", "path.simplify": True}
_DROPPED = ("metadata", "style")  # the latter is in the page's CSS: it would hold for the whole page
_COORDINATES = ("d", "x", "y", "width", "height", "points")
_INHERITED = ("fill", "stroke", "font", "text-anchor")
_NUMBER = re.compile(r"-?\d+\.\d+(?![\de])")  # not of a number like 1.5e-07
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT_SIZE = re.compile(r"^(.*?[\d.]+px)\s.*$")
_NO_ROTATION = re.compile(r"^rotate\(-?0(\.0+)?[ )]")


def to_svg(figure, prefix, title, description):
    """The figure as an <svg> element that stands in HTML.

    prefix: of every id in it, unlike that of the page's other pictures.
    title, description: its name, and what is to be seen, for who cannot see it.
    """
    root = _tree_of(figure)
    _drop_unused(root)
    used = _references(root)
    for element in root.iter():
        _rename(element, prefix, used)
        _shorten(element)
        if "style" in element.attrib:
            element.set("style", _styled(element.get("style")))
    _share_styles(root)
    _describe(root, prefix, title, description)
    return ElementTree.tostring(root, encoding="unicode")


def _tree_of(figure):
    """What matplotlib draws, as a tree without name spaces, which HTML has no need of."""
    buffer = io.BytesIO()
    with rc_context(_RC):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.text, element.tail = (text if text and text.strip() else None for text in (element.text, element.tail))
    return root


def _drop_unused(element):
    """Takes out the elements that a page has no need of, and then those that nothing is left in."""
    for child in list(element):
        _drop_unused(child)
        if child.tag in _DROPPED or (child.tag in ("g", "defs") and len(child) == 0):
            element.remove(child)


def _references(root):
    """The ids that something refers to."""
    values = [value for element in root.iter() for value in element.attrib.values() if len(value) < 1000]
    inside = {name for value in values for name in _REFERENCE.findall(value)}
    return inside | {value[1:] for value in values if value.startswith("#")}


def _rename(element, prefix, used):
    """Ids that are referred to get the prefix, there and where they are referred to; the others go."""
    name = element.attrib.pop("id", None)
    if name in used:
        element.set("id", f"{prefix}-{name}")
    for key, value in element.attrib.items():
        if key == "href" and value.startswith("#"):
            element.set(key, f"#{prefix}-{value[1:]}")
        elif "url(#" in value:
            element.set(key, _REFERENCE.sub(rf"url(#{prefix}-\1)", value))


def _shorten(element):
    """Two decimals where they are positions, and no line breaks in paths."""
    for key in _COORDINATES:
        if key in element.attrib:
            element.set(key, _NUMBER.sub(_rounded, " ".join(element.get(key).split())))
    transform = element.get("transform", "")
    if _NO_ROTATION.match(transform) and transform.count("(") == 1:
        del element.attrib["transform"]
    elif transform.startswith(("translate", "rotate")) and transform.count("(") == 1:
        element.set("transform", _NUMBER.sub(_rounded, transform))


def _rounded(match):
    return f"{round(float(match[0]), 2) + 0.0:g}" if abs(float(match[0])) < 1e4 else match[0]


def _styled(style):
    """The declarations of a style attribute, in the page's colours and font."""
    declarations = [part.partition(":")[::2] for part in style.split(";") if part.strip()]
    return ";".join(f"{name.strip()}:{_value(name.strip(), value.strip())}" for name, value in declarations)


def _value(name, value):
    if name == "font-family":
        return FONT
    if name == "font":
        return _FONT_SIZE.sub(rf"\1 {FONT}", value)
    return VARIABLES.get(value.lower(), value)


def _share_styles(element):
    """A style that all children of a group have, and that children inherit, moves to the group, as of a cloud of points."""
    for child in element:
        _share_styles(child)
    styles = {child.get("style") for child in element}
    if element.tag == "g" and len(element) > 1 and len(styles) == 1 and "style" not in element.attrib:
        [style] = styles
        if style and all(part.startswith(_INHERITED) for part in style.split(";")):
            element.set("style", style)
            for child in element:
                del child.attrib["style"]


def _describe(root, prefix, title, description):
    """The page's width instead of one of its own, and the words in place of the picture."""
    width = float(root.get("width").removesuffix("pt")) * PIXELS_PER_POINT
    named = f"{prefix}-title", f"{prefix}-desc"
    root.attrib = {"viewBox": root.get("viewBox"), "role": "img", "aria-labelledby": " ".join(named),
                   "style": f"max-width:{width:.0f}px"}
    for index, (tag, name, text) in enumerate(zip(("title", "desc"), named, (title, description))):
        element = ElementTree.Element(tag, id=name)
        element.text = text
        root.insert(index, element)
