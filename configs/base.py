"""The published recipe (arXiv 2202.11094) with every setting; the other configs change this one."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Return groupvit-small with the published optimisation and augmentation, without data."""
    config = ConfigDict()
    config.seed = 0
    # Or "segmentation": a segment head is trained with masks, docs/finetune.md.
    config.task = "contrastive"
    # A checkpoint to start from (not to resume): parameters only.
    config.init_from = ""
    # A plain ViT (DINO, MAE, CLIP, ...) that the image tower starts from, docs/pretrained.md.
    config.image_init_from = ""
    # A Hugging Face directory of a BERT, CLIP or SigLIP that the text tower starts from,
    # docs/pretrained.md.
    config.text_init_from = ""

    config.model = _model()
    config.loss = _loss()
    config.data = _data()
    # The task "segmentation" reads `data.sources` {kind: "benchmark" (benchmark, split, data_dir) |
    # "tfds" (name, split, data_dir, image, mask)} and augments by these.
    config.segmentation = dict(
        class_names=(),  # what the masks' values from 0 on stand for; 255 has no class
        min_scale=0.5,  # of the shorter side over the crop's, uniform
        max_scale=2.0,
        flip=0.5,
        jitter=0.4,  # 1: brightness, contrast and saturation change by up to 90 %
    )
    config.train = dict(
        batch_size=4096,
        # Images that are encoded at once over all devices, for batches that do not fit their
        # memory (docs/scale.md); the same step, a third slower. None: the whole batch.
        micro_batch_size=placeholder(int),
        num_epochs=30.0,
        num_steps=placeholder(int),  # takes precedence over num_epochs
    )
    config.optimizer = _optimizer()
    config.parallel = _parallel()
    config.checkpoint = dict(
        every_steps=1000,
        keep_last=3,
        best_metric="",  # e.g. "retrieval/image_to_text_r1"; the best checkpoint by it is kept too
        best_mode="max",  # or "min"
    )
    config.log_every_steps = 50
    config.profile_steps = (0, 0)  # trace from the first to the second step
    config.tensorboard = True  # event files, where TensorFlow is installed
    config.wandb_project = ""
    config.wandb_group = ""  # of runs; launch.sweep sets it to the sweep's name
    # Name -> {kind: "retrieval" | "classification" | "segmentation", every_steps: int, ...}
    config.evaluators = ConfigDict()
    return config


def _model() -> ConfigDict:
    """Return `config.model` of the published model."""
    model = ConfigDict()
    model.image = dict(
        image_size=224,
        patch_size=16,
        width=384,
        num_heads=6,
        mlp_ratio=4.0,
        depths=(6, 3, 3),
        num_group_tokens=(64, 8, 0),
        num_output_groups=(64, 8),
        width_factors=(),  # width of each stage over `width`; () for the same everywhere
        position_embedding="learned",  # or "sincos"
        assignment="gumbel",  # or "hard" (no noise), "soft"
        temperature=1.0,
        assign_eps=1.0,
        init_std=0.02,  # of the weights of stages; a narrow model needs about width**-0.5
        drop_path_rate=0.1,
        # What plain ViTs have otherwise (docs/pretrained.md).
        patch_norm=True,  # LayerNorm behind the patch embedding
        pre_norm=False,  # LayerNorm before the first block
        activation="gelu",  # or "quick_gelu", "gelu_tanh"
        norm_eps=1e-5,
    )
    model.text = dict(
        kind="clip",  # or "bert", "siglip": bidirectional (docs/text.md)
        vocab_size=49408,
        context_length=77,
        width=256,
        num_layers=12,
        num_heads=4,
        mlp_ratio=4.0,
        end_of_text_id=49407,
    )
    model.projector = dict(hidden_dim=4096, output_dim=256)
    model.initial_temperature = 0.07
    model.share_logit_scale = False
    model.initial_logit_bias = placeholder(float)  # -10 for the sigmoid loss
    # How blocks are computed, with the same values (docs/scale.md).
    model.kernels = "auto"  # fused blocks on TPUs, cuDNN's attention on GPUs; or "plain"
    model.scan_layers = False  # True: one compiled block a stage
    model.remat = "none"  # or "dots", "blocks": less memory for more computation
    model.fused_attention = False  # True: attention of many tokens in one kernel, on TPUs too
    model.dtype = "bfloat16"  # of the computation; parameters and statistics are float32
    return model


def _loss() -> ConfigDict:
    """Return `config.loss` with the published losses."""
    loss = dict(
        kind="softmax",  # or "sigmoid"
        global_weight=1.0,
        multi_label_weight=1.0,
        local_weight=0.0,  # of the alignment of segments with words, docs/losses.md
        local_words="tokens",  # of the caption; or "prompts"
        local_seekers="both",  # or "words": segments need not resemble a word
        mixed_weight=0.0,  # of the patches of mixed images, docs/losses.md
        mixed_cell=2,  # side of the squares that are mixed, in patches
        distill_weight=0.0,  # of crops taught by the average, with optimizer.ema_decay
        pooled_weight=0.0,  # of images and texts pooled by their most active parts
        pooled_segments=5,  # a channel of an image is the mean of this many segments
        superpixel_weight=0.0,  # of superpixels' patches in the same groups, docs/losses.md
        noun_bank_weight=0.0,  # of images and the frozen nouns of data.noun_bank
        # Whether equal texts of different images in a batch count as "negatives", as published, or
        # as "positives".
        identical_texts="negatives",
        exchange="all_gather",  # how devices see each other's embeddings; or "ring"
        block_size=1024,  # logits are computed against this many images and their texts at once
    )
    return ConfigDict(loss)


def _data() -> ConfigDict:
    """Return `config.data`: sources, texts, augmentation, reading."""
    data = ConfigDict()
    # Name -> {kind: "webdataset" (pattern) | "tfds" (name, split, data_dir)}, each maybe with a
    # weight; without weights several sets are mixed by size. exchange_captions=True gives images
    # each other's captions: the control, which can't learn from what captions say.
    data.sources = ConfigDict()
    # "clip", or "sentencepiece" (path of a .model), or "wordpiece" (path of a vocab.txt)
    data.tokenizer = dict(name="clip", path="")
    data.num_nouns = 3  # K; 0 switches the multi-label loss off
    # The published drawing; "words" (each once, real words, alt text tagged in lower case) or
    # "phrases" (docs/text.md).
    data.noun_kind = "tagged_words"
    # A .npz of frequent nouns with frozen embeddings, from launch.prepare (docs/losses.md).
    data.noun_bank = ""
    # Tokens of the row that an image's texts share, at least the context length. Real captions and
    # 3 prompts take about 45; a prompt that does not fit becomes the caption (docs/text.md).
    data.packed_length = 80
    data.augment = dict(
        min_area=0.08,
        max_area=1.0,
        min_ratio=3 / 4,
        max_ratio=4 / 3,
        flip=0.5,
        num_ops=2,
        magnitude=9.0,
        magnitude_std=0.5,
        # Not in the published recipe: SimCLR (arXiv 2002.05709) has 0.2 of both on photos.
        hue=0.0,  # largest turn of the hues, as a share of the colour circle
        grayscale=0.0,  # probability that an image loses its colours
        random_erasing=0.25,
    )
    # Processes that decode and augment; None: one for each core of this process but one.
    data.num_workers = placeholder(int)
    data.prefetch = 2  # batches kept ready on the device
    data.max_broken_fraction = 0.01
    # Where tar indices are cached, a folder or a URL; beside the shards by default.
    data.index_dir = ""
    # Shards and sets on object stores are kept here whole as far as they fit, docs/storage.md.
    data.cache_dir = ""
    data.cache_gib = 100.0
    return data


def _optimizer() -> ConfigDict:
    """Return `config.optimizer` of the published recipe."""
    optimizer = dict(
        learning_rate=1.6e-3,
        reference_batch_size=4096,  # rates are scaled by batch_size / reference_batch_size
        scaled_rates="all",  # or "peak": the rates at both ends stay
        warmup_learning_rate=4e-6,
        final_learning_rate=4e-5,
        warmup_epochs=2.0,
        warmup_steps=placeholder(int),  # takes precedence over warmup_epochs
        update_lag=1,  # as published: update i has the rate of step i - 1
        weight_decay=0.05,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        clip_norm=5.0,
        # Decay of the parameters' moving average, such as 0.9999, which is evaluated, saved as the
        # model and exported in their place; 0 for none (docs/checkpoints.md).
        ema_decay=0.0,
        # (regex of parameters' paths, factor of the learning rate); the first match wins, without
        # one the factor is 1. With 0 they are frozen: neither gradients nor optimizer state.
        groups=(),
    )
    return ConfigDict(optimizer)


def _parallel() -> ConfigDict:
    """Return `config.parallel`: data parallel over all devices; rules for the other axes."""
    parallel = ConfigDict()
    parallel.mesh = dict(data=-1, fsdp=1, tensor=1)  # -1: the devices that remain
    # Of the gradients' sums over devices: "auto" is model.dtype, but float32 with micro-batches; or
    # "float32" (docs/scale.md).
    parallel.reduce_dtype = "auto"
    # First match wins; one entry of the spec per dimension.
    parallel.rules = (
        # One dimension is the number of group tokens, too few to divide.
        (r"(group_projector|mlp_inter)/", ()),
        (r"(attn/(qkv|q_proj|k_proj|v_proj)|fc1|linear_hidden)/kernel$", ("fsdp", "tensor")),
        (r"(attn/proj|fc2|linear_out)/kernel$", ("tensor", "fsdp")),
        # Over the vocabulary: sharded channels would shard the whole text tower that way.
        (r"token_embedding/embedding$", (("fsdp", "tensor"),)),
        (r".*", ()),
    )
    return parallel
