"""Latent diffusion's text-to-image model as a folder of diffusers: its own text encoder under their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.autoencoders.kl import KL
from sfumato.checkpoints import sd_unet_config, sd_unet_keys, vae_keys
from sfumato.checkpoints.assembly import Assembly, lenient, under
from sfumato.checkpoints.diffusers_config import refuse_others, vae_from_config, vae_to_config
from sfumato.checkpoints.diffusers_files import piece_of, read_json, write_json, write_part
from sfumato.checkpoints.scheduler_config import model_from_config, to_config, walk_from_config
from sfumato.checkpoints.translation import Row, to_theirs, translated
from sfumato.conditioners.text_small import TextSmall
from sfumato.core.errors import CheckpointCorrupt, InvalidInput
from sfumato.encoders.word_piece import SPECIAL, WordPiece
from sfumato.model import Model
from sfumato.networks.sd_unet import SDUNet
from sfumato.spaces.latent import Latent

PIPELINE = "LDMTextToImagePipeline"

_PARTS = {
    "bert": ("LDMBertModel",),
    "scheduler": None,
    "tokenizer": ("BertTokenizer", "BertTokenizerFast"),
    "unet": ("UNet2DConditionModel",),
    "vqvae": ("AutoencoderKL",),
}
_DONE: dict[str, Any] = {"activation_function": "gelu", "model_type": "ldmbert", "scale_embedding": False}
_READ = (
    "d_model encoder_attention_heads encoder_ffn_dim encoder_layers head_dim max_position_embeddings "
    "vocab_size"
)
_IDLE = (
    "activation_dropout architectures attention_dropout classifier_dropout dropout dtype encoder_layerdrop "
    "init_std num_hidden_layers pad_token_id torch_dtype transformers_version use_cache"
)
_OUTER = {
    "token_emb": "model.embed_tokens",
    "pos_emb.emb": "model.embed_positions",
    "norm": "model.layer_norm",
    "to_logits": "to_logits",
}
_HALVES: tuple[dict[str, str], ...] = (
    {
        "0": "self_attn_layer_norm",
        "1.to_q": "self_attn.q_proj",
        "1.to_k": "self_attn.k_proj",
        "1.to_v": "self_attn.v_proj",
        "1.to_out": "self_attn.out_proj",
    },
    {"0": "final_layer_norm", "1.net.0.0": "fc1", "1.net.2": "fc2"},
)
"""Inside a layer, of whose attention and feed-forward latent diffusion counts each as one."""


def report(root: Path, index: Mapping[str, Any], variant: str) -> Assembly:
    """What such a folder is found to be; see `diffusers.report`, which finds it."""
    for name, classes in _PARTS.items():
        held = index.get(name)
        if not isinstance(held, list) or (classes and held[-1] not in classes):
            raise InvalidInput(f"a {name} {held!r} is not read", where=f"model_index.json.{name}")
    refuse_others(index, "model_index.json", {}, tuple(_PARTS))
    configs = {
        name: read_json(root / name / f"{'scheduler_' * (name == 'scheduler')}config.json")
        for name in _PARTS
        if name != "tokenizer"
    }
    network = sd_unet_config.from_config(configs["unet"])
    autoencoder, scale, shift = vae_from_config(configs["vqvae"])
    process, prediction = model_from_config(configs["scheduler"])
    refuse_others(configs["bert"], "bert.config", _DONE, (*_READ.split(), *_IDLE.split()))
    encoder = _encoder(configs["bert"], _words(root / "tokenizer"))
    factor = 2 ** (len(autoencoder["multipliers"]) - 1)
    description = {
        "network": network,
        "process": process,
        "prediction": prediction,
        "time_input": "index",
        "conditioner": {"name": "text_small", "encoder": encoder},
        "space": {
            "name": "latent",
            "channels": network["out_channels"],
            "multiple": 2 ** (len(network["multipliers"]) - 1),
            "scale": scale,
            "shift": shift,
            "autoencoder": autoencoder,
        },
    }
    pieces = (
        piece_of(root, "unet", under("network.", lenient(sd_unet_keys.from_diffusers)), variant),
        piece_of(root, "vqvae", under("space.autoencoder.", lenient(vae_keys.from_diffusers)), variant),
        piece_of(root, "bert", under("conditioner.encoder.", _text), variant),
    )
    side = configs["unet"].get("sample_size")
    card = {
        "name": root.name,
        **walk_from_config(configs["scheduler"]),
        "guidance": [{"name": "classifier_free", "scale": 5.0}],
        **({"size": [side * factor] * 2} if isinstance(side, int) else {}),
    }
    return Assembly("latent diffusion, captions", root, description, pieces, card)


def write(model: Model, root: Path) -> None:
    """Write a model of captions as such a folder; see `diffusers.write`, which asks for it.

    Raises:
        InvalidInput: a model that such a folder cannot say.
    """
    text, network, space = model.conditioner, model.denoiser.network, model.space
    assert isinstance(text, TextSmall)
    encoder, autoencoder = text.encoder, getattr(space, "autoencoder", None)
    if not (isinstance(network, SDUNet) and isinstance(space, Latent) and isinstance(autoencoder, KL)):
        raise InvalidInput("diffusers has no such model of captions", where="model", do="save it natively")
    words = encoder.tokenizer.vocabulary
    more = text.pooled or type(text) is not TextSmall
    if more or encoder.masked or not encoder.logits or encoder.length != 77:
        raise InvalidInput("diffusers has no such text encoder", where="conditioner", do="save it natively")
    places = model.card.get("size", 256)
    places = (places if isinstance(places, int) else places[0]) // space.factor
    ours = network.state_dict()
    config = {**sd_unet_config.to_config(network), "sample_size": places}
    write_part(root / "unet", config, to_theirs(sd_unet_keys.table(ours), ours))
    latents = autoencoder.state_dict()
    config = vae_to_config(autoencoder, space.scale, space.shift)
    write_part(root / "vqvae", config, to_theirs(vae_keys.table(latents), latents))
    told = encoder.state_dict()
    bert = {
        **_DONE,
        "architectures": ["LDMBertModel"],
        "d_model": encoder.width,
        "encoder_attention_heads": encoder.heads,
        "encoder_ffn_dim": 4 * encoder.width,
        "encoder_layers": encoder.depth,
        "head_dim": encoder.dim_head,
        "max_position_embeddings": encoder.length,
        "vocab_size": len(told["token_emb.weight"]),
    }
    write_part(root / "bert", bert, to_theirs(_table(told), told), "model")
    write_json(root / "tokenizer" / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    (root / "tokenizer" / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    scheduler = to_config(model.process, model.denoiser.prediction, model.card)
    write_json(root / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": PIPELINE,
        "bert": ["latent_diffusion", "LDMBertModel"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "tokenizer": ["transformers", "BertTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vqvae": ["diffusers", "AutoencoderKL"],
    }
    # Last, so that a folder without it was not written to the end.
    write_json(root / "model_index.json", index)


def _encoder(config: Mapping[str, Any], words: list[str]) -> dict[str, Any]:
    width = config.get("d_model", 1280)
    if config.get("encoder_ffn_dim", 5120) != 4 * width:
        raise InvalidInput("another text encoder", where="bert.config.encoder_ffn_dim")
    return {
        "name": "text_small",
        "tokenizer": {"name": "word_piece", "vocabulary": words},
        "width": width,
        "depth": config.get("encoder_layers", 32),
        "heads": config.get("encoder_attention_heads", 8),
        "dim_head": config.get("head_dim", 64),
        "length": config.get("max_position_embeddings", 77),
        "masked": False,
        "vocabulary": config.get("vocab_size", 30522),
        "logits": True,
    }


def _words(folder: Path) -> list[str]:
    """The vocabulary of a tokenizer's folder, in the order of its ids."""
    if (folder / "vocab.txt").is_file():
        return list(WordPiece.read(folder).vocabulary)
    try:
        table: dict[str, int] = read_json(folder / "tokenizer.json")["model"]["vocab"]
        words = sorted(table, key=lambda word: table[word])
        if [table[word] for word in words] != list(range(len(words))) or not {*SPECIAL} <= table.keys():
            raise KeyError("ids")
    except (KeyError, TypeError) as error:
        raise CheckpointCorrupt(f"no vocabulary of BERT ({error!r})", where=str(folder)) from None
    return words


def _text(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text encoder's tensors under our names; others as they are, for reports to tell."""
    layers = {
        int(n.split(".")[2]) for n in theirs if n.startswith("model.layers.") and n.split(".")[2].isdigit()
    }
    names = [f"{outer}.{kind}" for outer in _OUTER for kind in ("weight", "bias")]
    names += [
        f"attn_layers.layers.{2 * layer + half}.{inner}.{kind}"
        for layer in layers
        for half, inside in enumerate(_HALVES)
        for inner in inside
        for kind in ("weight", "bias")
    ]
    return translated(_table(names), theirs)


def _table(ours: Iterable[str]) -> list[Row]:
    rows = []
    for name in ours:
        module, _, kind = name.rpartition(".")
        if module in _OUTER:
            theirs = _OUTER[module]
        else:
            number, inner = module.removeprefix("attn_layers.layers.").split(".", 1)
            layer, half = divmod(int(number), 2)
            theirs = f"model.layers.{layer}.{_HALVES[half][inner]}"
        rows.append(Row(name, (f"{theirs}.{kind}",)))
    return rows
