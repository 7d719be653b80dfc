"""The page of an animation in a browser: its buttons and its slider.

Needs Chromium with its driver, from the system's packages, and selenium.
"""

import shutil
import time

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("matplotlib")
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
to_html = pytest.importorskip("ntm_kernels.plotting.animation").to_html

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
FRAMES = 12


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1000,800"):
        options.add_argument(f"--{word}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, tmp_path):
    """The page, opened anew, of frames that are each of another grey."""
    greys = np.linspace(0, 240, FRAMES).astype(np.uint8)
    frames = [np.full((44, 88, 4), grey, np.uint8) for grey in greys]
    for frame in frames:
        frame[..., 3] = 255
    path = tmp_path / "animation.html"
    path.write_text(to_html(frames, "a title"))
    browser.get(path.as_uri())
    WebDriverWait(browser, 10).until(lambda _: shown(browser))
    return browser


def shown(page):
    return page.find_element(By.CSS_SELECTOR, ".animation img").get_attribute("src")


def slider(page):
    return page.find_element(By.CSS_SELECTOR, "input.anim-slider")


def step(page):
    return int(slider(page).get_attribute("value"))


def press(page, title):
    page.find_element(By.CSS_SELECTOR, f"button[title='{title}']").click()


def test_play_advances_and_pause_stops(page):
    first = shown(page)
    time.sleep(0.5)
    assert (step(page), shown(page)) == (0, first)
    press(page, "Play")
    WebDriverWait(page, 10).until(lambda _: step(page) >= 2)
    press(page, "Pause")
    stopped = step(page), shown(page)
    assert stopped[1] != first
    time.sleep(0.5)
    assert (step(page), shown(page)) == stopped


def test_it_plays_to_its_end_and_stops_there(page):
    press(page, "Play")
    WebDriverWait(page, 20).until(lambda _: step(page) == FRAMES - 1)
    time.sleep(0.5)
    assert step(page) == FRAMES - 1


def test_the_slider_and_the_buttons_choose_the_frame(page):
    frames = {0: shown(page)}
    for number in range(1, FRAMES):
        slider(page).send_keys(Keys.ARROW_RIGHT)
        assert step(page) == number
        frames[number] = shown(page)
    assert len(set(frames.values())) == FRAMES
    for button, number in (
        ("First frame", 0),
        ("Next frame", 1),
        ("Last frame", FRAMES - 1),
        ("Previous frame", FRAMES - 2),
    ):
        press(page, button)
        assert (step(page), shown(page)) == (number, frames[number])


def test_the_buttons_have_symbols_and_nothing_is_loaded(page):
    buttons = page.find_elements(By.CSS_SELECTOR, ".anim-buttons button")
    assert [button.text.strip("\ufe0e") for button in buttons] == [
        *("−", "|<", "<", "◀", "||", "▶", ">", ">|", "+"),
    ]
    loaded = page.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert [name for name in loaded if not name.startswith("data:")] == []
    assert page.title == "a title"
    assert page.get_log("browser") == []
