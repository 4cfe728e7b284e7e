"""Images as data URIs."""

import base64
import io

import numpy as np
from PIL import Image

from eval.report.media import Source, photo, pixels, spectrogram, tint, veil


def opened(source: Source) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.uri.partition(",")[2])))


def test_photos_are_shrunk_and_whole():
    source = photo(Image.effect_noise((400, 200), 90), 60)
    assert source.uri.startswith("data:image/jpeg;base64,") and (source.width, source.height) == (60, 30)
    assert opened(source).size == (60, 30) and source.small


def test_a_spectrogram_has_low_bands_below_and_survives_odd_numbers():
    shown = np.array(opened(spectrogram(np.array([[1.0, 1.0], [0.0, 0.0]]))).convert("RGBA"))[..., :3].sum(-1)
    assert (shown[1] > shown[0]).all()  # its first band, the loud one, is the lower row
    for values in (np.full((2, 2), np.nan), np.ones((2, 2)), np.array([[np.inf, 0.0]])):
        assert opened(spectrogram(values)).size == values.shape[::-1]


def test_a_veil_is_clear_where_the_weight_is_largest():
    opacity = np.array(opened(veil(np.array([[0.0, 0.5, 1.0]]))))[..., 1]
    assert opacity[0, 2] == 0 and opacity[0, 0] > opacity[0, 1] > 0
    assert opened(veil(np.zeros((1, 2)))).size == (2, 1)


def test_shares_are_opacity():
    assert np.array(opened(tint(np.array([[0.0, 1.0, 7.0]]), (1, 2, 3))))[..., 3].tolist() == [[0, 255, 255]]
    assert opened(pixels(Image.new("RGB", (3, 2)))).size == (3, 2)
