"""How fast scenes are made: images a second, for each preset.

    python benchmarks/scenes.py [--repetitions 25] [--save]

Batches of 32 scenes of 128 px, the chunks in which a `SceneDataset` makes them. The presets take turns.
"""

from itertools import count

from timing import interleave, machine_line, parse, quartiles, save, spread, table

from deeplab_edu.data.scenes import PRESETS, make_scenes
from deeplab_edu.profiles import Profile

BATCH, SIZE = 32, 128


def main() -> None:
    options, profile = parse(__doc__, repetitions=25), Profile.load()
    batches = {preset: count(step=BATCH) for preset in PRESETS}  # new scenes each time

    def make(preset: str) -> None:
        start = next(batches[preset])
        make_scenes(range(start, start + BATCH), preset, size=SIZE, device=profile.device)

    seconds = interleave({p: lambda p=p: make(p) for p in PRESETS}, options.repetitions)
    rates = {preset: quartiles([BATCH / s for s in values]) for preset, values in seconds.items()}
    print(f"Scenes of {SIZE} px, batches of {BATCH}, {options.repetitions} repetitions; {machine_line()}\n")
    rows = [(preset, spread(*rate, form=".0f")) for preset, rate in rates.items()]
    print(table(["preset", "images/s, median (quartiles)"], rows))
    if options.save:
        measured = {p: dict(zip(("low", "median", "high"), rate)) for p, rate in rates.items()}
        save("scenes", profile, measured, options.repetitions)


if __name__ == "__main__":
    main()
