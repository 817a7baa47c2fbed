"""The report in a real browser, headless Chromium: nothing overflows, every picture is seen, no complaint on the console.

Needs selenium, and Debian's packages chromium and chromium-driver; nothing is downloaded.
"""
import base64
import io
import shutil

import numpy as np
import pytest

import explained

pytest.importorskip("selenium", reason="selenium is not installed")

from matplotlib.image import imread  # noqa: E402
from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
HEIGHT = 844  # of the window, in CSS pixels
LEAST_TEXT = 9  # CSS pixels: the smallest letters of a picture; on a phone pictures scroll rather than shrink further

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="chromium or chromedriver is not installed"),
]
widths = pytest.mark.parametrize("width", [390, 1280])
schemes = pytest.mark.parametrize("scheme", ["light", "dark"])


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of the whole page."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(explained.whole_page(), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def show(browser, address, width, scheme="light", media=""):
    """Opens the page as on a screen of that width; narrower ones than a window can be are emulated."""
    metrics = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [feature]})
    browser.get(address)
    assert browser.execute_script("return innerWidth") == width


def boxes(browser, selector):
    """(left, top, width, height) of the elements on the page, in CSS pixels."""
    return np.array(browser.execute_script("""
        return [...document.querySelectorAll(arguments[0])].map(element => {
            const box = element.getBoundingClientRect();
            return [box.left + scrollX, box.top + scrollY, box.width, box.height];
        })""", selector))


def screenshot(browser, box):
    """The pixels of a part of the page, (height, width, 4), from 0 to 1."""
    clip = dict(zip(("x", "y", "width", "height"), map(float, box)), scale=1)
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip})
    return imread(io.BytesIO(base64.b64decode(taken["data"])))


@widths
@schemes
def test_the_console_is_silent(browser, address, width, scheme):
    show(browser, address, width, scheme)
    assert browser.get_log("browser") == []


@widths
def test_nothing_overflows(browser, address, width):
    show(browser, address, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    outside = browser.execute_script("""
        const scrolls = element => element.closest("pre, .scroll");
        return [...document.querySelectorAll("body *")].filter(element => {
            const box = element.getBoundingClientRect();
            return box.width > 0 && !scrolls(element) && !element.closest("svg *") &&
                   (box.left < -0.5 || box.right > innerWidth + 0.5);
        }).map(element => element.outerHTML.slice(0, 200))""")
    assert outside == []


@widths
def test_text_in_a_picture_stays_in_it(browser, address, width):
    """In whatever font this machine has. Half a letter over the edge is no harm: pictures have a margin around them."""
    show(browser, address, width)
    outside = browser.execute_script("""
        const found = [];
        for (const svg of document.querySelectorAll("figure svg")) {
            const whole = svg.getBoundingClientRect(), slack = 0.012 * whole.width;
            for (const text of svg.querySelectorAll("text")) {
                const box = text.getBoundingClientRect();
                if (box.left < whole.left - slack || box.right > whole.right + slack ||
                    box.top < whole.top - slack || box.bottom > whole.bottom + slack) found.push(text.textContent);
            }
        }
        return found""")
    assert outside == []


@widths
@schemes
def test_every_picture_is_seen(browser, address, width, scheme):
    """It fills the column, and shows lines in more than one colour besides the ground's."""
    show(browser, address, width, scheme)
    pictures = boxes(browser, "figure svg")
    assert len(pictures) == browser.execute_script("return document.querySelectorAll('figure').length") > 0
    for box in pictures:
        assert box[2] >= min(width - 30, 400) and box[3] >= 100
        pixels = screenshot(browser, box)[..., :3]
        ground = pixels[0, 0]
        drawn = np.abs(pixels - ground).max(-1) > 0.25
        assert 0.002 < drawn.mean() < 0.95
        assert len(np.unique((pixels[drawn] * 8).astype(int), axis=0)) > 3
        assert (ground.mean() < 0.3) == (scheme == "dark")


@widths
def test_letters_in_pictures_are_not_too_small(browser, address, width):
    show(browser, address, width)
    sizes = browser.execute_script("""
        return [...document.querySelectorAll("svg text, svg tspan")].filter(text => !text.querySelector("tspan")).map(
            text => parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getScreenCTM().a)""")
    assert min(sizes) >= LEAST_TEXT


def test_code_and_tables_scroll_within_themselves(browser, address):
    show(browser, address, 390)
    overflowing = browser.execute_script("""
        return [...document.querySelectorAll("pre, .scroll")].map(element => [
            element.scrollWidth > element.clientWidth, getComputedStyle(element).overflowX, element.tabIndex])""")
    assert any(scrolls for scrolls, _, _ in overflowing)
    assert all(overflow == "auto" and index == 0 for _, overflow, index in overflowing)


def test_no_line_of_code_is_cut_off_on_a_wide_screen(browser, address):
    show(browser, address, 1280)
    cut = browser.execute_script("""
        return [...document.querySelectorAll("pre")].filter(box => box.scrollWidth > box.clientWidth)
            .map(box => box.textContent)""")
    assert cut == []


def test_contents_lead_to_the_sections(browser, address):
    show(browser, address, 1280)
    for link in browser.find_elements("css selector", "nav a"):
        browser.execute_script("arguments[0].click()", link)
        top = browser.execute_script("return document.querySelector(':target').getBoundingClientRect().top")
        assert -1 <= top < HEIGHT


def test_focus_is_seen(browser, address):
    show(browser, address, 1280)
    browser.find_element("css selector", "body").send_keys("\ue004")  # the key Tab
    assert browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert browser.execute_script("return document.activeElement.tagName") == "A"


@schemes
def test_print_is_light_and_whole(browser, address, scheme):
    """Also for readers of the dark scheme: black on white, code wrapped, pictures not cut."""
    show(browser, address, 700, scheme, media="print")
    colours = browser.execute_script("""
        const style = getComputedStyle(document.body);
        return [style.color, style.backgroundColor]""")
    assert colours == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert browser.execute_script("""
        return [...document.querySelectorAll("pre")].every(element => element.scrollWidth <= element.clientWidth + 1)""")
    breaks = browser.execute_script("""
        return [...document.querySelectorAll("figure")].map(element => getComputedStyle(element).breakInside)""")
    assert set(breaks) == {"avoid"}
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")


def test_the_words_of_a_picture_are_its_accessible_name(browser, address):
    show(browser, address, 1280)
    for svg in browser.find_elements("css selector", "figure svg"):
        assert svg.aria_role in ("image", "img")
        assert len(svg.accessible_name) > 50
