"""What a schedule must remember: which states outlive which calls, in which registers, and which channel is kept.

The events of a run are calls at states, corrections of a step and predictions of the next. Every call keeps one
combination of its (x0, eps); where another is wanted later, the state that was called is kept beside it, since the two
give all of them. Nothing here is numerical.
"""

from typing import NamedTuple, TypeAlias

from diffsample.solvers.decisions import Decisions, Derivative

State: TypeAlias = tuple[str, int]  # ("final", level) or ("predicted", level), which a corrector then replaces


class Event(NamedTuple):
    """A call at a level (its state), or a correction or prediction by a step."""

    what: str  # "call" | "correct" | "predict"
    number: int  # level of the call, or the step
    state: State  # called, or made


class Plan(NamedTuple):
    """The run of a schedule, what is kept of every call, and the registers of the states carried across it."""

    events: tuple[Event, ...]
    keeps: dict[tuple[int, State], str]  # (level, state called) -> prediction kept in the slot
    carried: tuple[dict[State, int], ...]  # of every call: state -> register, from 1
    registers: int


def plan(decisions: Decisions) -> Plan:
    """The plan of a schedule."""
    events = _events(decisions)
    reads, keeps = _reads(decisions, events)
    born: list[State] = [("final", 0)]
    carried: list[dict[State, int]] = []
    held: dict[State, int] = {}
    for position, event in enumerate(events):
        if event.what != "call":
            born.append(event.state)
            continue
        later = {state for wanted in reads[position:] for state in wanted}
        wanted = [state for state in dict.fromkeys(born) if state in later and state != event.state]
        held = {state: register for state, register in held.items() if state in wanted}
        for state in wanted:
            if state not in held:
                held[state] = next(r for r in range(1, len(wanted) + len(held) + 2) if r not in held.values())
        carried.append(dict(held))
    registers = 1 + max((register for held in carried for register in held.values()), default=0)
    return Plan(tuple(events), keeps, tuple(carried), registers)


def called_state(decisions: Decisions, level: int) -> State:
    """The state at which the output that history keeps of a level was computed."""
    pseudo = level > 0 and decisions.correctors[level - 1] == "pseudo"
    return ("predicted" if pseudo else "final", level)


def start_level(decisions: Decisions, step: int) -> int:
    """The level that a step starts from."""
    return step + 1 + decisions.starts[step]


def used_levels(decisions: Decisions, step: int) -> set[int]:
    """Levels whose outputs a step uses: its start's and its points'."""
    points = {point for derivative in decisions.derivatives[step] for point in derivative.points}
    return {start_level(decisions, step)} | {step + 1 + point for point in points}


def corrected_derivatives(decisions: Decisions, step: int) -> tuple[Derivative, ...]:
    """The derivatives of a step's corrector; points as seen by the step, so that 0 is the level it reaches."""
    order, derivatives = decisions.corrector_orders[step], decisions.derivatives[step]
    found = []
    for k in range(1, order):
        older = derivatives[min(k, len(derivatives)) - 1].points if derivatives else ()
        newest = sorted(older, reverse=True)[: order - 2]
        found.append(Derivative((0, *newest)))
    return tuple(found)


def inner_levels(decisions: Decisions) -> set[int]:
    """Levels inside a singlestep move: a step that begins at or after them starts before them."""
    return {level for step in range(decisions.steps) for level in range(start_level(decisions, step) + 1, step + 1)}


def _events(d: Decisions) -> list[Event]:
    events: list[Event] = []
    for i in range(d.steps):
        final, corrector = ("final", i), d.correctors[i - 1] if i else "none"
        if i or d.first == "call":
            events.append(Event("call", i, final if corrector == "none" else ("predicted", i)))
        if corrector != "none":
            events.append(Event("correct", i - 1, final))
        if corrector == "implicit":
            events.append(Event("call", i, final))
        events.append(Event("predict", i, ("final" if d.correctors[i] == "none" else "predicted", i + 1)))
    return events


def _reads(d: Decisions, events: list[Event]) -> tuple[list[set[State]], dict[tuple[int, State], str]]:
    """States that every event reads, and what is kept of every call."""
    update, called_in, uses = -1, {0: -1}, []  # uses: (event, update, level, prediction)
    for position, event in enumerate(events):
        if event.what == "call":
            update += 1
            called_in[event.number] = update
            continue
        corrects = event.what == "correct"
        levels = used_levels(d, event.number) | ({event.number + 1} if corrects else set())
        uses += [(position, update, level, d.predictions[event.number], called_in[level]) for level in sorted(levels)]
    keeps: dict[tuple[int, State], str] = {}
    for event in events:
        if event.what == "call":
            keeps[event.number, event.state] = _kept(d, event, uses)
    reads: list[set[State]] = [set() for _ in events]
    for position, event in enumerate(events):
        if event.what != "call":
            reads[position].add(("final", start_level(d, event.number)))
    for position, at, level, prediction, since in uses:
        given = level == 0 and d.first != "call"
        known = "data" if given else keeps.get((level, called_state(d, level)))
        if at > since and prediction != known:
            reads[position].add(called_state(d, level))
    return reads, keeps


def _kept(d: Decisions, call: Event, uses: list) -> str:
    """The prediction that is wanted after the update that follows the call, or else in it."""
    if call.state != called_state(d, call.number):  # to be replaced by an implicit corrector's second call
        return d.predictions[call.number - 1]
    later = [prediction for _, at, level, prediction, since in uses if level == call.number and at > since]
    return later[0] if later else d.predictions[call.number]
