"""The layout of the schedule files that were released with the unified sampling framework, read as `Decisions`."""

from collections.abc import Mapping
from typing import Any

from diffsample.solvers.decisions import Decisions, Derivative, Relaxation, nearest


def from_published(found: Mapping[str, Any]) -> Decisions:
    """The schedule of a released file of USF: its dictionary, of plain numbers or anything that has `tolist`.

    The keys are timesteps, orders, prediction_types, start_points, derivative_types, corrector_types, afs. A file holds
    (dictionary, score); pass the dictionary. Multipliers of a U-Net's skip connections belong to the model: ones are
    accepted.

    Raises:
        TypeError: something else than a dictionary.
        ValueError: keys or names that are not of this layout, or `skip_coefficients` other than 1.

    >>> from_published({"timesteps": [1.0, 0.5, 0.1], "orders": [1, 1], "afs": "zero_x0",
    ...                 "prediction_types": ["noise_prediction", "data_prediction"]}).first
    'zero'
    """
    if not isinstance(found, Mapping):
        raise TypeError(f"from_published reads the dictionary of a released file, got {type(found).__name__}; a file "
                        f"holds (dictionary, score)")  # fmt: skip
    if not {"timesteps", "orders", "prediction_types"} <= set(found):
        raise ValueError(f"a released schedule has timesteps, orders and prediction_types, got {sorted(found)}")
    kinds = {f"{name}_prediction": name for name in ("noise", "data")} | {"dpmsolver_v3_prediction": "v3"}
    starts = {"no_afs": "call", "zero_x0": "zero", "average_x0": "mean"}
    skips = _plain(found.get("skip_coefficients")) or ()
    if any(value != 1 for value in skips):
        raise ValueError(f"skip_coefficients={skips} scale the skip connections of one U-Net and are no part of a "
                         f"solver; build them into the network and leave the key out")  # fmt: skip
    orders = _plain(found["orders"])
    points = _plain(found.get("start_points")) or [-1] * len(orders)
    entries = found.get("derivative_types") or [[]] * len(orders)
    correctors: list[Any] = found.get("corrector_types") or [{"type": "no_corrector"}] * len(orders)
    corrected = [entry["type"] != "no_corrector" for entry in correctors]
    relaxed = [entry["derivative_type"][0] if yes else {} for entry, yes in zip(correctors, corrected, strict=True)]
    return Decisions(
        times=_plain(found["timesteps"]),
        orders=orders,
        predictions=[_named(kinds, name) for name in found["prediction_types"]],
        starts=points,
        derivatives=[_published_step(*step) for step in zip(orders, points, entries, strict=True)],
        correctors=[_named({"no_corrector": "none", "pseudo": "pseudo", "implicit": "implicit"}, entry["type"])
                    for entry in correctors],
        first=_named(starts, found.get("afs", "no_afs")),
        corrector_orders=[int(entry["taylor_order"]) if yes else 0
                          for entry, yes in zip(correctors, corrected, strict=True)],
        corrector_relaxations=[_published_relaxation(entry) for entry in relaxed],
    )  # fmt: skip


def _published_step(order: int, start: int, entries: Any) -> tuple[Derivative, ...]:
    """The derivatives of a step; a list, or a dictionary from 1, and its points may be left to the default."""
    listed = [entries[k] for k in sorted(entries)] if isinstance(entries, Mapping) else entries
    if not listed:
        return nearest(order, start)
    found = []
    for entry in listed[: order - 1]:
        count = int(str(entry["estimate"]).rpartition("_")[2])
        points = _plain(entry.get("active_points")) or nearest(count + 1, start)[0].points
        found.append(Derivative(points, _published_relaxation(entry)))
    return tuple(found)


def _published_relaxation(entry: Mapping[str, Any]) -> Relaxation | None:
    names = {"dpmsolver-2": "bh2", "unipc-bh1": "bh1", "unipc-bh2": "bh2", "linear": "linear", "0.5exp": "half_exp",
             "-0.5exp": "minus_half_exp"}  # fmt: skip
    name, gamma = entry.get("relaxation"), float(entry.get("relaxation_coefficient") or 0.0)
    if name in (None, "no_relaxation") or (name == "linear" and not gamma):
        return None
    return Relaxation(_named(names, name), gamma if name == "linear" else 0.0)


def _named(names: Mapping[str, str], name: Any) -> str:
    if name not in names:
        raise ValueError(f"{name!r} is not one of {sorted(names)}, the names of the released schedules")
    return names[name]


def _plain(values: Any) -> Any:
    """Numbers of a tensor or array as a list."""
    return values.tolist() if hasattr(values, "tolist") else values
