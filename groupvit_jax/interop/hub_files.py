"""Files beside the weights in a Hugging Face directory: tokenizers and the model card."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from ml_collections import ConfigDict
from sentencepiece import SentencePieceProcessor
from tokenizers import models, normalizers, pre_tokenizers, processors

from groupvit_jax.data.text import byte_pairs
from groupvit_jax.data.text.vocabulary import Vocabulary
from groupvit_jax.data.text.wordpiece import WordPiece
from groupvit_jax.runs import checkpoints
from groupvit_jax.runs.files import read_json, replace_text, write_json

CARD = "README.md"
# Fields of SentencePiece's ModelProto, of its TrainerSpec and of its NormalizerSpec.
_TRAINER, _NORMALIZER = 2, 3
_MODEL_TYPE, _UNIGRAM = 3, 1
_CHARS, _DUMMY_PREFIX, _NO_EXTRA_SPACES = 2, 3, 4


class Origin(NamedTuple):
    """Where weights come from.

    Attributes:
      config: the whole configuration of the run.
      metrics: metrics of the step, by name.
    """

    config: ConfigDict
    metrics: Mapping[str, float]


def read_origin(checkpoint: Path) -> Origin | None:
    """Return the origin of a run's checkpoint; None for other formats, which don't hold it.

    Raises:
      ValueError: every step of the run is damaged, or the step is.
    """
    if checkpoints.find_step(checkpoint) is None:
        return None
    step = checkpoints.find_whole_step(checkpoint)
    path = step / checkpoints.METRICS / "metrics"  # Orbax's name for the file
    return Origin(checkpoints.read_config(step), read_json(path) if path.is_file() else {})


def write_tokenizer(directory: Path, vocabulary: Vocabulary, context_length: int) -> bool:
    """Write files from which `transformers.AutoTokenizer` makes the model's tokenizer.

    Returns:
      Whether there are any: `tokenizers` can't represent every SentencePiece model.
    """
    if vocabulary.name == "clip":
        write_clip_tokenizer(directory, context_length)
        return True
    made = _wordpiece(vocabulary) if vocabulary.name == "wordpiece" else _sentencepiece(vocabulary)
    if made is None:
        return False
    pipeline, special = made
    pipeline.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context_length}
    write_json(directory / "tokenizer_config.json", {**config, **special})
    return True


def write_clip_tokenizer(directory: Path, context_length: int) -> None:
    """Write `vocab.json`, `merges.txt` and `tokenizer_config.json` of `CLIPTokenizer`."""
    ids = {token: i for i, token in enumerate(byte_pairs.read_tokens())}
    write_json(directory / "vocab.json", ids)
    (directory / "merges.txt").write_bytes(byte_pairs.MERGES_FILE.read_bytes())
    special = {"bos_token": byte_pairs.START} | dict.fromkeys(
        ("eos_token", "unk_token", "pad_token"), byte_pairs.END
    )
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length, **special}
    write_json(directory / "tokenizer_config.json", config)


def _wordpiece(vocabulary: Vocabulary) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    own = WordPiece(vocabulary.content)
    # A copy: the model's own doesn't add start and end.
    pipeline = tokenizers.Tokenizer.from_str(own.pipeline.to_str())
    pipeline.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", own.start_id), ("[SEP]", own.end_id)]
    )
    names = dict(cls_token="[CLS]", eos_token="[SEP]", sep_token="[SEP]")
    return pipeline, {**names, "pad_token": "[PAD]", "unk_token": "[UNK]"}


def _sentencepiece(vocabulary: Vocabulary) -> tuple[tokenizers.Tokenizer, dict[str, str]] | None:
    """Return the pipeline of a unigram model, as `launch.train_tokenizer` makes them."""
    model = SentencePieceProcessor(model_proto=vocabulary.content)
    proto = _fields(vocabulary.content)
    # Absent fields have SentencePiece's defaults: a unigram model with a dummy prefix.
    trainer, spec = (_fields(proto.get(number, b"")) for number in (_TRAINER, _NORMALIZER))
    unknown = model.unk_id()
    if trainer.get(_MODEL_TYPE, _UNIGRAM) != _UNIGRAM or not spec.get(_DUMMY_PREFIX, 1):
        return None
    ids = range(model.get_piece_size())
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in ids]
    has_bytes = any(model.is_byte(i) for i in ids)
    pipeline = tokenizers.Tokenizer(models.Unigram(pieces, unknown, has_bytes))
    steps: list[Any] = []
    if spec.get(_CHARS):
        steps.append(normalizers.Precompiled(spec[_CHARS]))
    if spec.get(_NO_EXTRA_SPACES, 1):
        steps += [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    pipeline.normalizer = normalizers.Sequence(steps)
    pipeline.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    names = {"pad_token": pieces[0][0], "unk_token": pieces[unknown][0]}
    ends = {"bos_token": model.bos_id(), "eos_token": model.eos_id()}
    special = {name: pieces[i][0] for name, i in ends.items() if i > 0}
    start = f"{special['bos_token']} " if "bos_token" in special else ""
    pipeline.post_processor = processors.TemplateProcessing(
        single=f"{start}$A {special['eos_token']}",
        special_tokens=[(special[name], ends[name]) for name in special],
    )
    return pipeline, {**names, **special}


def _fields(message: bytes) -> dict[int, Any]:
    """Return the fields of a protocol buffer by number, the last of each; numbers and bytes.

    SentencePiece's own reader demands a newer protobuf than TensorFlow allows.
    """
    found: dict[int, Any] = {}
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            # A varint: 7 bits a byte, the least significant first, and a bit that says more follow.
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        key = number()
        kind = key & 7
        if kind == 0:
            found[key >> 3] = number()
            continue
        # Wire types: 1 has 8 bytes, 5 has 4, and 2 begins with its length.
        size = {1: 8, 5: 4}.get(kind) or number()
        found[key >> 3] = message[place : place + size]
        place += size
    return found


def write_card(
    directory: Path, origin: Origin | None, licence: str, *, has_tokenizer: bool
) -> None:
    """Write the model card: training data, metrics, licence, use here and in `transformers`.

    Args:
      directory: the Hugging Face directory.
      origin: of the weights; None if it is not known.
      licence: identifier of the weights' licence on the hub, e.g. "cc-by-4.0"; "" if not stated.
      has_tokenizer: whether `transformers` can read the tokenizer.
    """
    front = {"license": licence or "unknown", "library_name": "transformers"}
    tags = ["groupvit", "groupvit_jax", "image-segmentation", "zero-shot-image-classification"]
    lines = [
        "---",
        *(f"{key}: {value}" for key, value in front.items()),
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
        "",
        f"# {directory.resolve().name}: GroupViT",
        "",
        _ABOUT,
        "",
        "## Training",
        *_training(origin),
        "",
        "## Metrics",
        *_metrics(origin),
        "",
        "## Use",
        _USE_HERE,
        _USE_THERE if has_tokenizer else _USE_THERE_WITHOUT_TOKENIZER,
        "",
        "## Licence",
        *_licence(licence),
        "",
    ]
    replace_text(directory / CARD, "\n".join(lines))


def _training(origin: Origin | None) -> list[str]:
    if origin is None:
        return ["", "Not known: the weights were exported from a file without its run."]
    config = origin.config
    rows = {
        "data": "; ".join(itertools.starmap(_source, config.data.sources.to_dict().items())),
        "tokenizer": config.data.tokenizer.name,
        "images": f"{config.model.image.image_size} pixels, patches of "
        f"{config.model.image.patch_size}",
        "length": f"{config.train.num_steps} steps"
        if config.train.num_steps is not None
        else f"{config.train.num_epochs} epochs",
        "batch": f"{config.train.batch_size}, computed in {config.model.dtype}",
        "learning rate": f"{config.optimizer.learning_rate:g} at a batch of "
        f"{config.optimizer.reference_batch_size}",
        "losses": f"{config.loss.kind}; {config.data.num_nouns} nouns a caption; "
        f"local alignment weighted {config.loss.local_weight:g}",
        "initial weights": Path(config.init_from or "random").name,
        "seed": config.seed,
    }
    return ["", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def _source(name: str, fields: Mapping[str, Any]) -> str:
    # Folders and buckets are the author's own business; a data set's name is not.
    where = fields.get("name") or fields.get("kind", "")
    return f"{name} ({where})" if where else name


def _metrics(origin: Origin | None) -> list[str]:
    evaluators = [] if origin is None else list(origin.config.evaluators)
    found = {} if origin is None else origin.metrics
    # Per class would be a page of its own.
    rows = [
        f"| {name.partition('/')[0]} | {name.partition('/')[2]} | {value:.4g} |"
        for name, value in found.items()
        if name.partition("/")[0] in evaluators and name.count("/") == 1
    ]
    if not rows:
        return ["", "None were measured with this checkpoint."]
    return ["", "| evaluated on | metric | value |", "|---|---|---|", *rows]


def _licence(licence: str) -> list[str]:
    stated = f"The weights: {licence}." if licence else "The weights: not stated by their author."
    return ["", f"{stated} The code of groupvit_jax: Apache-2.0. Training data keep their own."]


_ABOUT = (
    "GroupViT ([arXiv 2202.11094](https://arxiv.org/abs/2202.11094)) learns semantic segmentation "
    "from image-caption pairs, without masks: its vision transformer merges patches into groups, "
    "and a contrastive loss against the captions names them. Written by groupvit_jax."
)
_USE_HERE = """
With groupvit_jax, which segments as published:

```python
from groupvit_jax import Segmenter

segmenter = Segmenter.from_pretrained("path/to/this/folder")
result = segmenter("photo.jpg", ["dog", "grass", "frisbee"])
result.overlay()
```"""
_OUTPUTS = """
outputs = model(**inputs)
outputs.logits_per_image, outputs.image_embeds, outputs.text_embeds
```

Its `output_segmentation` lacks the background and the top classes of the published protocol.
"""
_USE_THERE = (
    """
With transformers:

```python
from transformers import AutoImageProcessor, AutoTokenizer, GroupViTModel

folder = "path/to/this/folder"
model = GroupViTModel.from_pretrained(folder)
images = AutoImageProcessor.from_pretrained(folder)(images=photo, return_tensors="pt")
texts = AutoTokenizer.from_pretrained(folder)(
    ["a photo of a dog"], padding=True, truncation=True, return_tensors="pt"
)
inputs = {"pixel_values": images["pixel_values"], "input_ids": texts["input_ids"]}"""
    + _OUTPUTS
)
_USE_THERE_WITHOUT_TOKENIZER = (
    """
With transformers; `ids` are encoded with `tokenizer.model` and sentencepiece, in rows of
start, text and end, padded with 0:

```python
from transformers import AutoImageProcessor, GroupViTModel

folder = "path/to/this/folder"
model = GroupViTModel.from_pretrained(folder)
images = AutoImageProcessor.from_pretrained(folder)(images=photo, return_tensors="pt")
inputs = {"pixel_values": images["pixel_values"], "input_ids": ids}"""
    + _OUTPUTS
)
