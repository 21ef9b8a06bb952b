"""Execute the notebooks and fail if a cell fails (`make notebooks`).

    python notebooks/run.py FOLDER [NAME ...]

Needs nbclient and ipykernel. What was executed, outputs included, goes to FOLDER."""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).parent
LONGEST = 1800  # seconds that a cell may take


def main(folder: str, *names: str) -> int:
    failed = []
    for path in [HERE / f"{name}.ipynb" for name in names] or sorted(HERE.glob("*.ipynb")):
        book, start = nbformat.read(path, as_version=4), time.perf_counter()
        nbformat.validate(book)
        place = Path(folder).absolute() / path.stem  # a run that is there would be continued
        place.mkdir(parents=True)
        where = {"metadata": {"path": str(place)}}
        try:
            NotebookClient(book, timeout=LONGEST, kernel_name="python3", resources=where).execute()
        except CellExecutionError as error:
            failed.append(path.name)
            print(f"{path.name}: {error}", file=sys.stderr)
        nbformat.write(book, place / path.name)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {place / path.name}", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
