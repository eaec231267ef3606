"""Build a model piece by piece, each given away as soon as its weights are final (ZeRO-3).

No rank ever holds the whole model, and the weights are those of the plain build, draw for draw: how
a run is executed is no part of its identity. transformers draws twice for a parameter, once in the
module's constructor and again in `_init_weights`, which overwrites the first (its `from_pretrained`
relies on that), may come back to a parameter (GPT-2 draws the projections of its residual paths
anew), and lies in between the constructors of other modules. So the model's own code is run twice:

    trace   on the meta device: which parameters each step of the initialisation touches
    build   on the CPU: what a constructor drew is dropped when the next module is made; a step
            gets real memory for the parameters that it touches, and a parameter is given away
            after the last step that touches it

A step is one call of `PreTrainedModel._initialize_weights`, which is one module's.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

GiveAway = Callable[[Sequence[nn.Parameter]], None]
"""Takes parameters with their final weights; all ranks call it in the same order."""


def build_in_pieces(make: Callable[[], PreTrainedModel], give_away: GiveAway) -> PreTrainedModel:
    """What `make` builds from torch's generator, with all parameters given away.

    Raises:
        ValueError: the initialisation of this model leaves weights undefined.
    """
    builder = _Builder(_trace(make), give_away)
    with _observed(builder.register, builder.initialize):
        model = make()
    builder.finish()
    return model


def build_empty(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """What `make` builds, without weights and their memory; the shapes are right."""

    def register(module: nn.Module, parameter: nn.Parameter) -> nn.Parameter:
        _empty(parameter)
        return parameter

    with no_init_weights(), _observed(register, lambda model, module, plain: plain()):
        model = make()
    model.tie_weights()
    return model


Register = Callable[[nn.Module, nn.Parameter], nn.Parameter]
Initialize = Callable[[PreTrainedModel, nn.Module, Callable[[], None]], None]


@contextlib.contextmanager
def _observed(register: Register, initialize: Initialize) -> Iterator[None]:
    """Pass on what modules register as a parameter, and each step of the initialisation."""
    plain_register = nn.Module.register_parameter
    plain_initialize = PreTrainedModel._initialize_weights

    def register_parameter(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        plain_register(self, name, param if param is None else register(self, param))

    def initialize_weights(self: PreTrainedModel, module: nn.Module, *arguments: Any) -> None:
        initialize(self, module, lambda: plain_initialize(self, module, *arguments))

    nn.Module.register_parameter = register_parameter
    PreTrainedModel._initialize_weights = initialize_weights
    try:
        yield
    finally:
        nn.Module.register_parameter = plain_register
        PreTrainedModel._initialize_weights = plain_initialize


def _trace(make: Callable[[], PreTrainedModel]) -> list[set[int]]:
    """The parameters that each step touches, by the order in which modules register them."""
    originals: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    numbers: dict[int, int] = {}
    steps: list[set[int]] = []

    def register(module: nn.Module, parameter: nn.Parameter) -> nn.Parameter:
        if id(parameter) in numbers:  # tied
            return parameter
        if id(parameter) not in originals:
            twin = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
            originals[id(parameter)] = parameter, twin  # the original is kept for its id
            _empty(parameter)
            numbers[id(twin)] = len(numbers)
        return originals[id(parameter)][1]

    def initialize(model: PreTrainedModel, module: nn.Module, plain: Callable[[], None]) -> None:
        with _Touches(numbers) as touches:
            plain()
        steps.append(touches.found)

    with torch.random.fork_rng(devices=[]), _observed(register, initialize):
        make()
    return steps


class _Touches(TorchFunctionMode):
    """Notes the parameters that functions of torch are called with.

    Args:
        numbers: of the parameters, by id.
    """

    def __init__(self, numbers: dict[int, int]) -> None:
        super().__init__()
        self._numbers = numbers
        self.found: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            if id(value) in self._numbers:
                self.found.add(self._numbers[id(value)])
        return func(*args, **kwargs)


class _Builder:
    """The second pass.

    Args:
        steps: the parameters that each step touches.
    """

    def __init__(self, steps: list[set[int]], give_away: GiveAway) -> None:
        self._steps, self._give_away = steps, give_away
        self._last = {number: step for step, touched in enumerate(steps) for number in touched}
        self._step = 0
        self._parameters: list[nn.Parameter] = []
        self._known: set[int] = set()
        self._newest: nn.Module | None = None
        self._fresh: list[int] = []

    def register(self, module: nn.Module, parameter: nn.Parameter) -> nn.Parameter:
        if id(parameter) not in self._known:
            if module is not self._newest:
                self._drop_fresh()
                self._newest = module
            self._fresh.append(len(self._parameters))
            self._known.add(id(parameter))
            self._parameters.append(parameter)
        return parameter

    def initialize(
        self, model: PreTrainedModel, module: nn.Module, plain: Callable[[], None]
    ) -> None:
        self._drop_fresh()
        touched = [(number, self._parameters[number]) for number in self._steps[self._step]]
        for _, parameter in touched:
            if not parameter.is_contiguous():
                parameter.data = torch.full(parameter.shape, torch.nan, dtype=parameter.dtype)
        plain()
        final = [each for number, each in touched if self._last[number] == self._step]
        for parameter in final:
            if bool(parameter.isnan().any()):
                raise ValueError(
                    f"ZeRO-3 cannot start model_type {model.config.model_type!r} from random "
                    f"weights: its initialisation does not set all of a {type(module).__name__}; "
                    "use another ZeRO stage"
                )
        self._give_away(final)
        self._step += 1

    def finish(self) -> None:
        self._drop_fresh()
        assert self._step == len(self._steps), "the two passes differ"

    def _drop_fresh(self) -> None:
        """Drop what the newest module's constructor drew; what no step will touch is final."""
        for number in self._fresh:
            if number in self._last:
                _empty(self._parameters[number])
        self._give_away([self._parameters[n] for n in self._fresh if n not in self._last])
        self._fresh.clear()


def _empty(parameter: nn.Parameter) -> None:
    """Leave a parameter its shape alone: one element that is all of them."""
    shape = parameter.shape
    parameter.data = torch.empty(1, dtype=parameter.dtype).expand(shape)
