"""Networks by name: timm's, torchvision's, and those of a user's own code."""

import copy
import inspect
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from ..errors import UsageError
from ..trust import NO_CODE, named_code


def find_network(
    name: str,
    channels: int | None = None,
    drop_path: float = 0.0,
    model_args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A network with random weights by what a user calls it; nothing is downloaded.

    Args:
        name: a timm name (`resnet50`), `torchvision:NAME`, or `package.module:factory`, where `factory` is a module, or
            something that returns one when called; the current folder is searched too.
        channels: channels of the images, for timm networks; others take what they take.
        drop_path: stochastic depth rate, for timm networks; with 0, that of `model_args` or else none.
        model_args: further arguments of `timm.create_model`, of torchvision's builder or of the factory.

    Raises:
        UsageError: no such network (the nearest names are suggested), or one that does not take these arguments.
    """
    home, colon, factory = name.partition(":")
    if not colon or (home in NO_CODE and home != "torchvision"):
        return _timm(name, channels, drop_path, model_args or {})
    if drop_path:
        raise UsageError(f"drop_path is {drop_path}, which is for timm's networks; give {name} its own in model_args")
    if home == "torchvision":
        return _torchvision(factory, model_args or {})
    return _own(name, model_args or {})


def _torchvision(name: str, model_args: Mapping[str, Any]) -> nn.Module:
    from torchvision import models

    known = models.list_models()
    if name not in known:
        raise UsageError(f"network is 'torchvision:{name}', which torchvision does not know{_nearest(name, known)}")
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None  # else it would be downloaded
    if name in ("googlenet", "inception_v3"):  # side branches for training on labels, which pool to fixed maps
        options |= {"init_weights": True, "aux_logits": False}
    try:
        return models.get_model(name, **options | dict(model_args))
    except (TypeError, ValueError) as error:
        raise UsageError(f"network is 'torchvision:{name}', which cannot be built with {model_args}: {error}") from None


def _own(name: str, model_args: Mapping[str, Any]) -> nn.Module:
    network = named_code(name, "network")
    if isinstance(network, nn.Module) and model_args:
        raise UsageError(
            f"model_args is {dict(model_args)}, but {name!r} is a network already, not a function or class that "
            "builds one: leave model_args out, or name what builds it"
        )
    if not isinstance(network, nn.Module):
        try:
            network = network(**model_args)
        except TypeError as error:
            arguments = f"with {dict(model_args)}" if model_args else "without arguments"
            raise UsageError(f"network is {name!r}, which cannot be called {arguments}: {error}") from None
    if not isinstance(network, nn.Module):
        raise UsageError(f"network is {name!r}, which gives a {type(network).__name__}; expected a torch.nn.Module")
    return network


def check_module(network: object, argument: str) -> None:
    """Raise UsageError unless it is a module, not a class of them or a function that makes one."""
    if not isinstance(network, nn.Module):
        if isinstance(network, str):
            raise UsageError(f"{argument} is {network!r}: expected a torch.nn.Module, as timm.create_model builds one")
        what = f"the class {network.__name__}" if isinstance(network, type) else f"a {type(network).__name__}"
        raise UsageError(f"{argument} is {what}: expected a torch.nn.Module, built, as in Net() instead of Net")


def copied(network: nn.Module) -> nn.Module:
    """A copy of a network, also of one whose weights a hook computes (`torch.nn.utils.weight_norm`).

    Such a weight is a result of autograd, which Python cannot copy; it is computed anew at the next call.
    """
    computed = [
        (module, name, value)
        for module in network.modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and value.grad_fn is not None
    ]
    for module, name, value in computed:
        vars(module)[name] = value.detach()
    try:
        return copy.deepcopy(network)
    finally:
        for module, name, value in computed:
            vars(module)[name] = value


def _nearest(name: str, known: list[str]) -> str:
    nearest = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(nearest)}?" if nearest else ""


def _timm(name: str, channels: int | None, drop_path: float, model_args: Mapping[str, Any]) -> nn.Module:
    """Without a classifier."""
    import timm

    check_name(name)
    options: dict[str, Any] = {"num_classes": 0, **({"in_chans": channels} if channels else {}), **model_args}
    if drop_path:
        options["drop_path_rate"] = drop_path
    try:
        if "drop_path_rate" not in options:
            with suppress(TypeError):  # of a network without stochastic depth; FasterNets have some of their own accord
                return timm.create_model(name, pretrained=False, drop_path_rate=0.0, **options)
        return timm.create_model(name, pretrained=False, **options)
    except TypeError as error:
        if "drop_path_rate" in str(error) and drop_path:
            raise UsageError(
                f"drop_path is {drop_path}, but {name} has no stochastic depth; leave --drop-path out"
            ) from None
        raise UsageError(f"model is {name!r}, which cannot be built with {options}: {error}") from None
    except (OSError, RuntimeError, AssertionError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"model is {name!r}, which timm cannot build with {options}: {error}") from None


def check_name(name: str) -> None:
    """Raise UsageError, with the nearest names, unless timm knows this one."""
    import timm

    if not (timm.is_model(name.partition(".")[0]) or name.startswith(("local-dir:", "hf-hub:", "hf_hub:"))):
        nearest = get_close_matches(name.lower(), timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(nearest)}?" if nearest else "timm.list_models() names them all"
        raise UsageError(f"model is {name!r}, which timm does not know; {hint}")
