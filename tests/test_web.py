"""The page of `-a web` in a real browser, on a server of its own process, as a user has it."""

import shutil
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import av
import cv2
import numpy as np
import psutil
import pytest
from conftest import ROOT, command, finish
from PIL import Image
from web_tab import DEVICE, MARKS, Server, Tab

from rain.backgrounds import photograph

pytestmark = MARKS


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("web"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def window(browser) -> Iterator:
    """A window for all tabs: its cache spares them from fetching all of Gradio anew."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    yield context
    context.close()


@pytest.fixture(scope="module")
def kept_tab(window, server) -> Tab:
    return Tab(window, server)


@pytest.fixture
def tab(kept_tab) -> Tab:
    """The page as it opens, in one tab."""
    kept_tab.open()
    return kept_tab


@pytest.fixture(scope="module")
def given(server) -> Path:
    """A folder of pictures and a video; beside it is what `derain` makes of them, `derained`."""
    folder = server.folder / "given"
    folder.mkdir()
    picture = cv2.resize(photograph("coffee"), (48, 36), interpolation=cv2.INTER_AREA)
    alpha = np.linspace(0, 65535, 48 * 36).reshape(36, 48, 1).astype(np.uint16)
    cv2.imwrite(str(folder / "deep.png"), np.dstack([picture.astype(np.uint16) * 257, alpha]))
    cv2.imwrite(str(folder / "pasted.png"), picture)
    photo = Image.fromarray(picture[..., ::-1])
    exif = photo.getexif()
    exif[0x0112], exif[0x010F] = 6, "A camera"
    photo.save(folder / "a photo.jpg", exif=exif, icc_profile=b"a profile of some kind")
    with av.open(str(folder / "clip.mp4"), "w") as clip:
        stream = clip.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 36, "yuv420p"
        for shift in range(6):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, shift, 1), format="bgr24")
            clip.mux(stream.encode(frame))
        clip.mux(stream.encode(None))
    derain(server, folder, server.folder / "derained")
    return folder


def derain(server: Server, source: Path, target: Path, *words: object) -> None:
    model = ["--model-dir", server.folder / "model", "-m", "latest", *DEVICE]
    action = command("-a", "derain", "-i", source, "-o", target, *model, *words)
    assert finish(action).returncode == 0


def derained(given: Path, name: str) -> bytes:
    return (given.parent / "derained" / name).read_bytes()


def test_a_picture_comes_back_as_derain_writes_it(tab, given):
    for name in ("deep.png", "a photo.jpg"):
        tab.give(given / name)
        stem, suffix = name.split(".")
        assert tab.download() == (f"{stem}_derained.{suffix}", derained(given, name))


def test_the_views_are_those_that_are_chosen(tab, given):
    tab.give(given / "deep.png")
    tab.page.click("#views label:has-text('4')")
    tab.until(lambda: tab.text == "")  # the former result is gone while the next one is computed
    assert tab.page.locator("#download[disabled]").count() == 1
    tab.until(lambda: "4 views" in tab.text)
    _, found = tab.download()
    derain(tab.server, given / "deep.png", Path("four.png"), "--self-ensemble", 4)
    assert found == Path("four.png").read_bytes()
    assert found != derained(given, "deep.png")


def test_the_slider_parts_before_and_after(tab):
    cv2.imwrite("red.png", np.full((60, 90, 3), (0, 0, 255), np.uint8))
    tab.give(Path("red.png"))
    half = tab.slider()
    image = tab.page.locator("#slider img").first
    box, frame = image.bounding_box(), tab.page.locator("#slider").bounding_box()
    y = box["y"] + box["height"] / 2
    before = np.array(cv2.imread("red.png")[0, 0], int)

    def reds(shot: np.ndarray) -> float:
        """The share of the picture's width in which its source shows."""
        line = shot[int(y - frame["y"]) - 60]
        width = min(box["width"], 1.5 * box["height"])
        left = box["x"] - frame["x"] + (box["width"] - width) / 2
        part = line[int(left) : int(left + width)]
        return float((np.abs(part - before).max(-1) == 0).mean())

    tab.page.mouse.move(box["x"] + box["width"] / 2, y)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 0.8 * box["width"], y, steps=5)
    tab.page.mouse.up()
    assert 0.4 < reds(half) < 0.6
    assert 0.8 < reds(tab.slider()) < 0.99


def test_attention_is_laid_over_the_picture_as_on_the_results_page(tab, given):
    tab.give(given / "a photo.jpg")
    before, after = tab.pictures()
    tab.page.check("#attention input")
    tab.until(lambda: "overlay" in tab.page.locator("#slider img").first.get_attribute("src"))
    shown, still = tab.pictures()
    assert np.array_equal(still, after)
    change = shown.astype(float) - before
    # Towards the colour of the map, by at most its opacity there, 0.65.
    assert (np.abs(change) <= 0.65 * np.abs(np.array((147, 20, 255)) - before) + 1).all()
    assert np.abs(change).max() > 10
    tab.page.uncheck("#attention input")
    tab.until(lambda: "before" in tab.page.locator("#slider img").first.get_attribute("src"))


def test_a_bad_file_is_a_line_on_the_page(tab, rainy):
    good = Path("good.png")
    good.write_bytes(cv2.imencode(".png", rainy)[1].tobytes())
    for name, data, word in (
        ("note.txt", b"hello", "expected one of .264"),
        ("empty.png", b"", "empty"),
        ("<b>cut.png", good.read_bytes()[:-60], "damaged"),
        ("film.mp4", b"no film", "not a video"),
    ):
        Path(name).write_bytes(data)
        tab.page.set_input_files("#drop input[type=file]", name)
        tab.until(lambda word=word: word in tab.text)
        assert tab.text.count("\n") == 0
        assert str(tab.server.folder) not in tab.text
        assert tab.page.locator("#download[disabled]").count() == 1
        tab.give(good)


def test_several_files_are_a_queue(tab, given):
    Path("bad.jpg").write_bytes(b"no picture")
    names = ["a photo.jpg", "bad.jpg", "clip.mp4", "deep.png"]
    files = [Path("bad.jpg") if name == "bad.jpg" else given / name for name in names]
    tab.page.set_input_files("#drop input[type=file]", files)
    tab.until(lambda: [row[0] for row in tab.rows()] == names)
    states = ["derained", "failed", "derained", "derained"]
    tab.until(lambda: [row[1] for row in tab.rows()] == states)
    for name, word in (("deep.png", "pixels"), ("bad.jpg", "damaged"), ("clip.mp4", "6 frames")):
        tab.select(name)
        tab.until(lambda name=name, word=word: tab.text.startswith(name) and word in tab.text)
        assert (tab.page.locator("#download[disabled]").count() == 1) == (name == "bad.jpg")
    assert tab.page.locator("#queue button >> visible=true").count() == 0
    words = [["file", "state", "remaining"], *tab.rows()]
    cut = "all => all.filter(one => one.scrollWidth > one.clientWidth).map(one => one.innerText)"
    assert tab.page.eval_on_selector_all("#queue th *, #queue [role=gridcell] *", cut) == [], words
    label, arrow = (tab.page.locator(f"#drop {name}").first for name in ("label", ".wrap svg"))
    below = label.bounding_box()["y"] + label.bounding_box()["height"]
    assert arrow.bounding_box()["y"] >= below
    assert tab.download() == ("clip_derained.mp4", derained(given, "clip.mp4"))
    name, data = tab.download("#archive")
    assert name == "derained.zip"
    with ZipFile(BytesIO(data)) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    good = ("a photo.jpg", "clip.mp4", "deep.png")
    assert held == {name.replace(".", "_derained."): derained(given, name) for name in good}


def test_what_is_dropped_shows_at_once_and_every_button_does_its_work(tab, given, rainy):
    large = cv2.resize(rainy, (700, 500))
    Path("large.png").write_bytes(cv2.imencode(".png", large)[1].tobytes())
    buttons = tab.page.locator("#buttons button")
    assert buttons.all_inner_texts() == ["Download", "All as ZIP", "Cancel"]
    assert all(buttons.nth(number).is_disabled() for number in range(3))
    tab.page.set_input_files("#drop input[type=file]", ["large.png", given / "deep.png"])
    tab.page.wait_for_selector("#slider img")
    assert all(np.array_equal(image, large) for image in tab.pictures())
    tab.page.click("#cancel")
    tab.until(lambda: [row[1] for row in tab.rows()] == ["cancelled"] * 2)
    assert tab.page.locator("#cancel[disabled]").count() == 1
    tab.give(given / "pasted.png")  # does not wait for what was cancelled
    assert [row[1] for row in tab.rows()] == ["cancelled", "cancelled", "derained"]
    labels = "all => all.map(one => one.ariaLabel || one.innerText)"
    assert tab.page.eval_on_selector_all("button:visible", labels) == [
        "Undo", "Fullscreen", "Download", "All as ZIP", "Cancel", "Click to upload or drop files"
    ]  # fmt: skip
    place = "one => getComputedStyle(one).transform"
    image = tab.page.locator("#slider img").first
    before = image.evaluate(place)
    box = image.bounding_box()
    tab.page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 3)
    tab.page.mouse.wheel(0, -300)
    tab.until(lambda: image.evaluate(place) != before)
    tab.page.click("#slider button[aria-label='Undo']")
    tab.until(lambda: image.evaluate(place) == before)
    tab.page.click("#slider button[aria-label='Fullscreen']")
    tab.page.click("#slider button[aria-label='Exit fullscreen mode']")
    tab.page.set_input_files("#drop input[type=file]", given / "pasted.png")
    tab.page.wait_for_selector("#archive:not([disabled])")
    _, data = tab.download("#archive")
    assert ZipFile(BytesIO(data)).namelist() == ["pasted_derained.png", "2/pasted_derained.png"]


def test_a_picture_is_pasted(tab, given):
    tab.page.evaluate(
        """(bytes) => {
          const held = new DataTransfer();
          held.items.add(new File([new Uint8Array(bytes)], "pasted.png", {type: "image/png"}));
          const event = new ClipboardEvent("paste", {clipboardData: held, bubbles: true});
          document.body.dispatchEvent(event);
        }""",
        list((given / "pasted.png").read_bytes()),
    )
    tab.until(lambda: "pasted.png" in tab.text)
    assert tab.download() == ("pasted_derained.png", derained(given, "pasted.png"))


def test_a_video_comes_back_as_derain_writes_it(tab, given):
    tab.give(given / "clip.mp4", "6 frames; the attention map is that of one in the middle")
    assert tab.download() == ("clip_derained.mp4", derained(given, "clip.mp4"))


def test_a_video_plays_before_and_after_in_step(tab, given):
    tab.give(given / "clip.mp4", "6 frames")
    times = "[...document.querySelectorAll('#film video')].map(film => film.currentTime)"
    play = "document.querySelectorAll('#film video')[1]"
    tab.page.wait_for_function(f"{play}?.readyState > 1")
    left, right = [film.bounding_box() for film in tab.page.locator("#film video").all()]
    assert (left["y"], left["height"]) == (right["y"], right["height"])
    tab.page.evaluate(f"{play}.currentTime = 0.16")
    tab.until(lambda: tab.page.evaluate(times) == [0.16, 0.16])
    assert not tab.page.locator("#slider").is_visible()
    tab.page.check("#attention input")
    tab.page.wait_for_selector("#slider img")


def test_the_checkpoint_is_chosen_from_the_folder(tab, given):
    shutil.copy(ROOT / "model" / "demo", tab.server.folder / "model" / "step_1")  # since its start
    tab.page.reload()
    tab.page.wait_for_selector("#drop input[type=file]", state="attached")
    tab.give(given / "a photo.jpg")

    def choose(name: str) -> None:
        tab.page.click("#weights input")
        tab.page.click(f"[role=option]:has-text('{name}')")

    choose("step_1")
    tab.until(lambda: "by step_1" in tab.text)
    choose("broken")
    tab.until(lambda: "not a checkpoint" in tab.text)
    choose("other")
    tab.until(lambda: "by other" in tab.text)


def test_one_job_at_a_time(window, server, given):
    tabs = [Tab(window, server) for _ in range(3)]
    for tab in tabs:
        tab.page.set_input_files("#drop input[type=file]", given / "a photo.jpg")
    for tab in tabs:
        tab.until(lambda tab=tab: "pixels" in tab.text)
        tab.page.close()
    assert set(server.record("running")) == {1}


def test_uploads_are_removed_when_their_tab_is_closed(window, server, kept_tab, given):
    kept_tab.page.goto("about:blank")
    first, second = Tab(window, server), Tab(window, server)
    for tab in (first, second):
        tab.give(given / "a photo.jpg")
    assert len({path.name for path in server.uploads()}) > 3
    first.page.close()
    second.page.wait_for_timeout(1000)
    assert (
        second.download()[0] == "a photo_derained.jpg"
    )  # what two gave alike stays for the second
    second.page.click("#views label:has-text('2')")
    second.until(lambda: "2 views" in second.text)
    second.page.close()
    end = time.monotonic() + 30
    while server.uploads():
        assert time.monotonic() < end, server.uploads()
        time.sleep(0.1)


def test_a_file_may_be_given_twice_and_under_another_name(window, server, given, rainy):
    one, other = Tab(window, server), Tab(window, server)
    shutil.copy(given / "a photo.jpg", "copy.jpg")
    for _ in range(2):
        one.give(given / "a photo.jpg")
        one.page.wait_for_selector("#download:not([disabled])")
    other.give(Path("copy.jpg"))
    Path("else.png").write_bytes(cv2.imencode(".png", rainy)[1].tobytes())
    one.give(Path("else.png"))
    other.page.click("#views label:has-text('2')")
    other.until(lambda: "copy.jpg" in other.text and "2 views" in other.text)
    for tab in (one, other):
        tab.page.close()


def test_a_job_that_nobody_waits_for_ends(window, server, given, rainy):
    large = cv2.resize(rainy, (700, 500))
    Path("large.png").write_bytes(cv2.imencode(".png", large)[1].tobytes())
    tab, before = Tab(window, server), len(server.record("running"))
    tab.page.set_input_files("#drop input[type=file]", "large.png")
    tab.until(lambda: len(server.record("running")) > before)
    tab.page.close()
    other = Tab(window, server)
    other.give(given / "a photo.jpg")
    # The server learns in its own time that the tab was closed.
    other.until(lambda: not [path for path in server.uploads() if "large" in path.name])
    other.page.close()


def test_nothing_is_fetched_from_elsewhere_and_nobody_else_is_let_in(tab, given):
    tab.give(given / "a photo.jpg")
    assert len(tab.requests) > 10
    assert not [url for url in tab.requests if ".woff" in url]
    own = (tab.server.address, "data:", "blob:")
    assert [url for url in tab.requests if not url.startswith(own)] == []
    asked = tab.server.record("connect") + tab.server.record("look up")
    assert asked
    assert [place for place in asked if "127.0.0.1" not in place] == []
    sockets = psutil.Process(tab.server.process.pid).net_connections("tcp")
    assert {one.laddr.ip for one in sockets if one.status == "LISTEN"} == {"127.0.0.1"}
