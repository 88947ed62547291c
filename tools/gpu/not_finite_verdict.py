"""Says in a line what the stages of a search found: the first tensor that is not finite, and what it depends on."""

from collections.abc import Iterable

# The stages that make a forward and a backward pass.
PASSES = (
    *("as it happened", "eager", "eager, again", "compiled"),
    *("eager, float32", "eager, without cuDNN", "eager, contiguous"),
)


def first_of(found: dict[str, dict]) -> str:
    """The verdict on what has been found so far; stages that failed or were left out say nothing."""
    weights = found.get("weights", {}).get("not finite")
    if weights:
        return f"weights: {next(iter(weights))}"
    for of in (_views, _embeddings, _loss, _gradients):
        said = of(found)
        if said:
            return said
    return "none, when made again" if "as it happened" in found else "none"


def _made(found: dict[str, dict]) -> dict[str, dict]:
    """The passes that came to their end."""
    return {name: found[name] for name in PASSES if "embeddings" in found.get(name, {})}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _views(found: dict[str, dict]) -> str:
    happened, again = found.get("as it happened", {}).get("views"), found.get("views", {})
    if not (happened or again.get("share")):
        return ""
    state = {None: "unknown", True: "finite", False: "not finite"}
    parts = {"the step's": happened, "made again": again.get("share")}
    said = ["views", *(f"{name} {state[None if part is None else part == 0]}" for name, part in parts.items())]
    shares = again.get("shares by backend", {})
    said += [f"not finite by {_listed(name for name, part in shares.items() if part.get('share'))}"] if shares else []
    if "first bad view" in again:
        said.append(f"first view {again['first bad view']['view']} at {again['first bad view']['pixel']}")
    return "; ".join(said)


def _embeddings(found: dict[str, dict]) -> str:
    made = _made(found)
    bad = [name for name, of in made.items() if of["embeddings"] > 0]
    if not bad:
        return ""
    parts = {name: found.get(name, {}) for name in ("compiled, module by module", "compiled without inductor")}
    said = []
    for name in bad:
        module = made[name].get("module")
        said.append(f"{name}: {f'output of {_named(module)}' if module else 'embeddings'}")
    for name, of in parts.items():
        if "embeddings" in of:
            off = of["first that is off"]
            what = f"output of {_named(of['module'])}" if of["module"] else "finite"
            said.append(f"{name}: {what}{f', off from {_named(off)} on' if off else ''}")
    return "; ".join(said) + f"; finite: {_listed(name for name in made if name not in bad)}"


def _named(module: dict) -> str:
    return f"{module['name']} ({module['kind']})"


def _loss(found: dict[str, dict]) -> str:
    bad = [name for name, of in _made(found).items() if of["embeddings"] == 0 and not of["loss is finite"]]
    kinds = {"": found.get("loss", {}), "compiled ": found.get("loss, compiled alone", {})}
    by: dict[str, bool] = {}
    for how, of in kinds.items():
        for entries in of.values():
            for name, entry in entries.items() if isinstance(entries, dict) else ():
                if isinstance(entry, dict) and "finite" in entry:
                    by[how + name] = by.get(how + name, True) and entry["finite"]
    wrong = [name for name, finite in by.items() if not finite]
    if not bad and not wrong:
        return ""
    right = [name for name, finite in by.items() if finite]
    return f"loss of finite embeddings: {_listed(bad)}; by {_listed(wrong)}; finite by {_listed(right)}"


def _gradients(found: dict[str, dict]) -> str:
    made = _made(found)
    bad = {name: of["gradients"][0] for name, of in made.items() if of.get("gradients")}
    if not bad:
        return ""
    said = "; ".join(f"{name}: gradient of {parameter}" for name, parameter in bad.items())
    return f"{said}; finite: {_listed(name for name in made if name not in bad)}"
