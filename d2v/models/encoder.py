"""D2vModel: one frontend per modality and one trunk.

B samples, M masks per sample, N = B * M rows, T content tokens, K visible tokens, E extra tokens, D width, H heads.
"""

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import guard_torch_init_functions

from d2v import plugins
from d2v.models.configuration import D2vConfig
from d2v.models.states import watched
from d2v.models.transformer import Attention, Trunk, attention_bias
from d2v.models.trunk_config import TrunkConfig
from d2v.protocols import Frontend
from d2v.types import Features, Mask, View

ATTENTION = ("sdpa", "eager")  # what attn_implementation may be; the first where nothing is said

# What every frontend has; `sources` and `source_dim` are asked for by one method alone.
OF_FRONTENDS = [part for part in (*Frontend.__annotations__, *vars(Frontend)) if not part.startswith(("_", "source"))]


class D2vPreTrainedModel(PreTrainedModel):
    """What transformers asks of the encoder and of the task models alike."""

    config_class = D2vConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["PostNormBlock", "PreNormBlock"]
    config: D2vConfig
    if TYPE_CHECKING:  # transformers' own, which type checkers cannot read
        to: Callable[..., Any]

    def set_attn_implementation(self, attn_implementation: Any, *_: Any, **__: Any) -> None:
        """sdpa: torch's fused attention; eager: matrix products and a softmax. ValueError: another."""
        self.config._attn_implementation_internal = self._check_and_adjust_attn_implementation(attn_implementation)
        for module in self.modules():
            if isinstance(module, Attention):
                module.eager = self.config._attn_implementation == "eager"

    def _check_and_adjust_attn_implementation(self, attn_implementation: Any, *_: Any, **__: Any) -> str:
        """In place of transformers' own, which sends users of other implementations to the Hub."""
        if attn_implementation not in (None, *ATTENTION):
            raise ValueError(f"attn_implementation is {attn_implementation!r}; this model has {', '.join(ATTENTION)}")
        return attn_implementation or ATTENTION[0]


class D2vModel(D2vPreTrainedModel):
    """The encoder: embed, hide, add positions, take what is kept, run the blocks."""

    # of D2vForAlignment, whose encoder is read without them
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^projections\."]

    def __init__(self, config: D2vConfig):
        """ValueError: no frontend, an unknown modality, a field that the modality or the trunk does not have."""
        super().__init__(config)
        if not config.frontends:
            raise ValueError("a D2vConfig needs at least one frontend, e.g. frontends={'<modality>': {...}}")
        trunk = build_config(TrunkConfig, config.trunk, "trunk")
        self.frontends: Any = nn.ModuleDict()  # each a d2v.protocols.Frontend
        self.input_names = {}
        for name, fields in config.frontends.items():
            frontend = _frontend(name, fields, trunk)
            self.frontends[key_of(name)] = frontend
            self.input_names[name] = tuple(inspect.signature(frontend.embed).parameters)
        self.trunk = Trunk(trunk, list(self.frontends))
        self.set_attn_implementation(self.config._attn_implementation)
        self.main_input_name = next(frontend.main_input for frontend in self.frontends.values())  # pipelines ask for it
        self.post_init()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Each part fills its own weights; what `from_pretrained` has loaded stays.

        In place of transformers' walk over modules, which passes over a module that has no parameters of its own, such
        as the trunk.
        """
        with guard_torch_init_functions():
            for part in (self.trunk, *self.frontends.values()):
                part.init_weights()

    def begin_with(self, modality: str, samples: Any) -> str:
        """A new encoder takes from a run's Samples what its frontend's settings ask for; what that was, or ""."""
        begin = getattr(self.frontend(modality), "begin_with", None)
        return "" if begin is None else begin(samples)

    def frontend(self, modality: str) -> Any:
        """The frontend of a modality, a module that is a d2v.protocols.Frontend. ValueError: this model has none."""
        if key_of(modality) not in self.frontends:
            raise ValueError(f"this model reads {', '.join(self.config.frontends)}, not {modality!r}")
        return self.frontends[key_of(modality)]

    def view(self, first: View | Tensor | None = None, /, **inputs: Tensor | None) -> View:
        """The View of raw inputs given by Hugging Face's names, or of one tensor without a name; a View stays as it is.

        What is None was not given. ValueError: no frontend takes them.
        """
        given = {name: value for name, value in inputs.items() if value is not None}
        if isinstance(first, Tensor):
            if len(self.config.frontends) > 1:
                raise ValueError(
                    f"this model reads {', '.join(self.config.frontends)}: name the tensor, {self._takes()}"
                )
            given = {self.main_input_name: first, **given}
        elif first is not None:
            if given:
                raise ValueError(f"a View holds all inputs; beside it there is {', '.join(given)}")
            return first
        for name in self.config.frontends:
            frontend = self.frontend(name)
            if frontend.main_input in given:
                unknown = [other for other in given if other not in self.input_names[name]]
                if unknown:
                    raise ValueError(f"{unknown[0]} is no input of this model: {', '.join(self.input_names[name])}")
                return View(name, given, frontend.padding(**given))
        raise ValueError(f"this model takes {self._takes()}; it was given {', '.join(given) or 'nothing'}")

    def _takes(self) -> str:
        return ", ".join(frontend.main_input for frontend in self.frontends.values())

    def embed(self, view: View) -> Tensor:
        """Local features before anything is hidden, (B, T, D)."""
        return self.frontend(view.modality).embed(**view.inputs)

    def forward(
        self,
        view: View | Tensor | None = None,
        mask: Mask | Tensor | None = None,
        *,
        tokens: Tensor | None = None,
        layers: str = "none",
        first: int = 0,
        only: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Features of a view, or of raw inputs by Hugging Face's names (`pixel_values=...`; `input_ids,
        attention_mask`).

        `tokens` (B, T, D) replace `embed`, `layers` and `only`: see Trunk. return_dict=False: see Features.to_tuple.
        ValueError: `only` (n,) together with `mask.keep`, which leaves other tokens; inputs that no frontend takes.
        """
        return_dict = inputs.pop("return_dict", None)
        if isinstance(mask, Tensor):
            mask, inputs["attention_mask"] = None, mask
        view = self.view(view, **inputs)
        hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        attentions = self.config.output_attentions if output_attentions is None else output_attentions
        run = partial(self._features, view, mask, tokens=tokens, layers=layers, first=first, only=only)
        if not hidden and not attentions:
            features = run()
        else:
            with watched(self.trunk) as states:
                features = run()
            num_extra = 0 if features.extra is None else features.extra.shape[1]
            ends = tuple(state[:, num_extra:] for state in states.hidden) or (features.x,)
            features = features._replace(
                hidden_states=ends if hidden else None, attentions=states.attentions if attentions else None
            )
        if self.config.return_dict if return_dict is None else return_dict:
            return features
        return features.to_tuple()

    def _features(
        self,
        view: View,
        mask: Mask | None,
        *,
        tokens: Tensor | None,
        layers: str,
        first: int,
        only: Tensor | None,
    ) -> Features:
        """As forward. ValueError: `only` together with `mask.keep`."""
        if only is not None and mask is not None and mask.keep is not None:
            raise ValueError("only= picks from all tokens, mask.keep leaves some out: give one of them")
        frontend: Frontend = self.frontend(view.modality)
        x: Any = self.embed(view) if tokens is None else tokens  # (B, T, D)
        padding, keep = view.padding, None if mask is None else mask.keep
        # hidden tokens that are left out matter only to positions that are computed from all tokens
        if mask is not None and (keep is None or frontend.positions_read_tokens):
            x, padding = _repeated(x, len(mask.hidden)), _repeated(padding, len(mask.hidden))  # (N, T, D), (N, T)
            x = frontend.hide(x, mask.hidden, **view.inputs)
        if padding is not None and frontend.zero_padding:
            x = x.masked_fill(padding[..., None], 0)
        positions = frontend.positions(x, padding)
        if positions is not None:
            x = x + positions
        num_tokens = x.shape[1]
        if keep is not None:
            x, padding = _kept(x, keep), _kept(padding, keep)  # (N, K, D), (N, K)
        extra = frontend.extra()
        num_extra = 0 if extra is None else extra.shape[1]
        if extra is not None:
            # x.shape[0]: a graph that is exported keeps it free, len(x) would fix it
            x = torch.cat([extra.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)  # (N, E + K, D)
            padding = None if padding is None else nn.functional.pad(padding, (num_extra, 0))
        bias = attention_bias(padding, frontend.bias(num_tokens, keep))
        if only is not None and num_extra:
            only = only + (only // num_tokens + 1) * num_extra
        x, results = self.trunk(x, bias, layers=layers, first=first, only=only, modality=key_of(view.modality))
        if only is not None:
            return Features(x, results)
        content = [result[:, num_extra:] for result in results]
        return Features(x[:, num_extra:], content, x[:, :num_extra] if num_extra else None)


def with_frontend(encoder: D2vModel, modality: str, settings: dict[str, Any]) -> D2vModel:
    """A copy, of which the frontend of a modality has other settings: those that change no weight, and `image_size`.

    ValueError, RuntimeError: there is no such frontend, or the weights cannot be made to fit.
    """
    config: Any = copy.deepcopy(encoder.config)
    config.frontends[modality] |= settings
    with torch.random.fork_rng(devices=[]):  # a run in progress would miss the numbers that building draws
        other = D2vModel(config)
    other.trunk.load_state_dict(encoder.trunk.state_dict())
    for name in config.frontends:
        new, old = other.frontend(name), encoder.frontend(name)
        if "image_size" in settings and name == modality:
            new.resize_from(old)
        else:
            new.load_state_dict(old.state_dict())
    return other.to(dtype=encoder.dtype).train(encoder.training)


def of_modalities(encoder: D2vModel, names: list[str]) -> D2vModel:
    """The encoder without the frontends of other modalities; all that it holds is the other's, no copy."""
    part = copy.copy(encoder)
    part._modules = dict(encoder._modules)
    part.frontends = nn.ModuleDict({key_of(name): encoder.frontend(name) for name in names})
    part.config = copy.deepcopy(encoder.config)
    part.config.frontends = {name: encoder.config.frontends[name] for name in names}
    part.input_names = {name: encoder.input_names[name] for name in names}
    part.main_input_name = encoder.frontend(names[0]).main_input
    return part


def hidden_at(mask: Mask) -> Tensor:
    """Which tokens of (N, T) are hidden, (n,) numbers row * T + place: those that came with the mask, or found now."""
    return mask.hidden_at if mask.hidden_at is not None else _found(mask.hidden, mask.host)


def chosen_at(mask: Mask) -> Tensor:
    """Likewise those that are predicted: in BERT's variant the replaced and kept words too."""
    if mask.chosen is None:
        return hidden_at(mask)
    return mask.chosen_at if mask.chosen_at is not None else _found(mask.chosen)


def _found(where: Tensor, host: Tensor | None = None) -> Tensor:
    known = where if host is None else host
    return known.flatten().nonzero()[:, 0].to(where.device, non_blocking=True)


def _repeated(x: Tensor | None, num_rows: int) -> Tensor | None:
    """(B, ...) -> (N, ...), the M rows of a sample next to each other."""
    return x if x is None or len(x) == num_rows else x.repeat_interleave(num_rows // len(x), dim=0)


def _kept(x: Tensor | None, keep: Tensor) -> Tensor | None:
    """(N, T, ...) or (B, T, ...) -> (N, K, ...): the tokens `keep` (N, K) of each row, or of the row's sample."""
    if x is None:
        return None
    row = torch.arange(len(keep), device=x.device) // (len(keep) // len(x))  # (N,)
    index = row[:, None] * x.shape[1] + keep  # (N, K)
    return x.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, keep.shape)


def _frontend(name: str, fields: dict, trunk: TrunkConfig) -> Any:
    """A modality's frontend. ValueError: a setting that it does not have, a trunk behind a whole encoder, or a modality
    that is neither d2v's nor imported."""
    modality = plugins.trusted("d2v.modalities", name)
    config = build_config(modality.FrontendConfig, fields, name)
    frontend = modality.Frontend(config, trunk.dim, trunk.num_heads)
    if missing := [part for part in OF_FRONTENDS if part not in dir(frontend)]:
        raise ValueError(f"the Frontend of {name} lacks {', '.join(missing)}: see Frontend in d2v/protocols.py")
    if frontend.is_encoder and (trunk.depth or trunk.input_norm):
        given = f"model.trunk.depth is {trunk.depth} and model.trunk.input_norm {str(trunk.input_norm).lower()}"
        raise ValueError(f"the frontend of {name} is a whole encoder: {given}; they must be 0 and false")
    return frontend


def key_of(modality: str) -> str:
    """The name of a frontend in a state dict: the last part of its modality's, as a dot would split the key."""
    return modality.rpartition(".")[2]


def build_config(kind: type, fields: dict, where: str) -> Any:
    """`kind` of these fields. ValueError: it has no such field."""
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"config of {where}: {error}") from None
