"""What a simulation shows: how cost grows with owners, as figures, a table and a picture."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from common.console import Reporter
from deploy.simulation.life import Plan, Wave

Measured = Callable[[Wave], float]

_ON_PAPER: Final = 1000
_ACTIONS: Final = ("join", "take part", "answer")


def figures(plan: Plan, waves: Sequence[Wave], *, seconds: float, engine: str) -> dict[str, object]:
    """All that was measured, the largest wave's cost an owner, and what the slopes say of a thousand owners."""
    last = waves[-1]
    return {
        "engine": engine,
        "owners_simulated": last.owners,
        "dropped_out": round(plan.drop_outs * plan.num_owners),
        "seconds": round(seconds, 1),
        "seconds_per_owner": round(last.whole_life_s, 3),
        "mb_per_owner": round(_slope(waves, lambda wave: wave.coordinator_mb), 3),
        "by_owners": [{**asdict(wave), "seconds_per_owner_in_all": round(wave.whole_life_s, 3)} for wave in waves],
        "on_paper": {
            "owners": _ON_PAPER,
            "seconds_per_owner": round(_extended(waves, lambda wave: wave.whole_life_s), 3),
            "release_s": round(_extended(waves, lambda wave: wave.seconds["release"]), 2),
            "coordinator_mb": round(_extended(waves, lambda wave: wave.coordinator_mb), 1),
            "coordinator_disk_mb": round(_extended(waves, lambda wave: wave.coordinator_disk_mb), 1),
        },
    }


def _slope(waves: Sequence[Wave], value: Measured) -> float:
    """Least squares over waves; 0 for a single one."""
    mean_x = sum(wave.owners for wave in waves) / len(waves)
    mean_y = sum(value(wave) for wave in waves) / len(waves)
    spread = sum((wave.owners - mean_x) ** 2 for wave in waves)
    if not spread:
        return 0.0
    return sum((wave.owners - mean_x) * (value(wave) - mean_y) for wave in waves) / spread


def _extended(waves: Sequence[Wave], value: Measured) -> float:
    """The straight line through what was measured, at a thousand owners."""
    last = waves[-1]
    return value(last) + _slope(waves, value) * (_ON_PAPER - last.owners)


def show(reporter: Reporter, waves: Sequence[Wave]) -> None:
    """The table."""
    columns = ("owners", "in it", "answered", "join s", "train s", "answer s", "release s", "MB", "disk MB", "home MB",
               "entries")  # fmt: skip
    rows = [
        [
            str(wave.owners),
            str(wave.experts),
            str(wave.reported),
            *(f"{wave.seconds_per_owner.get(name, 0):.2f}" for name in _ACTIONS),
            f"{wave.seconds['release']:.2f}",
            f"{wave.coordinator_mb:.0f}",
            f"{wave.coordinator_disk_mb:.1f}",
            f"{wave.owner_disk_mb:.2f}",
            str(wave.log_entries),
        ]
        for wave in waves
    ]
    reporter.table("how cost grows: seconds an owner, the coordinator's memory and disk, a home's disk", columns, rows)


def draw(path: Path, waves: Sequence[Wave]) -> None:
    """The picture, as SVG: seconds an owner by what it does, and the coordinator's memory, over owners."""
    path.write_text(_svg(waves))


_WIDTH: Final = 720
_HEIGHT: Final = 300
_LEFT: Final = 60
_COLOURS: Final = {"join": "#4477aa", "take part": "#ee6677", "answer": "#228833"}


def _svg(waves: Sequence[Wave]) -> str:
    """Bars, the largest as high as the picture; text says every value, so that no scale is needed."""
    step = (_WIDTH - _LEFT) / len(waves)
    most = max(wave.whole_life_s for wave in waves) or 1.0
    parts = [_text(_LEFT, 18, "seconds an owner, by what it does; beneath, the coordinator's memory")]
    for number, (name, colour) in enumerate(_COLOURS.items()):
        key = _LEFT + 110 * number
        parts += [_bar(key, 28, 10, 10, colour), _text(key + 16, 37, name)]
    for number, wave in enumerate(waves):
        x, base = _LEFT + number * step, _HEIGHT - 60.0
        for name, colour in _COLOURS.items():
            high = wave.seconds_per_owner.get(name, 0.0) / most * (_HEIGHT - 130)
            base -= high
            parts.append(_bar(x, base, step * 0.5, high, colour))
        parts.append(_text(x, base - 6, f"{wave.whole_life_s:.2f} s"))
        parts.append(_text(x, _HEIGHT - 42, f"{wave.owners} owners"))
        parts.append(_text(x, _HEIGHT - 24, f"{wave.coordinator_mb:.0f} MB"))
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{text}</text>'
