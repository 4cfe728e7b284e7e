"""Bodies of requests to rows for the model. What a batch could fail at fails here, alone and by name."""

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
import soundfile
import torch
from torch import Tensor

from kernels.errors import UserError
from kernels.parsing import parse_json
from mm.data.collate import stack_rows
from mm.data.media import IMAGE_FORMATS, decode_audio, decode_image
from mm.infer.processor import Processor
from mm.serve.config import RequestLimits

Given = dict[str, list[Any]]
"""By modality what a request holds: strings of text, bytes of images and sounds."""
JSON = "application/json"


class Refused(Exception):
    """A request that is not computed, with what its answer says.

    Args:
        status: of HTTP.
        message: one line.
        retry_after: seconds after which to try again, where that may help.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


@dataclass(frozen=True)
class Row:
    """One input as it goes to an engine.

    Args:
        kind: its modality.
        tokens: how long it is, in any unit of that modality.
        payload: the arrays (inputs, mask) of one row of a batch.
    """

    kind: str
    tokens: int
    payload: Any


class InputReader:
    """Checks and decodes what requests hold.

    Args:
        processor: of the run that is served.
        limits: of requests.
    """

    def __init__(self, processor: Processor, limits: RequestLimits) -> None:
        self.processor = processor
        self.limits = limits

    def read(self, modality: str, given: Any) -> Row:
        """One input, in any thread.

        Raises:
            Refused: the run does not read the modality, or it is none, or too large.
        """
        if modality not in self.processor.encoders:
            raise Refused(422, f"this run reads {', '.join(self.processor.encoders)}, not {modality}")
        try:
            if modality == "text":
                return self._text(given)
            return self._image(given) if modality == "image" else self._audio(given)
        except UserError as error:
            raise Refused(422, str(error)) from error

    def _text(self, text: str) -> Row:
        if not text.strip():
            raise Refused(422, "the text is blank")
        if len(text) > self.limits.characters:
            raise Refused(413, f"the text has {len(text):,} characters; {self.limits.characters:,} are taken")
        assert self.processor.tokenizer is not None  # of a run that reads text
        ids, mask = self.processor.tokenizer([text])
        return Row("text", ids.shape[1], (ids[0].numpy(), mask[0].numpy()))

    def _image(self, content: bytes) -> Row:
        check_pixels(content, self.limits.megapixels)
        batch = self.processor.images([decode_image(content, "given")])
        return Row("image", 1, (batch.inputs["image"][0].numpy(), None))

    def _audio(self, content: bytes) -> Row:
        check_duration(content, self.limits.minutes)
        batch = self.processor.audio([decode_audio(content, "given")])
        if not batch.present["audio"].all():
            raise Refused(422, "the sound holds no samples")
        row = batch.inputs["audio"][0].numpy()
        return Row("audio", max(1, len(row) // 1000), (row, batch.masks["audio"][0].numpy()))


def check_pixels(content: bytes, megapixels: float) -> None:
    """Raises Refused where an image's header says that it is larger; what has no header is refused by its decoder."""
    try:
        with PIL.Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as opened:
            width, height = opened.size
    except PIL.Image.DecompressionBombError as error:
        raise Refused(413, f"the image is too large: {error}") from error
    except Exception as error:  # Decoders raise anything of what they are fed.
        raise Refused(422, "the image is none that can be read: JPEG, PNG, WebP, GIF, BMP and TIFF are") from error
    if width * height > megapixels * 1e6:
        raise Refused(413, f"the image has {width * height / 1e6:.0f} megapixels; {megapixels:g} are taken")


def check_duration(content: bytes, minutes: float) -> None:
    """Raises Refused where a sound's header says that it is longer; channels count as time does."""
    try:
        about = soundfile.info(io.BytesIO(content))
    except Exception as error:  # As of images.
        raise Refused(422, "the sound is none that can be read: WAV, FLAC, OGG, MP3 and AIFF are") from error
    length = about.frames * about.channels / max(about.samplerate, 1) / 60
    samples = about.frames * about.channels
    if length > minutes or samples > minutes * 60 * 192_000:
        raise Refused(413, f"the sound has {length:.1f} minutes of all its channels; {minutes:g} are taken")


def given_in(body: bytes, content_type: str, limits: RequestLimits) -> Given:
    """What a body holds, by modality.

    Args:
        body: as it came.
        content_type: as the request's header has it: image/*, audio/*, text/plain, or JSON with any of `text`, `image`
            and `audio`, each one or a list; images and sounds in base64.
        limits: of requests.

    Raises:
        Refused: it is something else, or too much.
    """
    kind = content_type.partition(";")[0].strip().lower()
    family = kind.partition("/")[0]
    if family in ("image", "audio"):
        return {family: [body]}
    if kind == "text/plain":
        return {"text": [_decoded(body)]}
    if kind != JSON:
        raise Refused(415, f"content type {kind or 'absent'!r}: image/*, audio/*, text/plain and {JSON} are taken")
    return given_of(json_object(body), limits)


def json_object(body: bytes) -> dict[str, Any]:
    """The object that a body is. Raises Refused where it is none."""
    try:
        found = parse_json(_decoded(body), "the body")
    except UserError as error:
        raise Refused(400, str(error)) from error
    if not isinstance(found, dict):
        raise Refused(400, f"the body is a JSON {type(found).__name__}, not an object")
    return found


def given_of(content: Mapping[str, Any], limits: RequestLimits) -> Given:
    """What a JSON object holds, by modality. Raises Refused where it is something else, or too much."""
    unknown = sorted(set(content) - {"text", "image", "audio"})
    if unknown:
        raise Refused(422, f"no such key: {unknown[0]!r}; there are text, image and audio")
    given: Given = {}
    for modality, value in content.items():
        items = value if isinstance(value, list) else [value]
        if not items or len(items) > limits.items:
            raise Refused(422, f"{modality}: {len(items)} inputs; 1 to {limits.items} are taken")
        given[modality] = [_given(modality, item) for item in items]
    if not given:
        raise Refused(422, "the body holds none of text, image and audio")
    return given


def one_modality(given: Given) -> tuple[str, list[Any]]:
    """The inputs of a request that has one modality. Raises Refused where there are more."""
    if len(given) != 1:
        raise Refused(422, f"one modality is taken at a time, not {' and '.join(given)}")
    (found,) = given.items()
    return found


def packed(rows: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """Arrays (inputs, mask) of N rows -> one tensor (N, ...) of each, token rows padded as everywhere."""
    inputs = stack_rows([torch.from_numpy(row) for row, _ in rows])
    masks = [torch.from_numpy(mask) for _, mask in rows if mask is not None]
    return inputs, stack_rows(masks) if masks else None


def _given(modality: str, item: Any) -> Any:
    if not isinstance(item, str):
        raise Refused(422, f"{modality}: a JSON {type(item).__name__}, not a string")
    if modality == "text":
        _checked_unicode(item)
        return item
    try:
        return base64.b64decode(item, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(422, f"{modality} is not base64: {error}") from error


def _decoded(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8: {error.reason} at byte {error.start}") from error


def _checked_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refused(422, "the text holds half of a surrogate pair, which is no character") from error
