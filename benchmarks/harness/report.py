"""Result files and tables."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.timing import Timings, ratios

RESULTS = Path(__file__).resolve().parent.parent / "results"
REFERENCE = "ours, compiled"


def record(timings: Sequence[Timings], stock: str) -> dict[str, object]:
    """One pair's results: seconds, and both ratios, each with its spread over rounds."""
    by_name = {timing.name: timing for timing in timings}
    return {
        "reference": REFERENCE,
        "stock": stock,
        "contenders": [
            {
                "name": timing.name,
                "note": timing.note,
                "startup_seconds": timing.startup_seconds,
                "steps_per_round": timing.steps_per_round,
                "first_loss": timing.first_loss,
                "last_loss": timing.last_loss,
                "seconds_per_step": timing.summary(),
                "time_over_ours_compiled": ratios(timing, by_name[REFERENCE]),
                "stock_over_time": ratios(by_name[stock], timing),
                "rounds_seconds_per_step": timing.seconds,
            }
            for timing in timings
        ],
    }


def save(result: Mapping[str, object], path: Path) -> None:
    """Write JSON, with the folder where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def enter(path: Path, benchmark: str, place: Sequence[str], entry: Mapping, facts: Mapping) -> None:
    """Put one entry, with the machine and the command, at a place in a file of results.

    What else is in the file stays, so that parts can be run apart.
    """
    result = load(path) if path.exists() else {"benchmark": benchmark}
    here = result
    for name in place[:-1]:
        here = here.setdefault(name, {})
    command = " ".join(["python", f"benchmarks/{benchmark}.py", *sys.argv[1:]])
    here[place[-1]] = {**entry, "machine": facts, "command": command}
    save(result, path)


def _range(values: Mapping[str, float], digits: int = 2) -> str:
    return f"{values['median']:.{digits}f} ({values['q1']:.{digits}f} to {values['q3']:.{digits}f})"


def pair_table(title: str, pair: Mapping) -> str:
    """Everything about one pair, for the terminal."""
    stock = pair["stock"]
    lines = [
        f"### {title}",
        "",
        f"| | µs a step, median (quartiles) | min | time ÷ ours compiled | {stock} ÷ time "
        "| start-up, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in pair["contenders"]:
        micro = {key: 1e6 * value for key, value in row["seconds_per_step"].items()}
        lines.append(
            f"| {row['name']} | {_range(micro, 0)} | {micro['min']:.0f} "
            f"| {_range(row['time_over_ours_compiled'])} | {_range(row['stock_over_time'])} "
            f"| {row['startup_seconds']:.1f} |"
        )
    return "\n".join(lines)


def _conditions(pair: Mapping) -> str:
    machine = pair["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    device = "" if machine["device"] == "cpu" else f"{machine['device']} beside "
    return (
        f"{device}{machine['cores_used']} cores of {machine['processor']}, "
        f"{machine['torch_threads']} threads; Python {machine['python']}, {versions}; "
        f"{pair['rounds']} interleaved rounds, median of the ratios within a round "
        "(quartiles in brackets)."
    )


def readme_table(results: Sequence[Mapping]) -> str:
    """The tables for the README: each contender's time as a multiple of ours compiled."""
    parts = []
    for result in results:
        pairs = list(result["pairs"].values())
        for table in sorted({pair["table"] for pair in pairs}):
            chosen = [pair for pair in pairs if pair["table"] == table]
            parts.append(_ratio_table(result["device"], chosen))
    return "\n\n".join(parts)


def _ratio_table(device: str, pairs: Sequence[Mapping]) -> str:
    names = dict.fromkeys(row["name"] for pair in pairs for row in pair["contenders"])
    # Ours last, as the line to compare with.
    order = sorted(names, key=lambda name: name.startswith("ours"))
    titles = " | ".join(pair["title"] for pair in pairs)
    lines = [
        f"| Time of a step ÷ ours compiled, {device.upper()} | {titles} |",
        "|---|" + "---|" * len(pairs),
        *(
            f"| {name} | " + " | ".join(_ratio_cell(name, p) for p in pairs) + " |"
            for name in order
        ),
        "",
        # Pairs may have been run apart.
        *dict.fromkeys(_conditions(pair) for pair in pairs),
    ]
    return "\n".join(lines)


def _ratio_cell(name: str, pair: Mapping) -> str:
    row = next((row for row in pair["contenders"] if row["name"] == name), None)
    if row is None:
        return ""
    if name == REFERENCE:
        return f"**1** ({1e6 * row['seconds_per_step']['median']:.0f} µs)"
    return _range(row["time_over_ours_compiled"])


def replace_between(text: str, marker: str, new: str) -> str:
    """Replace what stands between ``<!-- marker -->`` and ``<!-- /marker -->``.

    Raises:
        ValueError: If the two markers are not in the text, once each, in this order.
    """
    start, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(
            f"the file needs the lines '{start}' and '{end}', once each, in this order"
        )
    before, rest = text.split(start)
    after = rest.split(end)[1]
    return f"{before}{start}\n{new}\n{end}{after}"


def load(path: Path) -> dict:
    """Read a result file."""
    return json.loads(path.read_text())
