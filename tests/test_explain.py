"""The page of `python -m fastbn explain`: what it is made of, what it promises, its command and the command's errors."""
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import explained
import fastbn
from fastbn import _cli
from fastbn.explain import command, main
from fastbn.explain.page import Page, exact, with_code
from fastbn.explain.section import Number, Picture, Section, Settings, Table, Text, run_code
from fastbn.explain.svg import to_svg

MOST_BYTES = 1_500_000
CSS = Path(main.__file__).parent / "templates" / "page.css"
pytestmark = pytest.mark.full

PICTURE = """\
from fastbn.explain import style

figure, axes = style.new_figure(height=1)
axes.plot([1, 2], [1, 2])"""

pages = pytest.mark.parametrize("names", [explained.FIRST_TWO, tuple(main.SECTIONS)], ids=["first two", "whole"])


def render(*blocks, settings=Settings()):
    page = Page()
    page.add("one", Section("A title", blocks))
    return page.render(settings, 1.5, "python -m fastbn explain")


def picture(code=PICTURE, measured=False, caption="A caption.", alt="What is seen."):
    return Picture(code=code, caption=caption, alt=alt, values=run_code(code), measured=measured)


# --- the whole --------------------------------------------------------------------------------------------------------


@pages
def test_a_page_is_one_small_file_that_asks_for_nothing(names):
    html = explained.page(names=names)
    root = explained.parse(html)
    assert html.startswith("<!doctype html>\n") and root.get("lang") == "en"
    assert len(html.encode()) < MOST_BYTES
    assert not list(root.iter("script")) and not list(root.iter("iframe"))
    for element in root.iter():
        for name, value in element.attrib.items():
            assert not name.startswith("on")
            if name in ("href", "src", "srcset", "action", "data"):
                assert value.startswith(("#", "data:")), value
    styles = "".join(explained.text_of(element) for element in root.iter("style"))
    assert "@import" not in styles and "url(" not in styles
    assert [meta.get("content") for meta in root.iter("meta") if meta.get("name") == "viewport"]


@pages
def test_ids_are_unique_and_what_is_referred_to_is_there(names):
    root = explained.parse(explained.page(names=names))
    ids = Counter(element.get("id") for element in root.iter() if "id" in element.attrib)
    assert [name for name, count in ids.items() if count > 1] == []
    assert explained.references(root) - set(ids) == set()


@pages
def test_headings_and_contents(names):
    root = explained.parse(explained.page(names=names))
    assert len(list(root.iter("h1"))) == 1
    links = [link.get("href")[1:] for link in root.find("body/nav").iter("a")]
    assert links == list(names) == [section.find("h2").get("id") for section in root.iter("section")]
    for link, section in zip(root.find("body/nav").iter("a"), root.iter("section")):
        assert explained.text_of(section.find("h2")).endswith(explained.text_of(link))


@pages
def test_every_section_has_text_and_pictures_and_every_picture_its_words_and_its_code(names):
    root = explained.parse(explained.page(names=names))
    for section in root.iter("section"):
        assert list(section.iter("p"))
    for figure in root.iter("figure"):
        svg = figure.find("div/svg")
        title, description = (svg.find(tag) for tag in ("title", "desc"))
        assert svg.get("role") == "img"
        assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert len(description.text) > 40 and re.search(r"\d", description.text)
        assert "width" not in svg.attrib and svg.get("viewbox")
        assert len(explained.text_of(figure.find("figcaption"))) > 20
        assert "figure = " in explained.code_of(figure)
    assert len(list(root.iter("figure"))) >= len(names)


@pages
def test_the_code_under_a_picture_makes_that_picture(names):
    root = explained.parse(explained.page(names=names))
    for number, figure in enumerate(root.iter("figure"), 1):
        values = run_code(explained.code_of(figure))
        if "measured" in figure.get("class", ""):
            assert values["figure"].axes
            continue
        again = to_svg(values["figure"], f"f{number}", f"Figure {number}", figure.find("div/svg/desc").text)
        assert again in explained.page(names=names)


@pages
def test_the_code_works_when_pasted_into_a_fresh_interpreter(tmp_path, names):
    blocks = [explained.code_of(figure) for figure in explained.parse(explained.page(names=names)).iter("figure")]
    script = "\n\n".join([*blocks, f"print({len(blocks)}, figure)"])
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == str(len(blocks)) and "Figure(" in done.stdout
    assert not list(tmp_path.iterdir())


@pages
def test_same_seed_same_page_and_another_seed_other_numbers(names):
    first, other = explained.page(names=names), explained.page(1, names)
    script = (f"import explained\n"
              f"print(explained.blanked(explained.page(names={names!r})), end='')")
    # Other tests of this process may have started Dask, which sets OMP_NUM_THREADS=1 for its children.
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": str(fastbn.get_num_threads())}
    again = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, capture_output=True, text=True,
                           encoding="utf-8", env=environment, timeout=300)
    assert again.returncode == 0, again.stderr
    assert again.stdout == explained.blanked(first)
    ours, theirs = (explained.numbers(explained.parse(html)) for html in (first, other))
    assert ours.keys() >= {"standardizing_mean_before_1", "descent_steps_before"}
    assert ours["standardizing_mean_before_1"] != theirs["standardizing_mean_before_1"]


def test_the_head_says_what_the_numbers_depend_on():
    head = explained.text_of(explained.parse(explained.page(seed=1)).find("body/header"))
    config = fastbn.get_config()
    for fact in (config["version"], config["python"], np.__version__, config["isa_active"],
                 f"up to {config['num_threads']}", "python -m fastbn explain --seed 1 --quick"):
        assert fact in head


def test_the_command_of_the_head_has_the_threads():
    before = fastbn.get_num_threads()
    try:
        html, _ = main.make_page(Settings(seed=7), threads=1, sections={})
    finally:
        fastbn.set_num_threads(None)
    assert "<code>python -m fastbn explain --seed 7 --threads 1</code>" in html and "up to 1<" in html
    assert fastbn.get_num_threads() == before


# --- the parts --------------------------------------------------------------------------------------------------------


def test_what_is_measured_is_marked():
    fast = {"measured": True}
    root = explained.parse(render(
        Text("{a} is fast", a=Number(3, **fast)), Text("{b} is few", b=Number(4)), picture(measured=True), picture(),
        Table("Rates.", ("what", "rate"), (("x", Number(5, "5 GB/s", **fast)), ("y", Number(6))), {(0, 1): "c"})))
    marked = [(element.tag, element.get("id")) for element in explained.with_class(root.find("body/main"), "measured")]
    assert marked == [("p", None), ("data", "a"), ("figure", None), ("data", "c")]
    assert explained.numbers(root) == {"a": 3, "b": 4, "c": 5}
    assert "5 GB/s" not in explained.blanked(render(Text("{a}", a=Number(5, "5 GB/s", **fast))))


def test_everything_is_escaped():
    words = "1 < 2 & \"3\" 'x' </p>"
    code = f"{PICTURE}\ntext = '''{words[:-6]}'''"
    html = render(Text(f"{words} `{words}`"), picture(code, caption=words, alt=words), Table(words, (words,), ((words,),)))
    root = explained.parse(html)
    assert html.count("</p>") == len(list(root.iter("p")))
    assert root.find("body/main/section/p/code").text == words == next(root.iter("desc")).text
    assert words in explained.text_of(next(root.iter("figcaption")))
    assert next(root.iter("caption")).text == words == next(root.iter("tbody")).find("tr/th").text
    assert next(root.iter("pre")).find("code").text.endswith(f"'''{words[:-6]}'''")


def test_a_name_twice_is_refused():
    with pytest.raises(ValueError, match="'steps'"):
        render(Text("{steps}", steps=Number(1)), Text("{steps}", steps=Number(2)))


def test_numbers_without_names_may_be_many():
    root = explained.parse(render(Table("Two.", ("a", "b"), (("x", Number(1)), ("y", Number(1))))))
    assert [element.get("value") for element in root.find("body/main").iter("data")] == ["1", "1"]


@pytest.mark.parametrize("value", [0.1, 1 / 3, -1e-300, 5e20, np.float32(0.1), np.float64(1 / 3), 12, np.int64(2**60),
                                   np.inf])
def test_numbers_come_back_as_they_were(value):
    assert float(exact(value)) == float(value)
    assert isinstance(value, (float, np.floating)) or int(exact(value)) == value


def test_code_between_backquotes_goes_on_over_a_number():
    number = {"kind": "number"}
    assert with_code(["a `b", number, "c` d"]) == [
        {"kind": "words", "text": "a "}, {"kind": "code", "text": "b"}, number, {"kind": "code", "text": "c"},
        {"kind": "words", "text": " d"}]


def test_the_quick_run_is_named():
    assert "quick run" in render(settings=Settings(quick=True)) and "quick run" not in render()


# --- colours ----------------------------------------------------------------------------------------------------------


def schemes():
    """The colours of the light, the dark and the printed page, by name."""
    blocks = re.findall(r":root \{(.*?)\}", CSS.read_text(encoding="utf-8"), re.DOTALL)
    return [dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block)) for block in blocks]


def luminance(colour):
    """WCAG 2.2, "relative luminance"."""
    parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055)**2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a, b):
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", schemes(), ids=["light", "dark", "print"])
def test_contrasts(scheme):
    assert scheme.keys() == schemes()[0].keys()
    for text in ("ink", "quiet", "link"):
        for ground in ("ground", "raised"):
            assert contrast(scheme[text], scheme[ground]) >= 4.5, (text, ground)
    for line in ("blue", "orange", "green", "faint"):
        assert contrast(scheme[line], scheme["ground"]) >= 3, line


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def few_sections(monkeypatch):
    """A page of one section."""
    for name in tuple(main.SECTIONS):
        if name != "standardizing":
            monkeypatch.delitem(main.SECTIONS, name)


def fail(capsys, *arguments):
    """Run a command line that must fail; its only line on stderr."""
    assert _cli.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fastbn: error: ") and captured.err.count("\n") == 1
    return captured.err


def test_the_command(capsys, tmp_path, few_sections):
    path = tmp_path / "page.html"
    path.write_text("an older one")
    assert _cli.main(["explain", "--quick", "--seed", "5", "--output", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{path}: ") and "KB" in captured.out
    assert "100 %" in captured.err
    html = path.read_text(encoding="utf-8")
    assert explained.blanked(html) == explained.blanked(explained.page(5, ("standardizing",)))
    assert list(tmp_path.iterdir()) == [path]


def test_the_demo_writes_the_report_too(capsys, tmp_path, few_sections):
    folder = tmp_path / "demo"
    path = folder / "report.html"  # in a folder that the demo makes
    line = ["demo", "--epochs", "1", "--seed", "5", "--output", str(folder), "--report", str(path)]
    assert _cli.main(line) == 0
    assert f"{path}: " in capsys.readouterr().out
    assert {found.name for found in folder.iterdir()} == {"curves.png", "report.html"}
    assert "python -m fastbn explain --seed 5<" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["explain --output", "demo --epochs 1 --output {} --report"])
def test_paths_that_cannot_be_written_are_refused_at_once(capsys, tmp_path, monkeypatch, name):
    monkeypatch.setattr(main, "make_page", None)  # nothing may be computed
    words = [word.format(tmp_path) for word in name.split()]
    assert f"argument {words[-1]}: {str(tmp_path)!r} is a folder" in fail(capsys, *words, tmp_path)
    assert "No such file" in fail(capsys, *words, tmp_path / "missing" / "x.html")
    (tmp_path / "file").write_text("")
    assert words[-1] in fail(capsys, *words, tmp_path / "file" / "x.html")
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_device_or_pipe_is_not_replaced(capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "no ordinary file" in fail(capsys, "explain", "--output", tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_that_goes_away_during_the_run(capsys, tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.setattr(main, "make_page", lambda *_: folder.rmdir() or ("page", 1.0))
    assert "cannot write" in fail(capsys, "explain", "--output", folder / "x.html")


def test_help_names_the_flags(capsys):
    for name, flags in (("explain", ("--output", "--seed", "--quick", "--threads")), ("demo", ("--report",))):
        with pytest.raises(SystemExit) as stop:
            _cli.main([name, "--help"])
        shown = capsys.readouterr().out
        assert stop.value.code == 0 and all(flag in shown for flag in flags)
    with pytest.raises(SystemExit):
        _cli.main(["parallel", "--report", "x.html"])
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["explain --seed=-1", "explain --threads 0", "explain --seed x"])
def test_bad_flags(capsys, line):
    with pytest.raises(SystemExit) as stop:
        _cli.main(line.split())
    assert stop.value.code == 2
    assert line.split()[1].partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("line", [["explain"], ["demo", "--report", "x.html"]], ids=" ".join)
@pytest.mark.parametrize("name, distribution", command.REQUIRED.items())
def test_a_missing_package_of_the_extra(tmp_path, line, name, distribution):
    code = f"import sys; sys.modules[{name!r}] = None; from fastbn._cli import main; sys.exit(main({line!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("fastbn: error: ") and done.stderr.count("\n") == 1
    assert distribution in done.stderr and "pip install 'fastbn[demo]'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_command_line_imports_nothing_of_the_extra(tmp_path):
    code = ("import sys, fastbn._cli; fastbn._cli.build_parser(); "
            f"print([name for name in {list(command.REQUIRED)} if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_an_interrupt_leaves_the_older_page(capsys, tmp_path, monkeypatch, few_sections):
    from fastbn.explain import standardizing

    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(standardizing, "make", interrupted)
    path = tmp_path / "page.html"
    path.write_text("an older one")
    assert _cli.main(["explain", "--output", str(path)]) == 130
    assert capsys.readouterr().err.endswith("fastbn: interrupted\n")
    assert path.read_text() == "an older one" and list(tmp_path.iterdir()) == [path]


def test_an_interrupted_demo_writes_no_report(tmp_path, monkeypatch):
    from fastbn.demo import main as demo

    monkeypatch.setattr(demo, "run_demo", lambda settings: _cli.INTERRUPTED)
    assert _cli.main(["demo", "--output", str(tmp_path), "--report", str(tmp_path / "x.html")]) == 130
    assert not list(tmp_path.iterdir())


SLEEPING = textwrap.dedent("""
    import sys, time, types
    from fastbn import _cli
    from fastbn.explain import main

    def make(settings):
        print("started", flush=True)
        time.sleep(60)

    sys.modules["fastbn.explain.sleeping"] = types.SimpleNamespace(make=make)
    main.SECTIONS.clear()
    main.SECTIONS["sleeping"] = (1, 1)
    sys.exit(_cli.main(["explain", "--output", "page.html"]))
    """)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_the_older_page(tmp_path, number, status):
    path = tmp_path / "page.html"
    path.write_text("an older one")
    with subprocess.Popen([sys.executable, "-c", SLEEPING], cwd=tmp_path, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(number)
        _, complaints = process.communicate(timeout=30)
    assert process.returncode == status
    assert "Traceback" not in complaints
    assert path.read_text() == "an older one" and list(tmp_path.iterdir()) == [path]


def test_a_section_is_found_by_its_name(monkeypatch):
    """What main.SECTIONS names is a module with make(settings)."""
    seen = []
    module = SimpleNamespace(make=lambda settings: seen.append(settings) or Section("Mine", (Text("Words."),)))
    monkeypatch.setitem(sys.modules, "fastbn.explain.mine", module)
    html, seconds = main.make_page(Settings(seed=2), sections={"mine": (1, 1)})
    assert seen == [Settings(seed=2)] and seconds >= 0
    assert 'id="mine"><span>1</span> Mine</h2>' in html
