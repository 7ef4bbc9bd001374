"""A sample of image and captions: its fields, its limits, and how its texts are read."""

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

# Contexts have at most 512 tokens; the time to tag and tokenize a caption grows with its length.
MAX_CAPTION_CHARS = 2**14
# Of a text or JSON member: far more than captions, nouns, token ids and EXIF fields take. Parsed,
# JSON takes ten times its size and more.
MAX_TEXT_BYTES = 2**22


class Sample(TypedDict):
    """An encoded image with all its captions (at least one, none blank).

    Samples from `launch.prepare` have `nouns`, which maps a kind (of `nouns.KINDS`) to the words
    of each caption, and optionally `tokens`, with the tokenizer's fingerprint under "tokenizer" and
    the ids of each caption under "ids", and `superpixels` (`images.superpixels.encode`).
    """

    image: bytes
    captions: list[str]
    key: str
    nouns: NotRequired[dict[str, list[list[str]]]]
    tokens: NotRequired[dict[str, Any]]
    superpixels: NotRequired[str]


class BrokenSampleError(ValueError):
    """A sample that can't be used; the message gives the reason."""


@runtime_checkable
class Source(Protocol):
    """Random access to image-caption pairs."""

    def __len__(self) -> int:
        """Number of samples, broken ones included."""

    def __getitem__(self, index: int) -> Sample:
        """Read one sample; raise BrokenSampleError if it can't be used."""

    def locate(self, index: int) -> str:
        """Describe the location of a sample, for messages."""


@runtime_checkable
class BatchSource(Source, Protocol):
    """A source for which reading many samples at once is faster than one at a time."""

    def read_many(self, indices: Sequence[int]) -> "Iterator[Sample | BrokenSampleError]":
        """Yield samples, or the error in place of a sample that can't be used."""


def read_fields(metadata: bytes | None) -> dict[str, Any]:
    """Parse a sample's JSON.

    Raises:
      BrokenSampleError: it is too large, can't be parsed or is not an object.
    """
    _check_text("JSON", metadata)
    try:
        fields = json.loads(metadata) if metadata is not None else {}
    except (ValueError, RecursionError) as error:
        raise BrokenSampleError(f"its JSON can't be parsed ({error})") from error
    if not isinstance(fields, dict):
        raise BrokenSampleError("its JSON is not an object")
    return fields


def texts_of(text: bytes | None, fields: Mapping[str, Any]) -> list[Any]:
    """Return the captions as stored; see `WebDatasetSource`.

    Raises:
      BrokenSampleError: the sample has no field for captions.
    """
    if isinstance(fields.get("captions"), list):
        return fields["captions"]
    if text is not None:
        _check_text("text", text)
        return [decode_text(text)]
    if "caption" in fields:
        return [fields["caption"]]
    raise BrokenSampleError("no caption (txt, or a JSON with caption or captions)")


def _check_text(kind: str, content: bytes | None) -> None:
    if content is not None and len(content) > MAX_TEXT_BYTES:
        raise BrokenSampleError(f"{kind} of {len(content)} bytes, more than {MAX_TEXT_BYTES}")


def decode_text(content: bytes) -> str:
    """Decode UTF-8, or UTF-16 with a byte order mark; other bytes become U+FFFD."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    return content.decode("utf-8-sig", "replace")


def make_sample(image: bytes, texts: Sequence[Any], key: str, fields: Mapping[str, Any]) -> Sample:
    """Return the sample of an image and its texts.

    Args:
      image: encoded.
      texts: the captions as stored; see `texts_of`.
      key: of the sample.
      fields: of the sample's JSON.

    Raises:
      BrokenSampleError: no caption can be used, or `nouns` or `tokens` don't fit the captions.
    """
    sample = Sample(image=image, captions=_usable(texts), key=key)
    # Only objects of these types come from launch.prepare; other uses of the names are ignored.
    found, tokens = fields.get("nouns"), fields.get("tokens")
    if isinstance(superpixels := fields.get("superpixels"), str):
        sample["superpixels"] = superpixels
    if isinstance(found, dict):
        for kind, words in found.items():
            _check_parallel(f"nouns.{kind}", words, sample["captions"], str)
        sample["nouns"] = found
    if isinstance(tokens, dict):
        _check_parallel("tokens.ids", tokens.get("ids"), sample["captions"], int)
        if not all(ids and 0 <= min(ids) <= max(ids) < 2**31 for ids in tokens["ids"]):
            raise BrokenSampleError("the tokens.ids of its JSON are empty or no token ids")
        sample["tokens"] = tokens
    return sample


def _check_parallel(name: str, lists: Any, captions: Sequence[str], kind: type) -> None:
    whole = isinstance(lists, list) and {*map(type, lists)} <= {list}
    if not whole or len(lists) != len(captions):
        raise BrokenSampleError(f"the {name} of its JSON are not one list for each caption")
    # By type, not `isinstance`, for which True is an int.
    if not {type(value) for values in lists for value in values} <= {kind}:
        raise BrokenSampleError(f"the {name} of its JSON hold other values than {kind.__name__}")


def _usable(captions: Sequence[Any]) -> list[str]:
    texts = [text.strip() for text in captions if isinstance(text, str) and text.strip()]
    usable = [text for text in texts if len(text) <= MAX_CAPTION_CHARS]
    if not texts:
        raise BrokenSampleError("empty caption")
    if not usable:
        raise BrokenSampleError(f"caption of more than {MAX_CAPTION_CHARS} characters")
    return usable
