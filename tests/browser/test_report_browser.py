"""The report page in a real browser: nothing is fetched, no error is reported, it fits a phone, the keyboard works."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

import synthetic_run
from reclaim.report.build import SYSTEMS, build_report

TEMPLATE = Path(__file__).parents[2] / "report" / "report.html.j2"
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
HOSTILE = "</title><script>alert(1)</script><img src='http://127.0.0.1:9/x.png' onerror='alert(2)'>"


@dataclass
class Visit:
    """An open page and what the browser noticed about it."""

    page: object
    address: str
    noticed: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page of the made-up run, with a table's text trying to become markup."""
    arguments = synthetic_run.arguments()
    arguments["claims"]["statement"] += " " + HOSTILE
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(build_report(**arguments, template_path=TEMPLATE), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(params=[PHONE, DESKTOP], ids=["phone", "desktop"])
def visit(browser, address, request):
    context = browser.new_context(viewport=request.param)
    visit = Visit(context.new_page(), address)
    visit.page.on("console", lambda message: visit.noticed.append(f"console: {message.text}"))
    visit.page.on("pageerror", lambda error: visit.noticed.append(f"error: {error}"))
    visit.page.on("dialog", lambda dialog: (visit.noticed.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    visit.page.on("request", lambda asked: asked.url == address or visit.noticed.append(f"request: {asked.url[:200]}"))
    visit.page.goto(address)
    yield visit
    context.close()


def open_all(page):
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")


def test_no_errors_and_no_requests(visit):
    open_all(visit.page)
    visit.page.wait_for_timeout(200)
    assert visit.noticed == []
    assert visit.page.locator("script, img, iframe").count() == 0


def test_headings_and_sections_are_there(visit):
    page = visit.page
    assert page.locator("h1").count() == 1 and page.locator("h1").is_visible()
    for heading in ("Summary", "Costs by stage", "Configuration and versions"):
        assert page.get_by_role("heading", name=heading, exact=True).is_visible()
    assert page.get_by_role("heading", name="What this run cannot tell").count() == len(SYSTEMS)
    for link in page.get_by_role("navigation").get_by_role("link").all():
        link.click()
        section = page.locator(link.get_attribute("href"))
        top = section.evaluate("element => element.getBoundingClientRect().top")
        at_end = page.evaluate("innerHeight + scrollY >= document.documentElement.scrollHeight - 2")
        assert -1 <= top < 60 or at_end


def test_page_does_not_overflow_sideways(visit):
    open_all(visit.page)
    width = visit.page.viewport_size["width"]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    stray = visit.page.evaluate(
        """width => [...document.querySelectorAll('main *, header *, nav *, footer *')]
            .filter(e => !e.closest('.scroll') && !e.closest('svg') && !e.closest('pre'))
            .filter(e => e.getBoundingClientRect().right > width + 1)
            .map(e => e.outerHTML.slice(0, 80))""",
        width,
    )
    assert stray == []


def test_tables_scroll_within_their_container(visit):
    open_all(visit.page)
    outside, wide = visit.page.evaluate(
        """() => { const tables = [...document.querySelectorAll('table')];
            const boxes = tables.map(table => table.parentElement);
            return [tables.filter(table => !table.parentElement.matches('.scroll[tabindex]')).length,
                boxes.filter(box => box.scrollWidth > box.clientWidth
                    && getComputedStyle(box).overflowX === 'auto').length]; }"""
    )
    assert outside == 0
    summary = visit.page.get_by_role("region", name="All claims")
    if visit.page.viewport_size == DESKTOP:
        assert summary.evaluate("element => element.scrollWidth <= element.clientWidth")
    else:
        assert wide >= 3
        summary.focus()
        for _ in range(5):
            visit.page.keyboard.press("ArrowRight")
        visit.page.wait_for_function("element => element.scrollLeft > 0", arg=summary.element_handle())
        assert visit.page.evaluate("scrollX") == 0


def test_words_in_plots_are_large_enough_and_inside(visit):
    faults = visit.page.evaluate(
        """() => [...document.querySelectorAll('svg.plot')].flatMap(svg => {
            const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
            return [...svg.querySelectorAll('text')].flatMap(text => {
                const r = text.getBoundingClientRect(), size = parseFloat(getComputedStyle(text).fontSize) * scale;
                const inside = r.left >= box.left - 2 && r.right <= box.right + 2
                    && r.top >= box.top - 2 && r.bottom <= box.bottom + 2;
                return inside && size >= 8.5 ? [] : [`${text.textContent}: ${size} px, ${r.right - box.right}`];
            }); })"""
    )
    assert faults == []
    assert visit.page.locator("svg.plot").count() >= 8
    assert all(svg.get_attribute("aria-label") for svg in visit.page.get_by_role("img").all())


def test_words_in_a_row_plot_do_not_cover_each_other(visit):
    covered = visit.page.evaluate(
        """() => [...document.querySelectorAll('svg.plot')].flatMap(svg => {
            const texts = [...svg.querySelectorAll('text')];
            return texts.flatMap((a, i) => texts.slice(i + 1).flatMap(b => {
                const p = a.getBoundingClientRect(), q = b.getBoundingClientRect();
                const x = Math.min(p.right, q.right) - Math.max(p.left, q.left);
                const y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
                return x > 2 && y > 4 ? [`${a.textContent} / ${b.textContent}`] : [];
            })); })"""
    )
    assert covered == []


def test_keyboard_reaches_a_claim_and_opens_it(visit):
    page = visit.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the summary"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    claim = page.locator("#claim-mezo-c2")
    command = claim.get_by_text("snakemake claims --cores all")
    assert not command.is_visible()
    page.locator("a[href='#claim-mezo-c2']").first.focus()
    page.keyboard.press("Enter")
    claim.locator("summary").focus()
    page.keyboard.press("Enter")
    assert command.is_visible()
    assert claim.get_by_role("row").count() >= 4


def test_print_shows_what_is_folded_and_hides_the_navigation(browser, address):
    page = browser.new_page(viewport=DESKTOP)
    page.goto(address)
    command = page.locator("#claim-mezo-c2").get_by_text("snakemake claims --cores all")
    hidden = command.evaluate("element => element.checkVisibility({contentVisibilityAuto: true})")
    page.emulate_media(media="print")
    shown = command.evaluate("element => element.checkVisibility({contentVisibilityAuto: true})")
    assert (hidden, shown) == (False, True)
    assert not page.get_by_role("navigation").is_visible()
    assert len(page.pdf(format="A4")) > 50_000
    page.close()


def test_boxes_hide_and_show_systems_and_verdicts(visit):
    page = visit.page
    open_all(page)
    claim, other = page.locator("#claim-mezo-c2"), page.locator("#system-mlm-masking")
    verdict = claim.get_attribute("data-verdict")
    box = page.locator(f"#show-{verdict}")
    box.focus()
    page.keyboard.press("Space")
    assert not claim.is_visible() and page.locator(f"tr[data-verdict='{verdict}']:visible").count() == 0
    assert page.locator(f"tr[data-verdict]:not([data-verdict='{verdict}'])").first.is_visible()
    page.keyboard.press("Space")
    assert claim.is_visible()
    page.locator("#show-system-mezo").uncheck()
    assert not claim.is_visible() and other.is_visible()
    assert page.locator("[data-system='system-mezo']:visible").count() == 0


def test_the_page_opens_with_each_system_and_its_headline_claims(visit):
    board = visit.page.locator(".board > li")
    assert board.count() >= len(SYSTEMS)
    mezo = board.filter(has=visit.page.locator("a[href='#system-mezo']"))
    assert mezo.locator("a[href^='#claim-mezo-']").count() >= 1
    assert all(badge.inner_text().strip() for badge in board.locator(".badge").all())


def test_no_accessibility_rule_is_violated(visit):
    open_all(visit.page)
    # The page's policy forbids scripts, so the checker is put in from outside the page's world.
    session = visit.page.context.new_cdp_session(visit.page)
    session.send("Page.setBypassCSP", {"enabled": True})
    visit.page.reload()
    open_all(visit.page)
    results = Axe().run(visit.page)
    assert results.response["violations"] == [], results.generate_report()
    assert len(results.response["passes"]) > 20
