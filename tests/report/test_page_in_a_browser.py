"""The page as a reader has it: on a phone and a wide screen, in the dark, by keyboard alone."""

import json
import math
import time
from pathlib import Path

import pytest

from experiments import screenshots
from tests.browser import boxes, groups, made_of, open_group, put, texts
from tests.run_folders import write_many, write_run

pytestmark = [pytest.mark.slow, pytest.mark.browser]
RESULTS = Path(__file__).parents[2] / "results"
WIDTHS = (390, 768, 1280, 1920)


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """The page of all runs that are kept in results/: groups of 4 to 70 settings."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(made_of([RESULTS], beside=str(path.parent)))
    return path


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """The page of 50 runs: ten settings of eight methods, each with five seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    path = folder / "page.html"
    path.write_text(made_of(write_many(folder / "runs", 50, rows=30)))
    return path


@pytest.mark.parametrize("width", WIDTHS)
def test_no_group_makes_the_page_scroll_sideways(browser, committed, width):
    browser.open(committed, width=width)
    for place in groups(browser):
        browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        found = browser.run("document.documentElement.scrollWidth")
        assert found <= width, f"group {place}"


def test_at_1280_pixels_accuracy_difference_bits_size_and_operations_are_in_view(
    browser, committed
):
    browser.open(committed, width=1280)
    for place in groups(browser):
        (_, _, right, _) = boxes(browser, f"div:has(> #rows-{place})")[0]
        wanted = ("difference", "bits_weights", "bits_activations", "model_bytes", "bops")
        score = "perplexity" if browser.run("document.getElementById('figure').value") == (
            "perplexity"
        ) else "accuracy"  # fmt: skip
        for key in (score, *wanted):
            (box,) = boxes(browser, f"#rows-{place} th[data-key='{key}']")
            assert 0 <= box[0] < box[2] <= right + 1, key


def test_at_390_pixels_names_leave_room_for_figures_and_text_is_large_enough(browser, committed):
    browser.open(committed, width=390)
    assert not browser.run("document.getElementById('controls').open")
    for place in groups(browser):
        (name,) = boxes(browser, f"#rows-{place} tr:first-child td:first-child")
        assert name[2] - name[0] <= 0.4 * 390
        cells = boxes(browser, f"#rows-{place} tbody tr:first-child td")
        assert sum(cell[2] <= 390 for cell in cells[1:]) >= 2, "figures in view"
        small = browser.run(
            "[...document.querySelectorAll('svg text, .map td, .map th')].filter(e => e.textContent"
            " && parseFloat(getComputedStyle(e).fontSize) * (e.ownerSVGElement"
            " ? e.ownerSVGElement.getBoundingClientRect().width"
            " / e.ownerSVGElement.viewBox.baseVal.width : 1) < 10.99).map(e => e.textContent)"
        )
        assert small == []


# The ratio of WCAG 2 of each text that is seen to what is painted behind it, where it is too low.
CONTRAST = """(() => {
  const numbers = c => (c.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const over = (a, b, s = a[3] ?? 1) => [0, 1, 2].map(i => s * a[i] + (1 - s) * b[i]);
  const light = c => { const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const known = new Map();
  const at = e => { // what is painted behind an element's text, and how much of the text is
    if (!e) return [[255, 255, 255], 1];
    if (!known.has(e)) {
      const [ground, share] = at(e.parentElement), style = getComputedStyle(e);
      known.set(e, [over(numbers(style.backgroundColor), ground), share * style.opacity]);
    }
    return known.get(e);
  };
  const low = [];
  for (const e of document.querySelectorAll('body *')) {
    const text = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join('');
    if (!text || !e.getClientRects().length || e.closest('script, style, noscript')) continue;
    const style = getComputedStyle(e), [ground, opacity] = at(e);
    const own = numbers(e.ownerSVGElement ? style.fill : style.color);
    const ink = over([...own.slice(0, 3), (own[3] ?? 1) * opacity], ground);
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push([text.slice(0, 30), (a + 0.05) / (b + 0.05)]);
  }
  return low;
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_what_is_behind_it(browser, committed, dark):
    browser.open(committed, dark=dark)
    for place in groups(browser):
        browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        for value in ("bits", "change"):
            browser.run(
                f"(() => {{ const e = document.getElementById('map-{place}-value');"
                f" e.value = '{value}'; e.dispatchEvent(new Event('change')); }})()"
            )
            assert browser.run(CONTRAST) == [], f"group {place}, map of {value}"


def test_every_control_is_reached_by_keyboard(browser, committed):
    browser.open(committed)
    browser.run("document.getElementById('columns').open = true")
    browser.run(
        "window.wanted = [...document.querySelectorAll('button, input, select, summary, a[href],"
        " .plot, #command')].filter(e => e.checkVisibility());"
        " window.reached = new Set(); document.body.focus()"
    )
    for _ in range(browser.run("window.wanted.length") + 5):
        browser.press("Tab")
        browser.run("window.reached.add(document.activeElement)")
    missed = "window.wanted.filter(e => !window.reached.has(e)).map(e => e.outerHTML.slice(0, 80))"
    assert browser.run(missed) == []
    assert browser.run("[...window.reached].some(e => e.matches('#rows-0 tbody tr'))")


def test_arrow_keys_go_along_points_and_rows_and_enter_shows_the_run(browser, committed):
    browser.open(committed)
    command = "document.getElementById('command').textContent"
    before = browser.run(command)
    browser.run("document.querySelector('.plot').focus()")
    browser.press("ArrowRight")
    assert "MBOPs" in browser.run("document.getElementById('tip').textContent")
    browser.press("Enter")
    after = browser.run(command)
    assert after != before
    assert browser.run("document.activeElement.matches('.plot')"), "the focus stays"
    assert browser.run("document.querySelectorAll('.plot .chosen').length") == 1
    browser.press("Escape")
    browser.run("document.querySelector('#rows-0 tbody tr[tabindex=\"0\"]').focus()")
    wanted = browser.run(
        "document.querySelector('#rows-0 tbody tr[tabindex=\"0\"] + tr .name').textContent"
    )
    browser.press("ArrowDown")
    browser.press("Enter")
    assert f"/{wanted}/" in browser.run(command) and f"/{wanted}/" not in after
    assert browser.run("document.activeElement.matches('#rows-0 tbody tr')"), "the focus stays"


def test_float_is_a_line_and_points_stand_apart_with_names_that_hide_nothing(browser, committed):
    browser.open(committed)
    for place in groups(browser):
        chart = f"#pareto-{place}"
        browser.run(
            f"document.querySelector('div:has(> .scroll > #rows-{place}) .more button')?.click()"
        )
        assert browser.run(f"document.querySelectorAll('{chart} .reference').length") >= 1
        rows = set(texts(browser, f"#rows-{place} td:first-child")) - {""}
        drawn = browser.run(f"document.querySelectorAll('{chart} .point').length")
        assert 0 < drawn < len(rows), "rows of float models are no points"
        points = boxes(browser, f"{chart} .point .fill")
        middles = [((a + c) / 2, (b + d) / 2) for a, b, c, d in points]
        apart = min(math.dist(p, q) for i, p in enumerate(middles) for q in middles[:i])
        assert apart > 8, "pixels"
        names = boxes(browser, f"{chart} text.name")
        assert names
        for i, (left, top, right, bottom) in enumerate(names):
            for x, y, other, below in names[:i]:
                over = min(right, other) - max(left, x), min(bottom, below) - max(top, y)
                assert min(over) < 4, "names overlap"
            assert not any(left < x < right and top + 2 < y < bottom - 2 for x, y in middles)


def test_each_method_has_a_shape_and_a_colour_of_its_own(browser, seeds):
    browser.open(seeds)
    looks = browser.run(
        "[...document.querySelectorAll('#pareto-0 .legend .mark')].map(e => [e.firstChild"
        ".getAttribute('d'), getComputedStyle(e.firstChild).fill])"
    )
    assert len(looks) == 8
    assert len({shape for shape, _ in looks}) == 8 and len({fill for _, fill in looks}) == 8
    assert browser.run("document.querySelectorAll('#pareto-0 .whisker').length") >= 7


def test_the_pointer_on_a_point_shows_its_run_and_a_click_opens_it(browser, seeds):
    browser.open(seeds)
    browser.run("document.querySelector('#pareto-0').scrollIntoView({block: 'center'})")
    left, top, right, bottom = boxes(browser, "#pareto-0 .point .fill")[0]
    browser.move((left + right) / 2 + 3, (top + bottom) / 2)
    shown = browser.run("document.getElementById('tip').textContent")
    assert "mean of 5 runs" in shown and "commit 0123456789ab" in shown
    browser.click("#pareto-0 .point .fill")
    (tip,) = boxes(browser, "#tip")
    assert min(abs(tip[0] - right), abs(left - tip[2])) < 30, "beside the pointer"
    assert not (tip[0] < left < tip[2] and tip[1] < top < tip[3]), "not on it"
    name = shown.splitlines()[0].removeprefix("cifar10/")
    assert name in browser.run("document.getElementById('pick').textContent")


@pytest.mark.parametrize("method", ["full_precision", "lsq"])
def test_a_page_of_one_run_draws_it_as_a_point_whatever_the_axes(browser, tmp_path, method):
    path = tmp_path / "page.html"
    path.write_text(made_of([write_run(tmp_path / "run", method=method)]))
    browser.open(path)
    for key in ("loom", "model_bytes", "bits_all"):
        put(browser, "cost", key, "change")
        assert browser.run("document.querySelectorAll('#pareto-0 .point').length") == 1
    assert "digits" in browser.run("document.getElementById('detail').textContent")


def test_names_are_cut_everywhere_and_the_first_run_is_a_quantized_one_on_the_front(
    browser, committed
):
    browser.open(committed)
    for place in groups(browser):
        where = "text.name, tbody td:first-child .name, .pick, #pick strong, #detail h2"
        names = texts(browser, where)
        assert names and not [n for n in names if n.startswith(("cifar10/", "digits/", "stories/"))]
        chosen = browser.run(
            f"[...document.querySelectorAll('#rows-{place} tr.chosen td')].map(e => e.textContent)"
        )
        assert "yes" in chosen and "float" not in chosen[0]


def test_the_map_has_weights_and_inputs_in_view_and_shows_changes(browser, committed):
    for width in (390, 1280):
        browser.open(committed, width=width)
        browser.run("document.querySelector('#map-0').scrollIntoView()")
        cells = boxes(browser, "#map-0 td")
        assert len(cells) >= 40 * 40
        assert min(cell[0] for cell in cells) > 0 and max(cell[2] for cell in cells) <= width
    parted = sum("." in text for text in texts(browser, "#map-0 td"))  # seeds differ
    put(browser, "map-0-value", "fractional", "change")
    assert sum("." in text for text in texts(browser, "#map-0 td")) > parted
    put(browser, "map-0-value", "change", "change")
    assert "\u22123" in texts(browser, "#map-0 td")


def test_the_chart_draws_any_figure_of_the_task_and_says_which_way_is_better(browser, committed):
    browser.open(committed)
    put(browser, "figure", "loss", "change")
    text = browser.run("document.getElementById('pareto-0').textContent")
    assert text.startswith("Loss against MBOPs") and "Less loss at less cost is better" in text
    place = open_group(browser, "squeezenet")
    put(browser, "figure", "kl", "change")
    assert "KL against MBOPs" in browser.run(
        f"document.getElementById('pareto-{place}').textContent"
    )


def again(browser):
    """Whether the page that set `old` was loaded again; in between the browser has none to ask."""
    time.sleep(0.5)
    try:
        return browser.run("window.old !== true && document.getElementById('pick') !== null")
    except RuntimeError:
        return False


def test_a_page_that_is_loaded_again_shows_what_it_showed(browser, committed):
    browser.open(committed)
    place = open_group(browser, "digits")
    browser.run(f"document.querySelector('#rows-{place} tbody tr:last-child').click()")
    put(browser, "filter", "digits", "input")
    shown = texts(browser, "#pick, #count, #groups [aria-pressed=true], #detail h2")
    browser.run("window.old = true; location.reload()")
    until = time.monotonic() + 30
    while not again(browser):
        assert time.monotonic() < until, "the page is not there again"
    assert texts(browser, "#pick, #count, #groups [aria-pressed=true], #detail h2") == shown
    assert browser.run("document.getElementById('filter').value") == "digits"
    browser.open(committed)
    assert browser.run("document.getElementById('filter').value") == "", "a new visit is new"


def test_a_reader_chooses_columns(browser, committed):
    browser.open(committed)
    heads = "#rows-0 th[data-key]"
    assert "Loom x" not in " ".join(texts(browser, heads))
    browser.run("document.getElementById('columns').open = true")
    browser.click("[data-keep='column-loom']")
    assert "Loom x" in " ".join(texts(browser, heads))
    browser.click("[data-keep='column-bits']")
    assert browser.run(f"document.querySelectorAll('{heads}').length") > 10
    assert browser.run("document.getElementById('columns').open"), "stays open"


def test_curves_are_those_of_every_seed_and_files_are_linked(browser, tmp_path):
    folders = [write_run(tmp_path / f"s{seed}", seed=seed) for seed in range(2)]
    with (folders[0] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 200, "eval_accuracy": 0.5, "eval_kl": 0.25}) + "\n")
    (folders[0] / "export").mkdir()
    (folders[0] / "export" / "model.onnx").write_bytes(b"x")
    path = tmp_path / "page.html"
    path.write_text(made_of(folders, beside=str(tmp_path)))
    browser.open(path)
    assert browser.run("document.querySelectorAll('#curve-accuracy path.curve').length") == 2
    assert browser.run("document.querySelectorAll('#curve-accuracy circle').length") == 1
    assert browser.run("document.querySelectorAll('#curve-kl circle').length") == 1
    links = browser.run("[...document.querySelectorAll('#detail a')].map(a => a.href)")
    assert (tmp_path / "s0" / "export" / "model.onnx").as_uri() in links


def test_the_pictures_of_the_documentation_are_drawn_by_a_command_and_small(browser, tmp_path):
    screenshots.main(["--out", str(tmp_path)])
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*.png")}
    assert sizes.keys() == {"report.png", "report_map.png", "report_phone.png"}
    assert all(10_000 < size < 200_000 for size in sizes.values())
