"""The search page in a real browser, through a real server."""

from typing import Any

import pytest

from mm.serve.gallery import Found
from mm.serve.page import POLICY, hits_html

TYPED = """new Promise(async done => {
  const field = document.getElementById('text');
  field.value = %r;
  document.getElementById('query').requestSubmit();
  for (let i = 0; i < 200; i++) {
    await new Promise(next => setTimeout(next, 50));
    if (document.getElementById('status').textContent.startsWith('for')) break;
  }
  const cards = [...document.querySelectorAll('.hit-card')];
  await Promise.all([...document.images].map(image => image.decode().catch(() => 0)));
  done({
    images: cards.map(card => Number(card.dataset.image)),
    captions: cards.map(card => card.querySelector('figcaption').textContent),
    shapes: [...document.querySelectorAll(".hit-card img")].map(
      i => [i.naturalWidth / i.naturalHeight, i.width / i.height]),
    bold: document.querySelectorAll('.hit-card b').length,
    wide: document.documentElement.scrollWidth,
    focused: document.activeElement.id,
    background: getComputedStyle(document.body).backgroundColor,
    outside: performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith(location.origin)),
  });
})"""
READ = """new Promise(async done => {
  for (let i = 0; i < 200; i++) {
    await new Promise(next => setTimeout(next, 50));
    if (document.getElementById('status').textContent.startsWith('for')) break;
  }
  done([Number(document.querySelector('.hit-card').dataset.image), document.getElementById('text').value]);
})"""
LIKE = """new Promise(async done => {
  document.querySelectorAll('.hit-card button')[2].click();
  for (let i = 0; i < 200; i++) {
    await new Promise(next => setTimeout(next, 50));
    if (document.getElementById('status').textContent.startsWith('similar')) break;
  }
  done([...document.querySelectorAll('.hit-card')].map(card => Number(card.dataset.image)));
})"""
DROPPED = """new Promise(async done => {
  const content = await (await fetch('/images/3')).blob();
  const data = new DataTransfer();
  data.items.add(new File([content], 'three.jpg', { type: 'image/jpeg' }));
  document.getElementById('drop').dispatchEvent(new DragEvent('drop', { dataTransfer: data, cancelable: true }));
  for (let i = 0; i < 200; i++) {
    await new Promise(next => setTimeout(next, 50));
    if (document.getElementById('status').textContent.startsWith('nearest')) break;
  }
  done([document.getElementById('status').textContent, document.querySelectorAll('.hit-card').length,
        document.querySelectorAll('#given img').length]);
})"""


@pytest.mark.parametrize("width, scheme", [(400, "dark"), (1200, "light")])
def test_a_typed_query_shows_the_expected_image_first(browser: Any, server: Any, width: int, scheme: str) -> None:
    seen = browser.look(server.address + "/", TYPED % "two blue squares", width, scheme)
    assert seen["images"][0] == 1 and len(seen["images"]) == 5
    assert "two blue squares" in seen["captions"][0] and "cosine 1.000" in seen["captions"][0]
    assert all(abs(natural - shown) < 0.05 for natural, shown in seen["shapes"]), "an image is cropped or stretched"
    assert seen["wide"] <= width and seen["outside"] == [] and seen["focused"] == "text"
    assert (seen["background"] == "rgb(255, 255, 255)") is (scheme == "light")


def test_the_address_of_a_search_can_be_sent_on(browser: Any, server: Any) -> None:
    browser.look(server.address + "/", TYPED % "two blue squares & more", 1200, "light")
    address = browser.evaluate("location.href")
    assert address == server.address + "/?q=two+blue+squares+%26+more"
    assert browser.look(server.address + "/?q=two+blue+squares", READ, 1200, "light") == [1, "two blue squares"]


def test_similar_images_are_found_and_files_dropped(browser: Any, server: Any) -> None:
    seen = browser.look(server.address + "/", TYPED % "red circle", 1200, "light")
    third = seen["images"][2]
    assert browser.evaluate(LIKE)[0] == third
    status, cards, given = browser.evaluate(DROPPED)
    assert status == "nearest to three.jpg" and cards == 5 and given == 1


def test_a_caption_is_text_whatever_it_holds(browser: Any, server: Any) -> None:
    seen = browser.look(server.address + "/", TYPED % "stripes", 1200, "light")
    assert any("stripes <b>&" in caption for caption in seen["captions"]) and seen["bold"] == 0


class NoImages:
    """A gallery whose images are gone."""

    def shown(self, number: int) -> None:
        from mm.serve.inputs import Refused

        raise Refused(404, f"image {number} is no longer there")


def test_an_image_that_is_gone_says_so_in_its_card() -> None:
    html = hits_html([Found(7, 0.25, "<script>")], NoImages(), "reranked")  # type: ignore[arg-type]
    assert "image 7 is no longer there" in html and "log-odds 0.250" in html and "<script>" not in html
    assert "unsafe-inline" not in POLICY.partition("style-src")[0]
